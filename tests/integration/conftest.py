"""A real server on the namespace runtime, shared by the session; the SDKs pointed at it."""

import pathlib
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import leaks, servers


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One server for all tests of the session that do not stop or kill it."""
    running = servers.Server(tmp_path_factory.mktemp("glovebox"))
    running.start()
    yield running
    running.stop()


@pytest.fixture
def own_server(tmp_path: pathlib.Path) -> Iterator[servers.Server]:
    """A server of the test's own, to be killed, filled or restarted. When it is stopped, nothing of it is left."""
    before = leaks.snapshot()
    running = servers.Server(tmp_path)
    running.start()
    yield running
    running.stop()
    servers.wait_until(lambda: not leaks.new_since(before), 30, lambda: leaks.new_since(before))


@pytest.fixture(autouse=True)
def _sdk_environment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the E2B SDKs at the server that this test uses, as `eval "$(glovebox env)"` does."""
    for name in ("own_server", "server"):
        if name in request.fixturenames:
            for variable, value in request.getfixturevalue(name).environment.items():
                monkeypatch.setenv(variable, value)
            return


@pytest.fixture(scope="module")
def sandbox(server: servers.Server) -> Iterator[Sandbox]:
    """One sandbox for the tests of a module that do not end it."""
    options = {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}
    made = Sandbox.create(timeout=600, envs={"GLOBAL": "from create"}, **options)
    yield made
    made.kill()
