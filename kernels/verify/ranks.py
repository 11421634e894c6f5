"""Ranks of a distributed job agree on a verdict through the job's key-value store.

No collective: ranks meet other shapes at other times, and one that waits in an operator for a rank that never comes
there would hang the job. Of ranks on equal machines the first to meet a variant checks it and publishes; the others
adopt what it says, so that all take the same backend. They wait for nothing but that check, which ends by itself.
"""

import json
import logging
from collections.abc import Callable
from datetime import timedelta

import torch

from .verdicts import Verdict

_logger = logging.getLogger('mmvmamba.kernels')


def _store():
    """The store of the default process group, or None."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if torch.distributed.get_world_size() == 1:
        return None
    store = torch.distributed.distributed_c10d._get_default_store()
    return torch.distributed.PrefixStore('mmvmamba/verify', store)


def agreed(identity: str, key: str, decide: Callable[[], Verdict], patience: float) -> Verdict:
    """What `decide` says on the rank that asks first, on every rank of an equal machine.

    Args:
        identity: of the machine: GPU, driver, versions, kernels.
        key: of the variant.
        decide: checks, or reads what is kept.
        patience: seconds to wait for another rank before deciding alone.
    """
    store = _store()
    if store is None:
        return decide()
    name = f'{identity}/{key}'
    if store.add(f'{name}/asked', 1) == 1:
        verdict = None
        try:
            verdict = decide()
        finally:  # nobody may wait for what failed here
            verdict_or_not = verdict or Verdict(False, 'the rank that checked it was interrupted', kept=False)
            store.set(name, json.dumps(verdict_or_not.as_json()))
            if not verdict_or_not.passed:
                store.add(f'failed/{key}', 1)
    else:
        try:
            store.wait([name], timedelta(seconds=patience))
            verdict = Verdict.parse(json.loads(store.get(name)))
        except RuntimeError as error:  # DistStoreError among them
            _logger.warning('no verdict of another rank on %s (%s): checking it here', key, error)
            verdict = decide()
    if verdict.passed and store.add(f'failed/{key}', 0):
        return Verdict(False, 'it failed on another machine of this job', kept=False)
    return verdict
