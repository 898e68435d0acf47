"""Ids of one sandbox are never another's, whatever becomes of the server and the zygote in between."""

import os
import pathlib
import re
import signal
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import posture, servers


@pytest.fixture
def own_server(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[servers.Server]:
    """A server that the test may kill."""
    running = servers.Server(tmp_path)
    running.start()
    for variable, value in running.environment.items():
        monkeypatch.setenv(variable, value)
    yield running
    running.stop()


def _range(box: Sandbox) -> tuple[int, ...]:
    return posture.read(posture.pids_of(box.sandbox_id)[0]).uid_map[0]


def _all_differ(boxes: list[Sandbox]) -> None:
    ranges = [_range(box) for box in boxes]
    assert len(set(ranges)) == len(ranges), ranges


def test_ids_are_not_given_twice_after_a_restart(own_server: servers.Server) -> None:
    """The pool of a restarted server is filled before it learns which sandboxes live on."""
    before = [Sandbox.create(timeout=120) for _ in range(4)]
    own_server.kill()
    own_server.start()
    after = [Sandbox.create(timeout=120) for _ in range(20)]
    _all_differ(before + after)
    for box in before[:2]:
        box.kill()
    _all_differ(before[2:] + after + [Sandbox.create(timeout=120) for _ in range(6)])


def test_ids_are_not_given_twice_after_a_zygotes_death(own_server: servers.Server) -> None:
    """A new zygote has the same key as the dead one, whose sandboxes' slots must not go to it."""
    old = [Sandbox.create(timeout=120) for _ in range(4)]
    agent = posture.pids_of(old[0].sandbox_id)[0]
    parent = re.search(r"PPid:\t(\d+)", pathlib.Path(f"/proc/{agent}/status").read_text())
    assert parent
    handle = os.pidfd_open(int(parent[1]))
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
    servers.wait_until(lambda: not pathlib.Path(f"/proc/{agent}").exists(), 30)
    new = [Sandbox.create(timeout=120) for _ in range(6)]
    for box in old:
        box.kill()
    _all_differ(new + [Sandbox.create(timeout=120) for _ in range(12)])
    assert new[0].run_code("6 * 7").text == "42"
