"""Channels that training draws: a resumed run repeats them, every rank draws its own."""

from types import SimpleNamespace

import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmvmamba.engine.randomness import seed_iteration
from mmvmamba.models import FastChannelVim

TINY = dict(embed_dims=8, depth=1, d_state=2, in_channels=6, patch_size=8, img_size=16)


class Classifier(BaseModel):
    """A backbone and a linear layer, that notes what is drawn."""

    def __init__(self):
        super().__init__()
        self.backbone = FastChannelVim(**TINY)
        self.head = torch.nn.Linear(8, 3)
        self.draws = []
        own = self.backbone._drawn

        def noted(planes):
            kept = own(planes)
            self.draws.append(kept.tolist())
            return kept

        self.backbone._drawn = noted

    def forward(self, inputs, label, mode='tensor'):
        logits = self.head(self.backbone(inputs)[0])
        return dict(loss=torch.nn.functional.cross_entropy(logits, label))


def train(work_dir, resume=None):
    """Two epochs of three steps, or what is left of them; the draws and the weights."""
    torch.manual_seed(0)
    images = torch.randn(6, 6, 16, 16)
    runner = Runner(
        model=Classifier(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            dataset=[dict(inputs=image, label=i % 3) for i, image in enumerate(images)],
            sampler=dict(type='DefaultSampler', shuffle=True),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01)),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        custom_hooks=[dict(type='mmvmamba.ReproducibleRandomness')],
        randomness=dict(seed=3),
        load_from=resume,
        resume=resume is not None,
        log_level='ERROR',
        experiment_name=work_dir.name,
    )
    runner.train()
    return runner.model.draws, runner.model.state_dict()


def test_a_resumed_run_draws_the_same_channels_and_ends_at_the_same_weights(tmp_path):
    draws, weights = train(tmp_path / 'whole')
    assert len({tuple(draw) for draw in draws}) > 1
    torch.rand(7)  # whatever was drawn before a run does not matter
    again, resumed = train(tmp_path / 'resumed', str(tmp_path / 'whole/epoch_1.pth'))
    assert again == draws[3:]
    assert all(torch.equal(resumed[name], value) for name, value in weights.items())


def test_every_rank_draws_its_own_and_repeats_it():
    model, draws = FastChannelVim(**TINY), {}
    for rank in (0, 1, 0, 1):
        found = []
        for iteration in range(8):
            seed_iteration(SimpleNamespace(seed=3, rank=rank), iteration)
            found.append(model._drawn(6).tolist())
        assert draws.setdefault(rank, found) == found
    assert draws[0] != draws[1]
