"""The script that checks a GPU, with a stand-in for its python: order of steps, exit codes, what is left behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'gpu_check.sh'

PLAYER = """#!/usr/bin/env bash
# answers as python would on a machine with a GPU; programs on standard input are run for once
last="${@: -1}"
case "$*" in
*-m\\ pytest*)
    echo pytest >>"$CALLS"
    while [ "$1" != --junitxml ]; do shift; done
    echo "<r><testsuite tests='5' failures='$FAIL' errors='0' skipped='$SKIP'/></r>" >"$2"
    exit "$FAIL" ;;
*tools/benchmark.py*)
    echo "$MMVMAMBA_BACKEND $*" >>"$CALLS"
    echo '| table |'
    while [ "$1" != --json ]; do shift; done
    echo '{"rows": []}' >"$2"
    case "$2" in *"$BAD"*) exit 1 ;; esac ;;
*tools/doctor.py*)
    echo "doctor $MMVMAMBA_VERIFY" >>"$CALLS"
    echo '{"gpu": "NVIDIA Nothing", "seconds": 81.5, "jobs": 2, "verdicts": [
        {"operator": "ss2d", "direction": "forward", "call": "all", "passed": true, "seconds": 3, "reason": ""},
        {"operator": "ss2d", "direction": "backward", "call": "all", "passed": false, "seconds": 4, "reason": "NaN"}]}'
    exit 1 ;;
-\\ *) exec "$REAL" "$@" ;;
esac
"""


def check(tmp_path, fail=0, skip=0, bad='nothing'):
    """Exit code, measured calls in order, folder."""
    player, calls, out = tmp_path / 'python', tmp_path / 'calls', tmp_path / 'out'
    player.write_text(PLAYER)
    player.chmod(0o755)
    environment = dict(
        os.environ, PYTHON=str(player), REAL=sys.executable, CALLS=str(calls), FAIL=str(fail), SKIP=str(skip), BAD=bad
    )
    done = subprocess.run([SCRIPT, out], capture_output=True, text=True, env=environment, timeout=240)
    lines = calls.read_text().splitlines()
    return done.returncode, [line for line in lines if line in ('pytest', 'doctor always') or '--tests' in line], out


def test_everything_lands_in_the_folder(tmp_path):
    code, calls, out = check(tmp_path)
    assert code == 0
    first, *calls = calls
    assert first == 'doctor always'
    assert calls[:2] == ['pytest', 'pytest']
    assert [call.split()[2] for call in calls[2:]] == ['kernels'] * 3 + ['model'] * 3 + ['pooled']
    assert all(call.startswith('triton ') for call in calls[2:])
    assert json.loads((out / 'tests.json').read_text())['passed']
    assert len(json.loads((out / 'results.json').read_text())) == 7
    report = (out / 'report.md').read_text()
    assert report.count('| table |') == 7
    assert '1 of 2 variants proved on NVIDIA Nothing in 81.5 s' in report
    assert '* failed: ss2d backward (all): NaN' in report


@pytest.mark.parametrize(('fail', 'skip'), [(1, 0), (0, 1)], ids=['failed', 'skipped'])
def test_nothing_is_measured_without_passed_tests(fail, skip, tmp_path):
    code, calls, out = check(tmp_path, fail, skip)
    assert code == 1
    assert set(calls) == {'doctor always', 'pytest'}
    assert 'nothing is measured' in (out / 'report.md').read_text()


def test_a_failed_measurement_is_said_and_does_not_stop_the_others(tmp_path):
    code, calls, out = check(tmp_path, bad='model_2x800x1280')
    assert code == 3
    assert len(calls) == 1 + 2 + 7
    assert (out / 'report.md').read_text().count('not measured: failed') == 1


def test_without_a_gpu_nothing_is_claimed(tmp_path):
    environment = dict(os.environ, PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    done = subprocess.run([SCRIPT, tmp_path], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert 'no GPU' in (tmp_path / 'report.md').read_text()
    assert subprocess.run([SCRIPT], capture_output=True).returncode == 2
