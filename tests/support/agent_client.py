"""A small host for the tests: a real agent in a subprocess, and its link spoken by hand."""

import asyncio
import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import pytest

from glovebox_guest import wire

SOURCE = pathlib.Path(__file__).parents[2] / "src"
PATIENCE_S = 20.0


class Refused(Exception):
    def __init__(self, error: dict[str, str]) -> None:
        super().__init__(f"{error['code']}: {error['message']}")
        self.code, self.message = error["code"], error["message"]


class Channel:
    """One channel; what arrives is kept in order, and given credit for when taken (unless `generous` is false)."""

    def __init__(self, guest: "Guest", number: int) -> None:
        self._guest, self.number = guest, number
        self.frames: asyncio.Queue[Any] = asyncio.Queue()
        self._assembler = wire.Assembler()
        self.window = wire.Credit()
        self.credit = wire.Credit()
        self._credited = asyncio.Event()
        self.generous = True

    def take(self, frame: wire.Frame) -> None:
        if frame.kind == wire.CREDIT:
            self.credit.give(wire.decode_credit(frame))
            self._credited.set()
        elif frame.kind == wire.DATA:
            self.window.spend(len(frame.body))
            self.frames.put_nowait(("data", frame.stream, frame.body))
        elif frame.kind == wire.EOF:
            self.frames.put_nowait(("eof",))
        else:
            if frame.kind == wire.EVENT:
                self.window.spend(len(frame.body))
                self._give(len(frame.body))
            message = self._assembler.add(frame)
            if message is not None:
                self.frames.put_nowait(("event" if frame.kind == wire.EVENT else "end", message))

    def lost(self) -> None:
        self.frames.put_nowait(("lost",))

    def _give(self, amount: int) -> None:
        if self.generous:
            self.window.give(amount)
            self._guest.send(wire.encode_credit(self.number, amount))

    async def next(self) -> Any:
        item = await asyncio.wait_for(self.frames.get(), PATIENCE_S)
        if item[0] == "data":
            self._give(len(item[2]))
        return item

    async def event(self) -> dict[str, Any]:
        kind, *rest = await self.next()
        assert kind == "event", (kind, rest)
        return dict(rest[0])

    async def rest(self) -> tuple[dict[int, bytes], list[dict[str, Any]], dict[str, Any]]:
        """All until END: the data by stream, the events, and the answer."""
        data: dict[int, bytearray] = {}
        events = []
        while True:
            item = await self.next()
            if item[0] == "data":
                data.setdefault(item[1], bytearray()).extend(item[2])
            elif item[0] == "event":
                events.append(item[1])
            elif item[0] == "end":
                if "error" in item[1]:
                    raise Refused(item[1]["error"])
                return {stream: bytes(body) for stream, body in data.items()}, events, item[1]["ok"]
            elif item[0] == "lost":
                raise ConnectionError("the link is lost")

    async def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            while not self.credit.left:
                self._credited.clear()
                await asyncio.wait_for(self._credited.wait(), PATIENCE_S)
            piece = view[: min(self.credit.left, wire.MAX_BODY_BYTES)]
            self.credit.spend(len(piece))
            self._guest.send(wire.encode(self.number, wire.DATA, bytes(piece)))
            await self._guest.drain()
            view = view[len(piece) :]

    def eof(self) -> None:
        self._guest.send(wire.encode(self.number, wire.EOF))

    def cancel(self) -> None:
        self._guest.send(wire.encode(self.number, wire.CANCEL))


class Guest:
    """The link, seen from the host."""

    def __init__(self, process: subprocess.Popen[bytes], link: socket.socket) -> None:
        self.process, self.socket = process, link
        self.channels: dict[int, Channel] = {}
        self.hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue()
        self._number = 0
        self._decoder = wire.Decoder()

    async def attach(self) -> "Guest":
        self._reader, self._writer = await asyncio.open_connection(sock=self.socket)
        for frame in wire.encode_message(0, wire.HELLO, {"version": wire.VERSION}):
            self.send(frame)
        self._task = asyncio.create_task(self._read())
        await asyncio.wait_for(asyncio.shield(self.hello), PATIENCE_S)
        return self

    async def detach(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(256 * 1024):
                for frame in self._decoder.feed(data):
                    self._take(frame)
        for channel in self.channels.values():
            channel.lost()

    def _take(self, frame: wire.Frame) -> None:
        if frame.kind == wire.HELLO:
            self.hello.set_result(wire.decode_message(frame.body))
        elif frame.kind == wire.PONG:
            self.pongs.put_nowait(frame.body)
        else:
            self.channels[frame.channel].take(frame)

    def send(self, frame: bytes) -> None:
        self._writer.write(frame)

    async def drain(self) -> None:
        await asyncio.wait_for(self._writer.drain(), PATIENCE_S)

    async def ping(self) -> None:
        self.send(wire.encode(0, wire.PING, b"ping"))
        assert await asyncio.wait_for(self.pongs.get(), PATIENCE_S) == b"ping"

    def open(self, op: str, **params: Any) -> Channel:
        self._number += 1
        channel = self.channels[self._number] = Channel(self, self._number)
        for frame in wire.encode_message(self._number, wire.OPEN, {"op": op, **params}):
            self.send(frame)
        return channel

    async def call(self, op: str, **params: Any) -> dict[str, Any]:
        return (await self.open(op, **params).rest())[2]

    async def write(self, path: object, content: bytes, **params: Any) -> dict[str, Any]:
        channel = self.open("fs.write", path=str(path), **params)
        await channel.send(content)
        channel.eof()
        return dict((await channel.rest())[2]["entry"])

    async def read(self, path: object, **params: Any) -> bytes:
        return (await self.open("fs.read", path=str(path), **params).rest())[0].get(0, b"")

    async def run(self, *argv: str, **params: Any) -> tuple[dict[int, bytes], dict[str, Any]]:
        channel = self.open("process.start", argv=list(argv), **params)
        assert (await channel.event())["event"] == "start"
        data, _, end = await channel.rest()
        return data, end

    def rss_bytes(self) -> int:
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmRSS"))

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/task"))


@contextlib.asynccontextmanager
async def running(how: str = "stream") -> AsyncIterator[Guest]:
    """An agent of its own, over a socket pair or its stdin and stdout."""
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-m", "glovebox_guest"]
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [*command, *(["--stdio"] if how == "stdio" else ["--stream-fd", str(theirs.fileno())])],
            pass_fds=[theirs.fileno()],
            stdin=theirs if how == "stdio" else None,
            stdout=theirs if how == "stdio" else None,
            stderr=complaints,
            env=environment,
        )
        theirs.close()
        guest = Guest(process, ours)
        try:
            await guest.attach()
            yield guest
        finally:
            await guest.detach()
            try:
                await asyncio.to_thread(process.wait, 10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            complaints.seek(0)
            text = complaints.read().decode()
        assert text == "", text


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    """Bind it in a test module: `guest = agent_client.guest`."""
    async with running() as one:
        yield one
