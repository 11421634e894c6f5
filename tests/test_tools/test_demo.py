"""The demo's page, with stand-ins for the tools that it runs."""

import io
import re
import sys

import pytest
from tool_runs import load_tool

demo = load_tool('demo')
HEAD = '11/25 21:02:49 - mmengine - INFO - '
EPOCH = (
    HEAD + 'Epoch(train)  [2][15/60]  base_lr: 6e-04 lr: 6e-04  eta: 0:01:05  time: 2.4  grad_norm: 6.4  loss: 2.9482'
)
ITERATION = HEAD + 'Iter(train) [  300/1000]  lr: 1e-3  eta: 0:02:00  loss: 1.0512  decode.loss_ce: 0.7'


@pytest.mark.parametrize(
    'line, epochs, share, words',
    [
        (EPOCH, 10, 0.125, 'iteration 75 of 600, loss 2.95, 0:01:05 left'),
        (ITERATION, 0, 0.3, 'iteration 300 of 1000, loss 1.05, 0:02:00 left'),
        (HEAD + 'Epoch(val)  [5][10/20]    eta: 0:00:01  time: 0.1', 10, -1, 'evaluating, image batch 10 of 20'),
        (HEAD + 'Iter(test) [20/80]    eta: 0:00:09', 0, 0.25, 'image batch 20 of 80, 0:00:09 left'),
        (HEAD + 'Epoch(test) [20/20]    coco/bbox_mAP: 0.4', 10, 1, 'image batch 20 of 20'),
        (HEAD + 'Epoch(train) [1][10/10]  loss: nan', 1, 1, 'iteration 10 of 10, loss nan'),
    ],
)
def test_progress_is_read_from_the_toolboxes_log(line, epochs, share, words):
    assert demo.read_progress(line, epochs) == (share, words)


@pytest.mark.parametrize('line', ['', 'model = dict(', HEAD + 'Exp name: x', 'lr=[0.1, 0.2]'])
def test_other_lines_say_nothing(line):
    assert demo.read_progress(line, 10) is None


def test_table_of_metrics():
    shown = demo.table({'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP': 0.25, 'lr': 1})
    assert [line.split() for line in shown] == [['AP'], ['boxes', '0.5'], ['masks', '0.25']]
    shown = demo.table({'aAcc': 93.21, 'mIoU': 76.0, 'mAcc': 80.5})
    assert [line.split() for line in shown][1] == ['pixels', '76', '93.21', '80.5']
    assert [line.split() for line in demo.table({'accuracy/top1': 93.5})] == [['right', '(%)'], ['images', '93.5']]


def test_of_classification_the_overview_is_named(tmp_path):
    for name in ('star/1.png', 'right_and_wrong.png'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert demo.where_drawn(tmp_path).startswith(f'{tmp_path}/right_and_wrong.png')
    (tmp_path / 'right_and_wrong.png').unlink()
    assert demo.where_drawn(tmp_path).startswith(f'{tmp_path}/star ')


TRAIN = """
import sys
from pathlib import Path
work_dir = Path(sys.argv[sys.argv.index('--work-dir') + 1])
work_dir.mkdir(parents=True, exist_ok=True)
print('a config' * 100)
for i in range(1, 101):
    print(f'Iter(train) [  {i}/100]  eta: 0:00:{100 - i:02}  loss: {1 / i:.4f}')
print('UserWarning: not for the page')
if 'a=b' in sys.argv:
    sys.exit('the reason')
(work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_100.pth'))
"""
TEST = """
import sys
from pathlib import Path
work_dir = Path(sys.argv[sys.argv.index('--work-dir') + 1])
pictures = Path(sys.argv[sys.argv.index('--show-dir') + 1])
work_dir.mkdir(parents=True)
pictures.mkdir()
(work_dir / 'metrics.json').write_text('{"mIoU": 70.0, "aAcc": 90.0, "mAcc": 80.0}')
(pictures / 'a.png').touch()
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Run the demo with stand-ins; what it prints, and its exit code."""

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    (tmp_path / 'analysis').mkdir()
    tools = {'make_shapes_dataset': '', 'train': TRAIN, 'test': TEST, 'analysis/mae_pictures': ''}
    for name, content in tools.items():
        (tmp_path / f'{name}.py').write_text(content)
    monkeypatch.setattr(demo, 'TOOLS', tmp_path)

    def run(*options, terminal=False):
        monkeypatch.setattr(sys, 'stdout', Terminal() if terminal else io.StringIO())
        command = ['--config', 'configs/demo/upernet_vmamba_shapes.py', '--work-dir', str(tmp_path / 'work'), *options]
        try:
            code = demo.main(command)
        except SystemExit as left:
            code = left.code
        return sys.stdout.getvalue(), code

    monkeypatch.chdir(demo.Path(__file__).parents[2])
    return run


def test_piped_it_is_a_page_without_control_characters(page, tmp_path):
    shown, code = page()
    assert code == 0
    assert not re.search(r'[\r\033]', shown)
    assert len(shown.splitlines()) < 30
    assert 'iteration 75 of 100' in shown
    assert '70' in shown
    assert 'UserWarning' not in shown
    log = (tmp_path / 'work/demo.log').read_text()
    assert 'UserWarning' in log
    assert str(tmp_path / 'work/demo.log') in shown


def test_on_a_terminal_it_moves_and_is_a_page(page):
    shown, code = page(terminal=True)
    assert code == 0
    assert shown.count('\n') < 30
    assert '\r' in shown


def test_failure_shows_the_end_of_the_log(page):
    shown, code = page('--cfg-options', 'a=b')
    assert shown.rstrip().endswith('the reason')
    assert 'UserWarning' in shown
    assert 'demo.log' in code
    assert len(shown.splitlines()) < 60


def test_pretraining_goes_on_to_a_classifier_and_a_detector(page, tmp_path):
    shown, code = page('--config', 'configs/mae/demo.py')
    assert code == 0
    assert re.findall(r'^\[(\d)/8\] (.{22}).*(?:done|already)', shown, re.MULTILINE) == [
        (str(i + 1), f'{name:<22}')
        for i, name in enumerate(
            (
                *('data', 'data of the detector', 'masked pretraining', 'reconstructions'),
                *('fine-tuning', 'evaluation, pictures', 'detector', 'evaluation, pictures'),
            )
        )
    ]
    log, encoder = (tmp_path / 'work/demo.log').read_text(), tmp_path / 'work/iter_100.pth'
    for config, folder in (('demo_finetuned', 'finetuned'), ('demo_detector', 'detector')):
        trained = f'train.py configs/mae/{config}.py --work-dir {tmp_path}/work/{folder} --cfg-options'
        assert f'{trained} model.backbone.init_cfg.checkpoint={encoder}' in log
    assert f'reconstructions (image, what is seen, what is made of it): {tmp_path}/work/reconstructions.png' in shown
