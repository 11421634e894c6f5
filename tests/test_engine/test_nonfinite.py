"""The guard against NaN: what it names, writes, protects, and that it makes nobody wait."""

import json

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmvmamba.engine import nonfinite
from mmvmamba.engine.nonfinite import NonFiniteError, NonFiniteGuard

BAD = (3, 'forward'), (3, 'backward')  # iterations count from 0


class Spoil(nn.Module):
    """Finite until its time has come."""

    def __init__(self):
        super().__init__()
        self.how = None

    def forward(self, x):
        if self.how == 'forward':
            return x * float('nan')
        if self.how == 'backward':
            return x + (x * 0).sqrt()  # the root of 0 has an infinite slope
        return x


class Net(BaseModel):
    def __init__(self, bad=()):
        super().__init__()
        self.bad = dict(bad)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), Spoil(), nn.Linear(4, 1))
        self.register_buffer('steps', torch.zeros(1))
        self.now = -1

    def forward(self, inputs, data_samples=None, mode='loss'):
        self.body[2].how = self.bad.get(self.now)
        return dict(loss_a=self.body(torch.stack(inputs)).pow(2).mean())


class Clock(Hook):
    """Tells the network which iteration it is."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.model.now = runner.iter


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        generator = torch.Generator().manual_seed(i)
        sample = BaseDataElement(metainfo=dict(img_path=f'{i}.jpg'))
        return dict(inputs=torch.randn(4, generator=generator), data_samples=sample)


def runner(tmp_path, guard, bad=(), hooks=(), **options):
    torch.manual_seed(0)
    return Runner(
        Net(bad),
        str(tmp_path),
        train_dataloader=dict(
            dataset=Data(),
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=1),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.0), **options),
        custom_hooks=[guard, Clock(), *hooks],
        default_hooks=dict(logger=None, checkpoint=None),
        randomness=dict(seed=0),
        experiment_name=tmp_path.name,
        default_scope='mmengine',
    )


def written(tmp_path):
    return sorted(path.name for path in tmp_path.rglob('nonfinite_*'))


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad[1])
def test_the_first_bad_module_is_named_and_files_are_written(bad, tmp_path):
    with pytest.raises(NonFiniteError, match=r'iteration 4: the (loss|gradient) is not finite') as caught:
        runner(tmp_path, NonFiniteGuard(), [bad]).train()
    where = 'first in the output of' if bad[1] == 'forward' else 'first in the backward pass of'
    assert f'{where} body.2 (Spoil)' in str(caught.value)
    assert written(tmp_path) == ['nonfinite_iter_4.pth', 'nonfinite_iter_4_rank0.json']
    report = json.loads(next(tmp_path.rglob('*_rank0.json')).read_text())
    assert report['iteration'] == 4
    assert [meta['img_path'] for meta in report['batch']] == ['6.jpg', '7.jpg']
    saved = torch.load(next(tmp_path.rglob('nonfinite_*.pth')), weights_only=False)['state_dict']
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize('bad', BAD, ids=lambda bad: bad[1])
@pytest.mark.parametrize('lag', [False, True], ids=['at once', 'one iteration late'])
def test_skipping_keeps_the_bad_numbers_out(bad, lag, tmp_path, monkeypatch):
    if lag:
        as_on_a_gpu(monkeypatch)
    guard = NonFiniteGuard(action='skip')
    run = runner(tmp_path, guard, [bad])
    run.train()
    assert guard.count == 1
    assert run.iter == 8
    assert all(value.isfinite().all() for value in run.model.state_dict().values())
    for state in run.optim_wrapper.optimizer.state.values():
        assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize('clip', [None, dict(max_norm=1.0)], ids=['plain', 'clipped'])
def test_the_guard_changes_no_bit_of_a_clean_run(clip, tmp_path):
    ends = []
    for name, guard in (('with', NonFiniteGuard()), ('without', Hook())):
        run = runner(tmp_path / name, guard, **(dict(clip_grad=clip) if clip else {}))
        run.train()
        ends.append(run.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not written(tmp_path)


def test_patience_ends(tmp_path):
    guard = NonFiniteGuard(action='skip', patience=3)
    with pytest.raises(NonFiniteError, match=r'iteration 5: .*stopping after 3 such iterations in a row'):
        runner(tmp_path, guard, [(0, 'forward'), *((i, 'forward') for i in (2, 3, 4))]).train()
    assert written(tmp_path) == ['nonfinite_iter_1.pth', 'nonfinite_iter_1_rank0.json'], 'one report is enough'


def as_on_a_gpu(monkeypatch):
    """Take the path of asynchronous devices, with events that have always passed."""

    class Event:
        def record(self):
            pass

        def synchronize(self):
            pass

    monkeypatch.setattr(nonfinite, '_asynchronous', lambda tensor: True)
    monkeypatch.setattr(torch.cuda, 'Event', Event)


class Reads(TorchDispatchMode):
    """Counts what makes a host wait for a GPU: reading a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def test_nothing_on_the_device_is_read_while_all_is_well(tmp_path, monkeypatch):
    """The only reads are of flags that an event has announced on the host."""
    as_on_a_gpu(monkeypatch)
    seen = Reads()
    guard = NonFiniteGuard()
    for name in ('before_train_iter', '_check_gradients', 'after_train_iter'):
        method = getattr(guard, name)

        def counted(*args, _method=method, **kwargs):
            with seen:
                return _method(*args, **kwargs)

        setattr(guard, name, counted)
    monkeypatch.setattr(guard, '_look', lambda runner, late: None)
    run = runner(tmp_path, guard)
    run.train()
    assert len(guard._pending) == 8
    assert all(pending.finite.all() for pending in guard._pending)
    assert seen.count == 0
    with seen:
        assert torch.ones(1).item() == 1
    assert seen.count == 1, 'the counter works'


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_never_waits():
    guard = NonFiniteGuard()
    parameter = nn.Parameter(torch.ones(8, device='cuda'))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    guard._check_gradients(optimizer, (), {})  # what is loaded on first use may wait
    torch.cuda.set_sync_debug_mode('error')
    try:
        guard._check_gradients(optimizer, (), {})
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert guard._gradients_finite.item() == 1


def test_gradient_scaling_is_left_to_search_until_it_finds_nothing(tmp_path):
    """fp16 overflows while the scaler looks for its scale; that is no event, but a scale of almost nothing is."""

    def run(name, scale):
        guard = NonFiniteGuard(interval=1)
        options = dict(
            type='mmvmamba.CpuAmpOptimWrapper',
            dtype='float16',
            loss_scale=dict(init_scale=scale, growth_interval=10**6),
        )
        runner(tmp_path / name, guard, [(1, 'backward')], **options).train()
        return guard

    assert run('usual', 2.0**8).count == 0
    with pytest.raises(NonFiniteError, match=r'loss scale has fallen to .*--amp bf16'):
        run('exhausted', 2.0**-10)
    assert not written(tmp_path)


@pytest.mark.parametrize('bad', [dict(action='warn'), dict(patience=0), dict(interval=1.5)], ids=str)
def test_arguments_are_checked(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f'NonFiniteGuard: {name}={value!r}; expected'):
        NonFiniteGuard(**bad)
