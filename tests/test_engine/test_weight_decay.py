"""Weight decay along a cosine."""

import pytest
import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmvmamba.engine import CosineWeightDecay


def wrapper(decays):
    groups = [dict(params=[torch.zeros(1, requires_grad=True)], weight_decay=decay) for decay in decays]
    return OptimWrapper(torch.optim.AdamW(groups))


def values(optim_wrapper):
    return [group['weight_decay'] for group in optim_wrapper.optimizer.param_groups]


def test_rises_along_a_cosine_and_leaves_groups_without_decay_alone():
    optim_wrapper = wrapper([0.04, 0.0, 0.02])
    scheduler = CosineWeightDecay(optim_wrapper, ratio=10, end=11, by_epoch=False)
    seen = [values(optim_wrapper)]
    for _ in range(14):
        scheduler.step()
        seen.append(values(optim_wrapper))
    assert seen[0] == [0.04, 0.0, 0.02]
    assert seen[5] == pytest.approx([0.22, 0.0, 0.11])
    for last in seen[10:]:
        assert last == pytest.approx([0.4, 0.0, 0.2])
    assert [s[0] for s in seen] == sorted(s[0] for s in seen)


def test_epochs_become_iterations():
    scheduler = PARAM_SCHEDULERS.get('mmvmamba.CosineWeightDecay').build_iter_from_epoch(
        wrapper([0.04]), ratio=10, begin=0, end=3, epoch_length=7
    )
    assert (scheduler.begin, scheduler.end, scheduler.by_epoch) == (0, 21, False)


def test_resumes_where_it_was():
    first, second = wrapper([0.04, 0.0]), wrapper([0.04, 0.0])
    schedulers = [CosineWeightDecay(each, ratio=10, end=20, by_epoch=False) for each in (first, second)]
    for _ in range(6):
        schedulers[0].step()
    second.load_state_dict(first.state_dict())
    schedulers[1].load_state_dict(schedulers[0].state_dict())
    for scheduler in schedulers:
        scheduler.step()
    assert values(first) == values(second)
    assert values(first)[0] > 0.04


@pytest.mark.parametrize('arguments', [dict(ratio=-1, end=5), dict(ratio=10)])
def test_bad_arguments(arguments):
    with pytest.raises(ValueError, match='expected a ratio from 0 up and the last step'):
        CosineWeightDecay(wrapper([0.1]), **arguments)
