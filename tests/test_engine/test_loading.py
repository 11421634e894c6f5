"""`load_from` and `resume` of mmengine's runners: translated, strict, and said in the log file."""

import golden_runs
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmvmamba.kernels.testing import load_golden
from published_files import DATA, old_names
from torch import nn

from mmvmamba import checkpoints
from mmvmamba.checkpoints import CheckpointError

PARAMETERS, METADATA = load_golden(DATA / 'vmamba_v0.safetensors')
PARAMETERS = golden_runs.parameters_of(PARAMETERS)

PER_PARAMETER = dict(optimizer=dict(type='SGD', lr=0.1, weight_decay=0.1), paramwise_cfg=dict(bias_decay_mult=0.0))


class Detector(BaseModel):
    """The shape of one: backbone, neck, and a head that knows the number of classes."""

    def __init__(self, classes=3, theirs=(), **backbone):
        super().__init__()
        self.backbone = golden_runs.vmamba(METADATA['official_kwargs'] | dict(theirs), **backbone)
        self.neck = nn.Linear(2, 2)
        self.head = nn.Linear(2, classes)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.head(self.neck(torch.stack(inputs))).pow(2).mean())


def run(folder, model=None, hooks=(), optim_wrapper=None, **options):
    """Train one iteration without touching the backbone; the runner, and what its log file says."""
    runner = Runner(
        model or Detector(),
        str(folder),
        train_dataloader=dict(
            dataset=[dict(inputs=torch.ones(2))] * 2,
            batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=options.pop('epochs', 1)),
        optim_wrapper=optim_wrapper or dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9)),
        default_hooks=dict(logger=None, checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='mmvmamba.StrictLoading', **options.pop('loading', {})), *hooks],
        experiment_name=folder.name,
        default_scope='mmengine',
        **options,
    )
    with checkpoints.guard():
        runner.train()
    return runner, ''.join(path.read_text() for path in folder.glob('*/*.log'))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """The checkpoint of one epoch."""
    folder = tmp_path_factory.mktemp('trained')
    run(folder)
    return folder / 'epoch_1.pth'


@pytest.mark.parametrize('container', ['model', 'state_dict', None])
def test_load_from_a_classifier_takes_the_backbone_and_lists_the_rest(container, tmp_path):
    classifier = {k: v for k, v in old_names(PARAMETERS).items() if not k.startswith('outnorm')}
    classifier['classifier.head.weight'] = torch.ones(2)
    torch.save({container: classifier} if container else classifier, tmp_path / 'c.pth')
    runner, log = run(tmp_path, load_from=str(tmp_path / 'c.pth'))
    own = runner.model.backbone.state_dict()
    assert all(torch.equal(own[name], PARAMETERS[name]) for name in own if not name.startswith('outnorm'))
    assert 'not used: classifier.head.weight' in log
    listed = log.partition('These tensors start from scratch:')[2].split()
    assert {'backbone.outnorm0.weight', 'neck.weight', 'head.bias'} <= set(listed)


def test_load_from_translates_a_detector_for_the_averaged_weights_too(tmp_path):
    file = {f'backbone.{name}': value for name, value in old_names(PARAMETERS).items()}
    file |= {'neck.weight': torch.ones(2, 2), 'neck.bias': torch.ones(2)}
    file |= {'head.weight': torch.ones(3, 2), 'head.bias': torch.ones(3)}
    torch.save({'state_dict': file}, tmp_path / 'c.pth')
    runner, log = run(tmp_path, hooks=[dict(type='EMAHook')], load_from=str(tmp_path / 'c.pth'))
    averaged = next(hook for hook in runner.hooks if isinstance(hook, EMAHook)).ema_model.module
    for model in (runner.model, averaged):
        own = model.backbone.state_dict()
        assert all(torch.equal(own[name], PARAMETERS[name]) for name in own)
    assert f'StrictLoading: loaded {tmp_path / "c.pth"} (entry' in log
    assert 'scratch' not in log


def test_other_classes_are_refused_or_fresh_on_request(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r'(?s)head\.weight: checkpoint \(3, 2\), model \(5, 2\).*--fresh-heads'):
        run(tmp_path, Detector(5), load_from=str(trained))
    runner, log = run(tmp_path, Detector(5), loading=dict(fresh_heads=True), load_from=str(trained))
    kept = torch.load(trained, weights_only=False)['state_dict']
    assert torch.equal(runner.model.backbone.outnorm0.weight, kept['backbone.outnorm0.weight'])
    assert log.partition('These tensors start from scratch:')[2].split()[:2] == ['head.weight', 'head.bias']


def test_another_width_is_refused(trained, tmp_path):
    with pytest.raises(
        CheckpointError, match=r'look like .*; this is .*\n.*of another shape:\n +backbone\.patch_embed'
    ):
        run(tmp_path, Detector(theirs=dict(dims=4)), load_from=str(trained))


@pytest.mark.parametrize('optim_wrapper', [None, PER_PARAMETER], ids=['one group', 'a group each'])
def test_resuming_goes_on(optim_wrapper, tmp_path):
    run(tmp_path, optim_wrapper=optim_wrapper)
    own = str(tmp_path / 'epoch_1.pth')
    runner, log = run(tmp_path, load_from=own, resume=True, epochs=2, optim_wrapper=optim_wrapper)
    assert runner.epoch == 2
    assert f'StrictLoading: loaded {own}' in log
    assert 'scratch' not in log


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(model=lambda: Detector(5)), r'head\.weight: checkpoint \(3, 2\), model \(5, 2\)'),
        (dict(model=lambda: Detector(out_indices=(0,))), r"no place for \['backbone\."),
        (
            dict(optim_wrapper=PER_PARAMETER),
            r'optimizer with \d+ parameters in 1 groups; the optimizer of this config has \d+ in \d\d+: optim_wrapper',
        ),
    ],
    ids=['classes', 'outputs', 'optimizer'],
)
def test_resuming_onto_something_else_says_what_differs(options, words, trained, tmp_path):
    if 'model' in options:
        options = dict(options, model=options['model']())
    with pytest.raises(CheckpointError, match=rf'(?s)cannot resume: .*{words}.*load_from=\S+epoch_1\.pth instead of'):
        run(tmp_path, load_from=str(trained), resume=True, loading=dict(fresh_heads=True), **options)


def test_init_cfg_says_what_it_loaded_in_the_log_file(tmp_path):
    classifier = {name: value for name, value in PARAMETERS.items() if not name.startswith('outnorm')}
    torch.save({'model': classifier}, tmp_path / 'c.pth')
    _, log = run(tmp_path, Detector(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'c.pth'))))
    assert f"VMamba: loaded {tmp_path / 'c.pth'} (entry 'model'); left at their initial values: outnorm0.weight" in log
