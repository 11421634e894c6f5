"""A process of Triton's interpreter that dies must not pass for tests that passed."""

from types import SimpleNamespace

from interpreter import _Child


def test_a_process_that_ends_early_is_a_failure_with_its_output(tmp_path, request):
    child = _Child(['tests/no_such_file.py::test'], tmp_path, request.config)
    item = SimpleNamespace(nodeid='tests/no_such_file.py::test', location=('no_such_file.py', 1, 'test'))
    (report,) = child.reports(item)
    assert report.failed
    assert 'ended with 4' in report.longrepr
    assert 'no_such_file.py' in report.longrepr
