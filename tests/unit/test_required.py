"""In CI a skip is a failure: what tests/conftest.py promises."""

import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_SKIPS = {
    "in the test": "import pytest\ndef test_it(): pytest.skip('not here')\n",
    "by a mark": "import pytest\n@pytest.mark.skip(reason='not here')\ndef test_it(): pass\n",
    "of the module": "import pytest\npytest.importorskip('no_such_module', reason='not here')\n",
}


def _run(folder: pathlib.Path, source: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_sample.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "--rootdir", str(folder), "-c", os.devnull, "."],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(_ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("source", _SKIPS.values(), ids=list(_SKIPS))
def test_a_skip_fails_in_ci(tmp_path: pathlib.Path, source: str) -> None:
    done = _run(tmp_path, source, CI="true")

    assert done.returncode in (1, 2)
    assert "in CI every test must run" in done.stdout
    assert "not here" in done.stdout


@pytest.mark.parametrize("source", _SKIPS.values(), ids=list(_SKIPS))
def test_a_skip_is_a_skip_elsewhere(tmp_path: pathlib.Path, source: str) -> None:
    done = _run(tmp_path, source)

    assert "1 skipped" in done.stdout


def test_an_expected_failure_stays_one(tmp_path: pathlib.Path) -> None:
    done = _run(tmp_path, "import pytest\n@pytest.mark.xfail\ndef test_it(): assert 0\n", CI="true")

    assert "1 xfailed" in done.stdout
    assert done.returncode == 0
