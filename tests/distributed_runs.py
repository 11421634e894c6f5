"""Train a small network for a few steps, alone or sharing batches with other processes, and print its losses.

Example: python tests/distributed_runs.py alone VMamba (with ddp or fsdp: under torchrun)
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from torch import nn

from mmvmamba.engine.launch import leave_processes
from mmvmamba.models import FastVim, VMamba

BACKBONES = {
    'VMamba': lambda: VMamba(embed_dims=8, depths=(1, 1, 1, 1), drop_path_rate=0.0, out_indices=(3,)),
    'FastVim': lambda: FastVim(
        img_size=(32, 32), patch_size=8, embed_dims=16, depth=2, out_indices=(1,), drop_path_rate=0.0
    ),
}
STEPS, BATCH = 5, 4


class Net(BaseModel):
    """A backbone without batch statistics, and a loss that is a mean over samples."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = BACKBONES[backbone]()
        self.head = nn.LazyConv2d(3, 1)

    def forward(self, inputs, targets, mode='loss'):
        scores = self.head(self.backbone(inputs)[-1]).mean((2, 3))
        return dict(loss=nn.functional.cross_entropy(scores, targets))


def train(kind: str, backbone: str) -> dict:
    """The losses over all processes and the number of parameters that this one holds."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = Net(backbone)
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(STEPS, BATCH, 3, 32, 32, generator=generator)
    targets = torch.randint(0, 3, (STEPS, BATCH), generator=generator)
    net(images[0], targets[0])  # the lazy head learns its size
    rank, world = 0, 1
    model = net
    if kind != 'alone':
        dist.init_process_group('gloo')
        rank, world = dist.get_rank(), dist.get_world_size()
    if kind == 'ddp':
        model = MMDistributedDataParallel(net, broadcast_buffers=False)
    elif kind == 'fsdp':
        from mmengine.model import MMFullyShardedDataParallel

        model = MMFullyShardedDataParallel(net, device_id=torch.device('cpu'), use_orig_params=True)
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), lr=0.01))
    losses = []
    for step in range(STEPS):
        data = dict(inputs=images[step][rank::world], targets=targets[step][rank::world])
        loss = model.train_step(data, optimizer)['loss'].detach()
        if world > 1:
            dist.all_reduce(loss)
        losses.append(loss.item() / world)
    return dict(losses=losses, parameters=sum(p.numel() for p in model.parameters()))


def threads() -> list[str]:
    """Names of this process' threads, where the system tells."""
    return [path.read_text().strip() for path in Path('/proc/self/task').glob('*/comm')]


def main(kind: str, backbone: str) -> None:
    report = train(kind, backbone)
    leave_processes()
    report['gloo_threads'] = [name for name in threads() if 'gloo' in name]
    print(json.dumps(report))


if __name__ == '__main__':
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        main(*sys.argv[1:])
