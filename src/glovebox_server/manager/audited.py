"""A guest's face with a watcher in it: what is asked of a guest goes to the audit trail, the metrics and the journal.

Everything is noted on the way through, in memory; nothing here waits, and nothing is believed: what a guest says of
exits and errors is recorded as what it said. Programs and code are recorded before the guest hears of them, and their
ends after; changes of files when they are done.
"""

import collections
import dataclasses
import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from glovebox_server.contract import guest
from glovebox_server.manager import journal as journals
from glovebox_server.manager import watcher as watchers

T = TypeVar("T")

_MAX_TRACKED = 4096  # processes whose end nobody has seen yet


@dataclasses.dataclass
class _Process:
    code_hash: str
    started: float
    pid: int | None = None
    ended: bool = False


class AuditedGuest:
    """Implements contract.guest.Guest by asking another one."""

    def __init__(self, inner: guest.Guest, watcher: watchers.Watcher) -> None:
        self._inner = inner
        self._watcher = watcher
        self._processes: collections.OrderedDict[int, _Process] = collections.OrderedDict()

    def _call(self, action: str) -> watchers.Call:
        return watchers.Call(self._watcher, action)

    # The sandbox

    async def configure(
        self, env: Mapping[str, str], *, default_user: str | None = None, default_workdir: str | None = None
    ) -> None:
        with self._call("sandbox.configure"):
            await self._inner.configure(env, default_user=default_user, default_workdir=default_workdir)

    async def env(self) -> Mapping[str, str]:
        with self._call("sandbox.env"):
            return await self._inner.env()

    async def metrics(self) -> Mapping[str, float]:
        # Not a call: whoever watches a sandbox does not use it.
        return await self._inner.metrics()

    # Processes

    async def start_process(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None,
        user: str | None,
        stdin: bool,
        pty: tuple[int, int] | None,
        tag: str | None,
    ) -> AsyncIterator[guest.ProcessEvent]:
        process = _Process(_hash("\0".join(argv)), self._watcher.clock.monotonic())
        with self._call("process.start"):
            # Only the program's name: arguments may hold secrets.
            program = argv[0] if argv else ""
            self._watcher.record("process.start", code_hash=process.code_hash, program=program, user=user)
            events = self._inner.start_process(argv, env=env, cwd=cwd, user=user, stdin=stdin, pty=pty, tag=tag)
            async with _Closing(events):
                async for event in events:
                    self._note(event, process, argv)
                    yield event

    async def connect_process(self, process: guest.Selector) -> AsyncIterator[guest.ProcessEvent]:
        known: _Process | None = None
        with self._call("process.connect"):
            async with _Closing(self._inner.connect_process(process)) as events:
                async for event in events:
                    # Its output is noted once, by whoever started it; its end by whoever sees it first.
                    if isinstance(event, guest.Started):
                        known = self._processes.get(event.pid)
                    elif known is not None and isinstance(event, guest.Exited):
                        self._ended(event, known)
                    yield event

    async def list_processes(self) -> Sequence[guest.ProcessInfo]:
        with self._call("process.list"):
            return await self._inner.list_processes()

    async def signal_process(self, process: guest.Selector, signal: int) -> None:
        with self._call("process.signal"):
            await self._inner.signal_process(process, signal)

    async def send_input(self, process: guest.Selector, data: AsyncIterator[bytes]) -> None:
        with self._call("process.input"):
            await self._inner.send_input(process, data)

    async def close_stdin(self, process: guest.Selector) -> None:
        with self._call("process.close_stdin"):
            await self._inner.close_stdin(process)

    async def resize(self, process: guest.Selector, cols: int, rows: int) -> None:
        with self._call("process.resize"):
            await self._inner.resize(process, cols, rows)

    # Files

    async def stat(self, path: str, *, user: str | None) -> guest.Entry:
        with self._call("fs.stat"):
            return await self._inner.stat(path, user=user)

    async def list_dir(self, path: str, *, depth: int, user: str | None) -> Sequence[guest.Entry]:
        with self._call("fs.list"):
            return await self._inner.list_dir(path, depth=depth, user=user)

    async def make_dir(self, path: str, *, user: str | None) -> guest.Entry:
        with self._call("fs.make_dir"):
            entry = await self._inner.make_dir(path, user=user)
            self._watcher.record("file.make_dir", path=path)
            return entry

    async def move(self, source: str, destination: str, *, user: str | None) -> guest.Entry:
        with self._call("fs.move"):
            entry = await self._inner.move(source, destination, user=user)
            self._watcher.record("file.move", path=source, destination=destination)
            return entry

    async def remove(self, path: str, *, user: str | None) -> None:
        with self._call("fs.remove"):
            await self._inner.remove(path, user=user)
            self._watcher.record("file.remove", path=path)

    async def read_file(
        self, path: str, *, user: str | None, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[guest.Entry | bytes]:
        with self._call("fs.read"):
            async with _Closing(self._inner.read_file(path, user=user, offset=offset, length=length)) as parts:
                async for part in parts:
                    yield part

    async def write_file(
        self, path: str, content: AsyncIterator[bytes], *, user: str | None, metadata: Mapping[str, str]
    ) -> guest.Entry:
        started = self._watcher.clock.monotonic()
        with self._call("fs.write"):
            entry = await self._inner.write_file(path, content, user=user, metadata=metadata)
            self._watcher.record("file.write", started=started, path=path, size=entry.size)
            return entry

    async def watch(
        self, path: str, *, recursive: bool, include_entry: bool, user: str | None
    ) -> AsyncIterator[guest.Change | None]:
        changes = self._inner.watch(path, recursive=recursive, include_entry=include_entry, user=user)
        with self._call("fs.watch"):
            async with _Closing(changes):
                async for change in changes:
                    yield change

    async def create_watcher(self, path: str, *, recursive: bool, include_entry: bool, user: str | None) -> str:
        with self._call("fs.watcher_create"):
            return await self._inner.create_watcher(path, recursive=recursive, include_entry=include_entry, user=user)

    async def watcher_events(self, watcher_id: str) -> Sequence[guest.Change]:
        with self._call("fs.watcher_events"):
            return await self._inner.watcher_events(watcher_id)

    async def remove_watcher(self, watcher_id: str) -> None:
        with self._call("fs.watcher_remove"):
            await self._inner.remove_watcher(watcher_id)

    # Code

    async def execute(
        self,
        code: str,
        *,
        context_id: str | None,
        language: str | None,
        env: Mapping[str, str],
        user: str | None = None,
    ) -> AsyncIterator[guest.CodeEvent]:
        run = watchers.Execution(self._watcher, _hash(code))
        with self._call("code.execute"):
            run.begin(language, context_id)
            events = self._inner.execute(code, context_id=context_id, language=language, env=env, user=user)
            try:
                async with _Closing(events):
                    async for event in events:
                        run.note(event)
                        yield event
            finally:
                run.end()

    async def create_context(self, *, language: str | None, cwd: str | None) -> guest.Context:
        with self._call("code.create_context"):
            return await self._inner.create_context(language=language, cwd=cwd)

    async def list_contexts(self) -> Sequence[guest.Context]:
        with self._call("code.list_contexts"):
            return await self._inner.list_contexts()

    async def remove_context(self, context_id: str) -> None:
        with self._call("code.remove_context"):
            await self._inner.remove_context(context_id)

    async def restart_context(self, context_id: str) -> None:
        with self._call("code.restart_context"):
            await self._inner.restart_context(context_id)

    async def interrupt_context(self, context_id: str) -> None:
        with self._call("code.interrupt"):
            await self._inner.interrupt_context(context_id)

    # Ports

    async def dial(self, port: int) -> guest.Connection:
        with self._call("net.dial"):
            return _Connection(await self._inner.dial(port), self._watcher)

    # What is noted

    def _note(self, event: guest.ProcessEvent, process: _Process, argv: Sequence[str]) -> None:
        if isinstance(event, guest.Output):
            self._watcher.journal.output(f"process {process.pid}", event.stream, event.data)
        elif isinstance(event, guest.Started):
            self._started(event.pid, process, argv)
        else:
            self._ended(event, process)

    def _started(self, pid: int, process: _Process, argv: Sequence[str]) -> None:
        process.pid = pid
        self._processes[pid] = process
        while len(self._processes) > _MAX_TRACKED:
            self._processes.popitem(last=False)
        command = " ".join(_first(argv, journals.MAX_LINE_BYTES))
        self._watcher.journal.add("command started", pid=pid, command=command)

    def _ended(self, event: guest.Exited, process: _Process) -> None:
        if process.ended:
            return  # another subscriber has seen it
        process.ended = True
        if process.pid is not None and self._processes.get(process.pid) is process:
            del self._processes[process.pid]
        watcher, code = self._watcher, event.exit_code
        seconds = watcher.clock.monotonic() - process.started
        watcher.telemetry.executed("process", seconds)
        watcher.journal.add(
            "command ended",
            level="info" if code == 0 else "warn",
            pid=process.pid,
            exit_code=code,
            status=event.status,
            seconds=f"{seconds:.3f}",
        )
        watcher.record(
            "process.end", code_hash=process.code_hash, started=process.started, exit_code=code, pid=process.pid
        )


class _Connection:
    """A connection that counts as activity for as long as it is open."""

    def __init__(self, inner: guest.Connection, watcher: watchers.Watcher) -> None:
        self._inner = inner
        self._watcher: watchers.Watcher | None = watcher
        watcher.open()

    async def receive(self) -> bytes:
        return await self._inner.receive()

    async def send(self, data: bytes) -> None:
        await self._inner.send(data)

    async def send_eof(self) -> None:
        await self._inner.send_eof()

    async def close(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.close("net.dial", None)
        await self._inner.close()


class _Closing(Generic[T]):
    """Closes an iterator with the block: at once, not when it is collected, so that cancelling reaches the guest."""

    __slots__ = ("_source",)

    def __init__(self, source: AsyncIterator[T]) -> None:
        self._source = source

    async def __aenter__(self) -> AsyncIterator[T]:
        return self._source

    async def __aexit__(self, *_: object) -> None:
        close = getattr(self._source, "aclose", None)
        if close is not None:
            await close()


def _hash(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()


def _first(argv: Sequence[str], letters: int) -> Iterator[str]:
    """As many arguments as are worth showing: there may be a megabyte of them."""
    for argument in argv:
        if letters <= 0:
            return
        yield argument[:letters]
        letters -= len(argument) + 1
