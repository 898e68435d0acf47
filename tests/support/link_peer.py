"""A guest that says whatever a test wants, at the other end of a socket pair."""

import asyncio
import contextlib
import socket

from glovebox_guest import wire
from glovebox_server.node import guest_link

HELLO = {"version": 1, "boot_id": "0123456789abcdef", "pid": 1}


class Peer:
    """The guest's end: frames as the test writes them, and frames as they come."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._decoder = wire.Decoder()
        self._frames: list[wire.Frame] = []
        self._loop = asyncio.get_running_loop()

    async def send(self, *frames: bytes) -> None:
        """Write; a host that has closed the link meanwhile is what many tests want."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            await self._loop.sock_sendall(self.sock, b"".join(frames))

    async def say(self, channel: int, kind: int, message: dict) -> None:
        await self.send(*wire.encode_message(channel, kind, message))

    async def hello(self) -> None:
        await self.say(0, wire.HELLO, HELLO)

    async def ok(self, channel: int, **ok: object) -> None:
        await self.say(channel, wire.END, {"ok": ok})

    async def frame(self) -> wire.Frame | None:
        """The next frame; None at the end of the stream."""
        while not self._frames:
            try:
                data = await asyncio.wait_for(self._loop.sock_recv(self.sock, 65536), 10)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._frames += self._decoder.feed(data)
        return self._frames.pop(0)

    async def expect(self, kind: int) -> wire.Frame:
        """The next frame of this kind; what comes before it is dropped."""
        while True:
            frame = await self.frame()
            assert frame is not None, f"the link ended before a frame of kind {kind}"
            if frame.kind == kind:
                return frame

    async def at_end(self) -> None:
        """Wait until the host has closed the link."""
        while await self.frame() is not None:
            pass


class Rig:
    """A link, its peer, and why it was broken."""

    def __init__(self, link: guest_link.GuestLink, peer: Peer, broken: list[str]) -> None:
        self.link = link
        self.peer = peer
        self.broken = broken
