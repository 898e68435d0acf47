"""One sandbox's guest agent as the layers above see it: the contract's calls, spoken over the guest link.

Every reply is checked by `guest_replies`; one of a wrong form ends the link, and with it the sandbox. When the link is
lost and the instance lives on (its end was reset, another server took it over), the next call opens a new one.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.contract import guest
from glovebox_server.node import guest_channel, guest_link, guest_replies

#: How long a guest may take to answer what does not wait for a program; the link itself answers pings meanwhile.
ANSWER_TIMEOUT_S = 120.0
#: What a listing may take in memory here, whatever the guest goes on to send.
MAX_LISTING_BYTES = 128 * 1024 * 1024
_ENTRY_BYTES = 1024  # an Entry without its texts, roughly
_MIB = 1024 * 1024
#: Whose messages may be longer than guest_link.DEFAULT_MESSAGE_BYTES.
_MESSAGE_BYTES = {
    "code.execute": wire.MAX_MESSAGE_BYTES,
    "fs.list": 8 * _MIB,
    "fs.watch": 8 * _MIB,
    "fs.watcher_events": 8 * _MIB,
    "process.list": 8 * _MIB,
    "sandbox.env": 8 * _MIB,
}
_STREAMS: Mapping[int, Literal["stdout", "stderr", "pty"]] = {
    wire.STDOUT: "stdout",
    wire.STDERR: "stderr",
    wire.PTY: "pty",
}

T = TypeVar("T")


class LinkedGuest:
    """A guest agent behind a link. `open_socket` is the instance's `open_link`; `on_broken` hears once why it must end."""

    def __init__(
        self, open_socket: Callable[[], Awaitable[socket.socket]], on_broken: guest_link.OnBroken, **limits: float
    ) -> None:
        self._open_socket = open_socket
        self._on_broken = on_broken
        self._limits = limits
        self._current: guest_link.GuestLink | None = None
        self._opening = asyncio.Lock()
        self._suspended = False
        self._end: errors.SandboxGoneError | None = None

    async def ready(self) -> None:
        """Open the link if it is not open, and wait for the guest's HELLO. Raises SandboxGoneError."""
        await (await self._link()).ready()

    def close(self) -> None:
        """Let go for good: every call, now and later, raises SandboxGoneError."""
        if self._end is None:
            self._end = errors.SandboxGoneError("the sandbox has ended")
        if self._current is not None:
            self._current.close()

    def suspend(self) -> None:
        """Let go of the link until `unsuspend`: meanwhile every call raises SandboxGoneError, those that are open too."""
        self._suspended = True
        if self._current is not None:
            self._current.close()

    def unsuspend(self) -> None:
        """Calls open a new link again."""
        self._suspended = False

    # --- the sandbox ---

    async def configure(
        self, env: Mapping[str, str], *, default_user: str | None = None, default_workdir: str | None = None
    ) -> None:
        parameters = _given(env=dict(env), default_user=default_user, default_workdir=default_workdir)
        await self._ask("sandbox.configure", parameters, guest_replies.empty)

    async def env(self) -> Mapping[str, str]:
        return await self._ask("sandbox.env", {}, guest_replies.env)

    async def metrics(self) -> Mapping[str, float]:
        return await self._ask("sandbox.metrics", {}, guest_replies.metrics)

    # --- processes ---

    def start_process(
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
        size = {"cols": pty[0], "rows": pty[1]} if pty else None
        parameters = _given(argv=list(argv), env=dict(env), cwd=cwd, user=user, stdin=stdin, pty=size, tag=tag)
        return self._process_events("process.start", parameters)

    def connect_process(self, process: guest.Selector) -> AsyncIterator[guest.ProcessEvent]:
        return self._process_events("process.connect", _selected(process))

    async def list_processes(self) -> Sequence[guest.ProcessInfo]:
        return await self._ask("process.list", {}, guest_replies.processes)

    async def signal_process(self, process: guest.Selector, signal: int) -> None:
        await self._ask("process.signal", {**_selected(process), "signal": signal}, guest_replies.empty)

    async def send_input(self, process: guest.Selector, data: AsyncIterator[bytes]) -> None:
        await self._upload("process.input", _selected(process), data, guest_replies.empty)

    async def close_stdin(self, process: guest.Selector) -> None:
        await self._ask("process.close_stdin", _selected(process), guest_replies.empty)

    async def resize(self, process: guest.Selector, cols: int, rows: int) -> None:
        await self._ask("process.resize", {**_selected(process), "cols": cols, "rows": rows}, guest_replies.empty)

    # --- files ---

    async def stat(self, path: str, *, user: str | None) -> guest.Entry:
        return await self._ask("fs.stat", _given(path=path, user=user), guest_replies.one_entry)

    async def list_dir(self, path: str, *, depth: int, user: str | None) -> Sequence[guest.Entry]:
        channel = await self._open("fs.list", _given(path=path, depth=depth, user=user))
        entries: list[guest.Entry] = []
        size = 0
        try:
            while not isinstance(item := await channel.receive(), guest_channel.Answer):
                some = channel.check(guest_replies.entries_event, _event(channel, item))
                size += sum(_ENTRY_BYTES + len(entry.name) + len(entry.path) for entry in some)
                if size > MAX_LISTING_BYTES:
                    raise errors.GuestError("resource_exhausted", "too many entries: list them with less depth")
                entries += some
            return entries
        finally:
            channel.cancel()

    async def make_dir(self, path: str, *, user: str | None) -> guest.Entry:
        return await self._ask("fs.make_dir", _given(path=path, user=user), guest_replies.one_entry)

    async def move(self, source: str, destination: str, *, user: str | None) -> guest.Entry:
        parameters = _given(source=source, destination=destination, user=user)
        return await self._ask("fs.move", parameters, guest_replies.one_entry)

    async def remove(self, path: str, *, user: str | None) -> None:
        await self._ask("fs.remove", _given(path=path, user=user), guest_replies.empty)

    async def read_file(
        self, path: str, *, user: str | None, offset: int = 0, length: int | None = None
    ) -> AsyncGenerator[guest.Entry | bytes, None]:
        channel = await self._open("fs.read", _given(path=path, user=user, offset=offset or None, length=length))
        left = length
        try:
            yield channel.check(guest_replies.entry_event, _event(channel, await channel.receive()))
            while not isinstance(item := await channel.receive(), guest_channel.Answer):
                if isinstance(item, guest_channel.Eof):
                    continue
                data = _data(channel, item)
                left = None if left is None else left - len(data)
                if left is not None and left < 0:
                    raise channel.violation("more of a file was sent than was asked for")
                yield data
        finally:
            channel.cancel()

    async def write_file(
        self, path: str, content: AsyncIterator[bytes], *, user: str | None, metadata: Mapping[str, str]
    ) -> guest.Entry:
        parameters = _given(path=path, user=user, metadata=dict(metadata))
        return await self._upload("fs.write", parameters, content, guest_replies.one_entry)

    async def watch(
        self, path: str, *, recursive: bool, include_entry: bool, user: str | None
    ) -> AsyncGenerator[guest.Change | None, None]:
        parameters = _given(path=path, recursive=recursive, include_entry=include_entry, user=user)
        channel = await self._open("fs.watch", parameters)
        started = False
        try:
            while not isinstance(item := await channel.receive(), guest_channel.Answer):
                change = channel.check(guest_replies.watch_event, _event(channel, item))
                if (change is None) is started:
                    raise channel.violation("a watch's start came twice, or too late")
                started = True
                yield change
        finally:
            channel.cancel()

    async def create_watcher(self, path: str, *, recursive: bool, include_entry: bool, user: str | None) -> str:
        parameters = _given(path=path, recursive=recursive, include_entry=include_entry, user=user)
        return await self._ask("fs.watcher_create", parameters, guest_replies.watcher_id)

    async def watcher_events(self, watcher_id: str) -> Sequence[guest.Change]:
        return await self._ask("fs.watcher_events", {"watcher_id": watcher_id}, guest_replies.changes)

    async def remove_watcher(self, watcher_id: str) -> None:
        await self._ask("fs.watcher_remove", {"watcher_id": watcher_id}, guest_replies.empty)

    # --- code ---

    async def execute(
        self,
        code: str,
        *,
        context_id: str | None,
        language: str | None,
        env: Mapping[str, str],
        user: str | None = None,
    ) -> AsyncGenerator[guest.CodeEvent, None]:
        parameters = _given(code=code, context_id=context_id, language=language, env=dict(env), user=user)
        channel = await self._open("code.execute", parameters)
        try:
            while not isinstance(item := await channel.receive(), guest_channel.Answer):
                if isinstance(item, guest_channel.Data):
                    yield _output(channel, item, (wire.STDOUT, wire.STDERR))
                else:
                    yield channel.check(guest_replies.code_event, _event(channel, item))
            yield channel.check(guest_replies.execution_ended, item.ok)
        finally:
            channel.cancel()

    async def create_context(self, *, language: str | None, cwd: str | None) -> guest.Context:
        return await self._ask("code.create_context", _given(language=language, cwd=cwd), guest_replies.context)

    async def list_contexts(self) -> Sequence[guest.Context]:
        return await self._ask("code.list_contexts", {}, guest_replies.contexts)

    async def remove_context(self, context_id: str) -> None:
        await self._ask("code.remove_context", {"context_id": context_id}, guest_replies.empty)

    async def restart_context(self, context_id: str) -> None:
        await self._ask("code.restart_context", {"context_id": context_id}, guest_replies.empty)

    async def interrupt_context(self, context_id: str) -> None:
        await self._ask("code.interrupt", {"context_id": context_id}, guest_replies.empty)

    # --- ports ---

    async def dial(self, port: int) -> guest.Connection:
        channel = await self._open("net.dial", {"port": port})
        try:
            async with _answer_in_time():
                channel.check(guest_replies.connected, _event(channel, await channel.receive()))
        except BaseException:
            channel.cancel()
            raise
        return _PortConnection(channel)

    # --- inside ---

    async def _link(self) -> guest_link.GuestLink:
        link = self._current
        if link is not None and not link.closed:
            return link
        async with self._opening:
            self._check_alive()
            if self._current is None or self._current.closed:
                self._current = await guest_link.GuestLink.attach(
                    await self._open_socket(), self._violated, **self._limits
                )
                if self._end is not None or self._suspended:  # closed while it was being opened
                    self._current.close()
            return self._current

    def _violated(self, reason: str) -> None:
        if self._end is None:
            self._end = errors.GuestProtocolError(reason)
            self._on_broken(reason)

    def _check_alive(self) -> None:
        if self._end is not None:
            raise type(self._end)(str(self._end))
        if self._suspended:
            raise errors.SandboxGoneError("the sandbox is paused")

    async def _open(self, op: str, parameters: Mapping[str, Any]) -> guest_channel.Channel:
        limit = _MESSAGE_BYTES.get(op, guest_link.DEFAULT_MESSAGE_BYTES)
        return await (await self._link()).open(op, parameters, max_message_bytes=limit)

    async def _ask(self, op: str, parameters: Mapping[str, Any], parse: Callable[[Mapping[str, Any]], T]) -> T:
        """An operation that is nothing but a question and an answer."""
        channel = await self._open(op, parameters)
        try:
            async with _answer_in_time():
                return channel.check(parse, await channel.answer())
        finally:
            channel.cancel()

    async def _upload(
        self,
        op: str,
        parameters: Mapping[str, Any],
        content: AsyncIterator[bytes],
        parse: Callable[[Mapping[str, Any]], T],
    ) -> T:
        channel = await self._open(op, parameters)
        try:
            async for chunk in content:
                if not await channel.send(chunk):
                    await channel.answer()  # a refusal, which raises: nothing can be done yet
                    raise channel.violation("an upload was answered before it was all sent")
            channel.send_eof()
            return channel.check(parse, await channel.answer())
        finally:
            channel.cancel()

    async def _process_events(self, op: str, parameters: Mapping[str, Any]) -> AsyncGenerator[guest.ProcessEvent, None]:
        channel = await self._open(op, parameters)
        try:
            yield channel.check(guest_replies.process_event, _event(channel, await channel.receive()))
            while not isinstance(item := await channel.receive(), guest_channel.Answer):
                if not isinstance(item, guest_channel.Eof):
                    yield _output(channel, item, tuple(_STREAMS))
            yield channel.check(guest_replies.exited, item.ok)
        finally:
            channel.cancel()


class _PortConnection:
    """A TCP connection to a port inside (contract.guest.Connection)."""

    def __init__(self, channel: guest_channel.Channel) -> None:
        self._channel = channel
        self._at_end = False

    async def receive(self) -> bytes:
        if self._at_end:
            return b""
        item = await self._channel.receive()
        if isinstance(item, guest_channel.Eof | guest_channel.Answer):
            self._at_end = True
            return b""
        return _data(self._channel, item)

    async def send(self, data: bytes) -> None:
        if not await self._channel.send(data):
            raise errors.GuestError("unavailable", "the connection is closed")

    async def send_eof(self) -> None:
        self._channel.send_eof()

    async def close(self) -> None:
        self._channel.cancel()


def _given(**parameters: Any) -> dict[str, Any]:
    """The parameters that are not None: absent means the guest's default."""
    return {name: value for name, value in parameters.items() if value is not None}


def _selected(process: guest.Selector) -> dict[str, Any]:
    return {"tag": process} if isinstance(process, str) else {"pid": process}


def _event(channel: guest_channel.Channel, item: guest_channel.Item) -> Mapping[str, Any]:
    if not isinstance(item, guest_channel.Event):
        raise channel.violation("something else came than an event")
    return item.message


def _data(channel: guest_channel.Channel, item: guest_channel.Item) -> bytes:
    if not isinstance(item, guest_channel.Data) or item.stream != wire.ONLY:
        raise channel.violation("something else came than data")
    return item.data


def _output(channel: guest_channel.Channel, item: guest_channel.Item, streams: Sequence[int]) -> guest.Output:
    if not isinstance(item, guest_channel.Data) or item.stream not in streams:
        raise channel.violation("something else came than a program's output")
    return guest.Output(_STREAMS[item.stream], item.data)


@contextlib.asynccontextmanager
async def _answer_in_time() -> AsyncIterator[None]:
    """The time limit of an answer, as a GuestError."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            yield
    except TimeoutError as error:
        raise errors.GuestError("deadline_exceeded", "the guest agent did not answer in time") from error
