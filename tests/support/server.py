"""The gateway under uvicorn in the test's own event loop, over a manager whose sandboxes hold memory guests."""

import asyncio
import contextlib
import dataclasses
import pathlib
import socket

import httpx
import uvicorn

from glovebox_server import clock, config, telemetry
from glovebox_server.gateway import app, server
from glovebox_server.manager import keys, sandboxes
from glovebox_server.model import ids
from glovebox_server.store import memory
from tests.support import manager_fakes, memory_guest

_BOUND_S = 20


@contextlib.asynccontextmanager
async def running(application):
    """Serve on a free port of loopback; the URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = uvicorn.Server(server.config(application))
        serving.install_signal_handlers = lambda: None
        task = asyncio.create_task(serving.serve(sockets=[listener]))
        await until(lambda: serving.started or task.done())
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            serving.should_exit = True
            await task


async def until(condition, timeout_s=_BOUND_S):
    """Return when `condition()` holds; TimeoutError when it does not within the time."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 - any condition, not only those with an event
            await asyncio.sleep(0.005)


@dataclasses.dataclass
class World:
    """A gateway with everything behind it, and a client in front."""

    node: memory_guest.MemoryNode
    sandboxes: sandboxes.Sandboxes
    keys: keys.Keys
    audit: manager_fakes.ListAudit
    app: app.Gateway
    key: str
    admin_key: str
    url: str
    client: httpx.AsyncClient

    async def create(self, **body):
        """A sandbox, as the control plane tells it."""
        answer = await self.client.post("/v2/sandboxes", json={"templateID": "base", **body}, headers=self.api)
        assert answer.status_code == 201, answer.text
        return answer.json()

    @property
    def api(self):
        return {"X-API-KEY": self.key}

    def guest(self, sandbox_id):
        return self.node.guest(ids.SandboxId(sandbox_id))


def envd(box, **extra):
    """The headers of a call to a sandbox's envd."""
    return {
        "E2b-Sandbox-Id": box["sandboxID"],
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": box["envdAccessToken"],
        **extra,
    }


def code(box, **extra):
    """The headers of a call to a sandbox's code interpreter."""
    return {**envd(box), "E2b-Sandbox-Port": "49999", **extra}


@contextlib.asynccontextmanager
async def world(folder: pathlib.Path, **settings):
    """All of it, started and stopped."""
    store, wall, node = memory.MemoryStore(), clock.SystemClock(), memory_guest.MemoryNode()
    metrics, audit = telemetry.Telemetry(), manager_fakes.ListAudit()
    chosen = config.Settings(data_dir=folder, **settings)
    manager = sandboxes.Sandboxes(store, node, wall, chosen.limits, audit, metrics, manager_fakes.TEMPLATES)
    await manager.start()
    known = keys.Keys(store, wall)
    _, key = await known.create("test")
    _, admin_key = await known.create("admin", admin=True)
    application = app.build(manager, known, chosen, metrics, audit, manager_fakes.TEMPLATES)
    try:
        async with running(application) as url, httpx.AsyncClient(base_url=url, timeout=_BOUND_S) as client:
            yield World(node, manager, known, audit, application, key, admin_key, url, client)
    finally:
        await manager.close(destroy=True)
