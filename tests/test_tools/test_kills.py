"""Trainings that are killed, at random and while they save, end where an undisturbed one ends."""

import json
import subprocess
import sys

import torch
from tool_runs import ROOT, SEGMENTATION, tiny


def test_kills_change_nothing(shapes, tmp_path, request):
    """`pytest tests/test_tools/test_kills.py --kills 20` is the long version."""
    kills = request.config.getoption('--kills')
    options = [
        *tiny(SEGMENTATION, shapes),
        f'train_cfg.max_iters={10 * kills}',
        f'train_cfg.val_interval={10 * kills}',
        'default_hooks.checkpoint.interval=2',
    ]

    def run(number, name):
        script = [sys.executable, ROOT / 'tests/kill_runs.py', number, tmp_path / name]
        command = map(str, [*script, SEGMENTATION, '--cfg-options', *options])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 + 60 * kills)
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads(done.stdout.splitlines()[-1])
        assert report['exit code'] == 0, (tmp_path / name / 'output.txt').read_text()[-3000:]
        return report

    run(0, 'undisturbed')
    report = run(kills, 'killed')
    assert len(report['kills']) == kills
    ends = [
        torch.load(tmp_path / name / f'iter_{10 * kills}.pth', weights_only=False)['state_dict']
        for name in ('undisturbed', 'killed')
    ]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert not list((tmp_path / 'killed').glob('*.tmp')), 'the last save replaces what kills leave behind'
