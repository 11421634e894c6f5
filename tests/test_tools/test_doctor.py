"""The doctor: right about this machine, and of use with half of the stack missing."""

import json
import subprocess
import sys

from tool_runs import ROOT, run_tool


def test_this_environment_is_healthy():
    done = run_tool('doctor.py', '--json')
    assert done.returncode == 0, done.stdout
    found = {row['name']: row for row in json.loads(done.stdout)}
    assert found['mmcv operators']['status'] == 'ok'
    assert found['backend torch']['status'] == 'ok'
    assert found['torch']['status'] == 'ok'


def test_table_is_readable():
    done = run_tool('doctor.py', COLUMNS='120')
    assert 'mmvmamba doctor' in done.stdout
    assert 'Training can run here.' in done.stdout


def test_missing_packages_come_with_commands(tmp_path):
    """An interpreter that sees no installed package at all."""
    command = [sys.executable, '-S', '-E', str(ROOT / 'tools/doctor.py')]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert 'torch' in done.stdout
    assert 'not installed' in done.stdout
    assert 'fix: make setup' in done.stdout
    assert 'Training cannot run yet' in done.stdout
