"""A private server is ready when it is given, and gone when it is given back."""

import os
import pathlib
import sys
from typing import Any

import pytest

from glovebox import connection, control, errors, private, program

_FAKE = pathlib.Path(__file__).with_name("fake_server.py")


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(private.tempfile, "tempdir", str(directory))
    return directory


def _server_is(monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
    monkeypatch.setattr(program, "server_command", lambda *arguments: [sys.executable, *command, *arguments])


def test_it_works_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch, temporary: pathlib.Path) -> None:
    _server_is(monkeypatch, str(_FAKE))

    with private.server() as target, control.Control(target) as client:
        assert client.is_healthy()
        assert target.pid and connection.is_alive(target.pid)
        assert len(list(client.sandboxes())) == 1

    assert not connection.is_alive(target.pid)
    assert list(temporary.iterdir()) == []


def test_its_sandboxes_are_killed_also_when_the_job_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[str] = []
    _server_is(monkeypatch, str(_FAKE))
    monkeypatch.setattr(control.Control, "kill", lambda self, sandbox_id: killed.append(sandbox_id))

    with pytest.raises(ZeroDivisionError), private.server():
        raise ZeroDivisionError

    assert killed == ["ileft"]


def test_a_server_that_cannot_start_says_why(monkeypatch: pytest.MonkeyPatch, temporary: pathlib.Path) -> None:
    _server_is(monkeypatch, "-c", "raise SystemExit('no namespaces here')")

    with pytest.raises(errors.UnsupportedError, match="no namespaces here"), private.server():
        pass

    assert list(temporary.iterdir()) == []


def test_a_running_server_is_preferred(server: Any, tmp_path: pathlib.Path) -> None:
    with private.existing_or_private(None) as target:
        assert (target.url, target.pid) == (server.url, os.getpid())
