"""A real server on the namespace runtime, and a sandbox in it for each test that asks."""

import pathlib
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import posture, servers


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    running = servers.Server(tmp_path_factory.mktemp("glovebox"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def sandbox(server: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sandbox]:
    for variable, value in server.environment.items():
        monkeypatch.setenv(variable, value)
    with Sandbox.create(timeout=120) as made:
        yield made


@pytest.fixture
def neighbour(server: servers.Server, sandbox: Sandbox) -> Iterator[Sandbox]:
    """A second sandbox beside the first."""
    with Sandbox.create(timeout=120) as made:
        yield made


@pytest.fixture
def host_pids(sandbox: Sandbox) -> list[int]:
    """The host's pids of everything in the sandbox."""
    return posture.pids_of(sandbox.sandbox_id)


@pytest.fixture
def canary(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file of the host that must stay unread and unchanged."""
    path = pathlib.Path("/root/glovebox-canary") if pathlib.Path("/root").is_dir() else tmp_path / "canary"
    path.write_text("secret of the host")
    yield path
    assert path.read_text() == "secret of the host"
    path.unlink()
