"""For all tests: where CI is set, everything a test needs is there, and a skip is a failure. After them nothing is left."""

import os
import signal
from collections.abc import Generator
from typing import Any

import pytest

from tests.support import leaks, servers

_LEFT_WITHIN_S = 30
_BEFORE = pytest.StashKey[dict[str, set[str]]]()


def _refuse(report: Any) -> Any:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and in CI every test must run: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    return _refuse((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, Any, Any]:
    return _refuse((yield))


def pytest_sessionstart(session: pytest.Session) -> None:
    # In the background of a script SIGINT is ignored, and all that a test starts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    session.stash[_BEFORE] = leaks.snapshot()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """After the last test and the last fixture: no process, cgroup, mount or namespace of ours is left on this host."""
    before = session.stash[_BEFORE]
    try:
        servers.wait_until(lambda: not leaks.new_since(before), _LEFT_WITHIN_S, lambda: leaks.new_since(before))
    except AssertionError as error:
        print(f"\nLEFT BEHIND by the tests: {error}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
