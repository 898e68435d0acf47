"""The one place that names concrete classes and wires them: `serve` runs a server, `doctor` says what this host can do."""

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import json
import os
import pathlib
import platform
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any

import structlog
import uvicorn
import uvloop

from glovebox import errors
from glovebox_server import audit, clock, config, telemetry
from glovebox_server.contract import runtime
from glovebox_server.gateway import app
from glovebox_server.gateway import server as gateway_server
from glovebox_server.images import host
from glovebox_server.manager import keys, sandboxes
from glovebox_server.model import template
from glovebox_server.node import node
from glovebox_server.runtimes import fake
from glovebox_server.runtimes.namespace import runtime as namespace
from glovebox_server.store import lock, sqlite

_log = structlog.get_logger(__name__)

_EXIT_REFUSED = 5
#: The rungs of the design that are still to be built.
_LATER = ("container", "gvisor", "microvm", "isolate", "wasm")


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; the exit code."""
    options = _parse(arguments)
    try:
        settings = config.load(_environment(options))
        telemetry.configure_logging(settings.log_level)
        if options.command == "doctor":
            return uvloop.run(_doctor(settings))
        return uvloop.run(_serve(settings, keep_sandboxes=options.keep_sandboxes))
    except errors.GloveboxError as error:
        print(f"glovebox: {error}", file=sys.stderr)
        return _EXIT_REFUSED


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m glovebox_server", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run a server in the foreground")
    doctor = commands.add_parser("doctor", help="print, as JSON, what this host can do")
    for command in (serve, doctor):
        command.add_argument("--data-dir", help="where state is kept")
        command.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    serve.add_argument("--host", help="address to listen on (127.0.0.1)")
    serve.add_argument("--port", help="port to listen on (3000; 0: any free one)")
    serve.add_argument(
        "--keep-sandboxes", action="store_true", help="leave sandboxes running when the server is stopped, for the next"
    )
    doctor.add_argument("--json", action="store_true", help="accepted for symmetry: the output is always JSON")
    return parser.parse_args(arguments)


def _environment(options: argparse.Namespace) -> Mapping[str, str]:
    """The environment, with what was given on the command line put over it."""
    given = {
        config.PREFIX + name.upper(): value
        for name in ("data_dir", "log_level", "host", "port")
        if (value := getattr(options, name, None)) is not None
    }
    return {**os.environ, **given}


async def _serve(settings: config.Settings, *, keep_sandboxes: bool) -> int:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = lock.FolderLock(settings.data_dir)
    folder.acquire()
    try:
        _allow_many_descriptors()
        with _listen(settings.host, settings.port) as listener:
            async with _running(settings, keep_sandboxes=keep_sandboxes) as (application, local_key):
                await _serve_http(application, listener, settings, local_key)
    finally:
        folder.release()
    return 0


@contextlib.asynccontextmanager
async def _running(settings: config.Settings, *, keep_sandboxes: bool) -> AsyncIterator[tuple[Any, str]]:
    """Everything but HTTP, started; the application, and the key for local use."""
    made_of = await _templates(settings)
    by_name = {name: one for one in made_of for name in (one.template_id, *one.names)}
    wall = clock.SystemClock()
    kept = sqlite.SqliteStore(settings.data_dir / "glovebox.db")
    await kept.open()
    trail = audit.AuditLog(settings.data_dir / "audit.jsonl", wall)
    metrics = telemetry.Telemetry()
    local = node.LocalNode("local", _runtimes(settings), by_name)
    manager = sandboxes.Sandboxes(kept, local, wall, settings.limits, trail, metrics, by_name)
    doorkeeper = keys.Keys(kept, wall)
    await manager.start()
    try:
        local_key = await _local_key(doorkeeper, settings.data_dir / "local-key")
        yield app.build(manager, doorkeeper, settings, metrics, trail, by_name), local_key
    finally:
        await manager.close(destroy=not keep_sandboxes)
        await kept.close()
        trail.close()


async def _templates(settings: config.Settings) -> list[template.Template]:
    def report(step: str) -> None:
        _log.info("template building", template="base", step=step)

    base = await asyncio.to_thread(host.build, settings.data_dir, report=report)
    return [dataclasses.replace(base, resources=settings.resources)]


def _runtimes(settings: config.Settings) -> dict[str, runtime.Runtime]:
    makers: dict[str, Callable[[pathlib.Path], runtime.Runtime]] = {
        "namespace": namespace.NamespaceRuntime,
        # Only ever for those who name it in the settings, and it says of every sandbox what it is not.
        "fake": lambda data_dir: fake.FakeRuntime(data_dir, acknowledge="isolates nothing"),
    }
    for name in settings.runtimes:
        if name not in makers:
            raise errors.InvalidRequestError(
                f"setting runtimes: there is no runtime '{name}'; known are {sorted(makers)}"
            )
    return {name: makers[name](settings.data_dir) for name in settings.runtimes}


async def _local_key(doorkeeper: keys.Keys, path: pathlib.Path) -> str:
    """An administrator's key for whoever may read the data folder; the same one after a restart."""
    if path.exists():
        with contextlib.suppress(errors.AuthenticationError):
            secret = path.read_text().strip()
            await doorkeeper.authenticate(secret)
            return secret
    _, secret = await doorkeeper.create("local", admin=True)
    _write_secret(path, secret)
    return secret


class _Server(uvicorn.Server):
    """Says when it listens, and stops on SIGTERM and SIGINT without raising them again: there is work to do after it."""

    def __init__(self, options: uvicorn.Config) -> None:
        super().__init__(options)
        self.ready = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()


async def _serve_http(application: Any, listener: socket.socket, settings: config.Settings, local_key: str) -> None:
    server = _Server(gateway_server.config(application))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    facts = settings.data_dir / "server.json"
    try:
        await server.ready.wait()
        address, port = listener.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        about = {"url": url, "pid": os.getpid(), "key": local_key, "version": metadata.version("glovebox")}
        _write_secret(facts, json.dumps(about))
        # What is there now stays: the collector need not look at it again, which is where long pauses come from.
        gc.collect()
        gc.freeze()
        _log.info("server started", url=url, data_dir=str(settings.data_dir))
        if sys.stdout.isatty():
            print(f'\nGlovebox listens at {url}\nIn another terminal:  eval "$(glovebox env)"\n', flush=True)
        await serving
    finally:
        facts.unlink(missing_ok=True)


def _listen(host_name: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host_name else socket.AF_INET
    try:
        return socket.create_server((host_name, port), family=family, backlog=2048)
    except OSError as error:
        raise errors.ConflictError(f"cannot listen on {host_name}, port {port}: {error.strerror}") from error


def _allow_many_descriptors() -> None:
    """A sandbox takes a handful of descriptors: use all that we may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _write_secret(path: pathlib.Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    new.replace(path)


def _not_yet(name: str) -> runtime.Probe:
    return runtime.Probe(name, available=False, boundary="", missing=("this version of Glovebox does not have it yet",))


async def _doctor(settings: config.Settings) -> int:
    probes = [await one.probe() for one in _runtimes(settings).values()]
    facts = {
        "runtimes": [
            {
                "runtime": probe.runtime,
                "available": probe.available,
                "boundary": probe.boundary,
                "capabilities": sorted(probe.capabilities),
                "missing": list(probe.missing),
                "fix": list(probe.fix),
                "notes": list(probe.notes),
            }
            for probe in [*probes, *(_not_yet(name) for name in _LATER)]
        ],
        "host": {
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "root": os.geteuid() == 0,
            "cpus": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
    }
    print(json.dumps(facts, indent=2))
    return 0 if probes[0].available else 1
