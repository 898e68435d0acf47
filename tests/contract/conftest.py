"""The runtimes that the contract suite runs on, each with what it can do, and a node with one sandbox of it."""

import asyncio
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import uvloop

from glovebox_server.contract import node as node_contract
from glovebox_server.contract import runtime as contract
from glovebox_server.model import ids, resources, sandbox, template
from glovebox_server.node import node
from glovebox_server.runtimes import fake
from glovebox_server.runtimes.namespace import runtime as namespace
from tests.support import templates

#: A lane names the runtimes it must have: there is no skip for one that is missing.
RUNTIMES = ("fake", "namespace")


@dataclasses.dataclass(frozen=True)
class Case:
    """One runtime, and in what its sandboxes differ from another's."""

    make: Callable[[pathlib.Path], contract.Runtime]
    template: template.Template
    default_user: str
    users: frozenset[str]  # whom a process can be started as
    workdir: str  # a directory inside that the default user may write to
    isolates: bool  # whether a sandbox sees processes, ports and files of its own only


def _unisolated(runtime: str) -> template.Template:
    return template.Template(
        template_id="base",
        names=("base",),
        layers=(template.Layer(pathlib.Path("/"), "/"),),
        python=templates.python(),
        path="/usr/local/bin:/usr/bin:/bin",
        runtime=runtime,
    )


@pytest.fixture(params=RUNTIMES)
def runtime_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A folder with a short name: a Unix socket's path is at most 107 bytes long (unix(7))."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="gb"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def case(runtime_name: str, folder: pathlib.Path) -> Case:
    if runtime_name == "namespace":
        return Case(
            make=namespace.NamespaceRuntime,
            template=templates.base(),
            default_user="user",
            users=frozenset(("root", "user")),
            workdir="/tmp",
            isolates=True,
        )
    workdir = folder / "work"
    workdir.mkdir()
    return Case(
        make=lambda data: fake.FakeRuntime(data, acknowledge="isolates nothing"),
        template=_unisolated("fake"),
        default_user="root",
        users=frozenset(("root",)),
        workdir=str(workdir),
        isolates=False,
    )


class World:
    """A server's node, with what it holds; it can crash, and another can take its place."""

    def __init__(self, case: Case, data: pathlib.Path) -> None:
        self.case = case
        self._data = data
        self.ended: dict[ids.SandboxId, str] = {}
        self._changed = asyncio.Event()
        self.runtime = case.make(data)
        self.node = self._new_node()

    @property
    def runtime_name(self) -> str:
        return self.runtime.name

    def _new_node(self) -> node.LocalNode:
        return node.LocalNode(
            "here",
            {self.runtime.name: self.runtime},
            {"base": self.case.template},
            default_user=self.case.default_user,
        )

    async def start(self) -> None:
        await self.node.start(self._on_ended)

    async def crash(self) -> None:
        """Lose every object without closing one, as SIGKILL would; then be a new server on the same data."""
        for held in self.node._held.values():
            # A dead process's sockets and watchers are gone; nothing else of it is told.
            held.guest.close()
            assert held.watcher is not None
            held.watcher.cancel()
            await asyncio.wait([held.watcher])
            if isinstance(held.instance, fake.FakeInstance):
                held.instance.let_go()
        self.node._held.clear()
        if isinstance(self.runtime, namespace.NamespaceRuntime):
            await self.runtime.close(destroy=False)  # closes descriptors, as a death does
        self.runtime = self.case.make(self._data)
        self.node = self._new_node()
        await self.start()

    async def _on_ended(self, sandbox_id: ids.SandboxId, reason: str) -> None:
        self.ended[sandbox_id] = reason
        self._changed.set()

    async def until_ended(self, sandbox_id: ids.SandboxId) -> str:
        async with asyncio.timeout(20):
            while sandbox_id not in self.ended:
                self._changed.clear()
                await self._changed.wait()
        return self.ended[sandbox_id]

    def spec(self, **env: str) -> sandbox.SandboxSpec:
        return sandbox.SandboxSpec(ids.new_sandbox_id(), "base", resources.Resources(), env, "sandbox")

    async def create(self, **env: str) -> node_contract.Made:
        return await self.node.create(self.spec(**env), self.runtime.name)


@pytest.fixture
async def world(case: Case, folder: pathlib.Path) -> AsyncIterator[World]:
    world = World(case, folder / "data")
    await world.start()
    yield world
    await world.node.sweep([])
    await world.node.close(destroy=True)


@pytest.fixture
async def made(world: World) -> node_contract.Made:
    return await world.create(GREETING="hello")


LoopFactories = dict[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> LoopFactories:
    """The node runs on uvloop, as the server does."""
    if item.path.name == "test_runtime.py":
        return {"uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
