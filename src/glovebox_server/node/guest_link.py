"""The host's end of a guest link: one byte stream to one sandbox, many channels, and a peer that is taken as hostile.

Bytes come in by `buffer_updated`, are cut into frames by `wire.Decoder`, and go to their channels at once; no task runs
per frame or per link. Whatever breaks the protocol ends the link (`violated`): every channel raises
GuestProtocolError, and `on_broken` has the sandbox destroyed. A link that is merely lost raises SandboxGoneError.

What bounds a guest, beside the channels' credit windows:

    memory    Budget: all that is held unread and not covered by a window
    numbers   channel numbers only grow, so no list of old ones is kept: a frame for a number that is not open is either
              for one never opened or for one that has ended, and both are violations
    cancels   a cancelled channel is kept until its END; too many that wait for it are a violation
    time      HELLO must come within a limit; while channels are open, a PING must be answered within another: silence
              and frames that drip in are seen by that. An idle link is left alone, so a frozen sandbox may keep it
    the loop  a read that took long to handle (thousands of tiny frames) is followed by a rest of the same length, so
              that dust gets at most half of the server's time
"""

import asyncio
import itertools
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.node import guest_channel, guest_replies

#: What one link may hold unread beside its windows: two of the longest messages.
MEMORY_BYTES = 2 * wire.MAX_MESSAGE_BYTES
MAX_FORGOTTEN = 2048
HELLO_TIMEOUT_S = 20.0
PING_INTERVAL_S = 10.0
PONG_TIMEOUT_S = 60.0
DEFAULT_MESSAGE_BYTES = 1024 * 1024
_MAX_HELLO_BYTES = 4096
_MAX_PINGS = 100  # of the guest, between two of our own ticks
_READ_BYTES = 128 * 1024
_WRITE_HIGH_BYTES = 512 * 1024
_LONG_READ_S = 0.001

OnBroken = Callable[[str], None]


class GuestLink(asyncio.BufferedProtocol):
    """One link. Made by `attach`; channels can be opened at once, before the guest has said HELLO."""

    def __init__(self, on_broken: OnBroken, hello_timeout_s: float, pong_timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_broken = on_broken
        self._pong_timeout_s = pong_timeout_s
        self._buffer = bytearray(_READ_BYTES)
        self._view = memoryview(self._buffer)
        self._decoder = wire.Decoder()
        self._hello = wire.Assembler(_MAX_HELLO_BYTES)
        self._boot_id: asyncio.Future[str] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._error: errors.SandboxGoneError | None = None
        self._numbers = itertools.count(1)
        self._channels: dict[int, guest_channel.Channel] = {}
        self._forgotten = 0
        self._budget = guest_channel.Budget(MEMORY_BYTES)
        self._drained: asyncio.Future[None] | None = None
        self._ping: tuple[bytes, float] | None = None
        self._guest_pings = 0
        self._hello_timer = self._loop.call_later(hello_timeout_s, self._hello_is_late)
        self._tick_timer = self._loop.call_later(min(PING_INTERVAL_S, pong_timeout_s / 4), self._tick)

    @classmethod
    async def attach(
        cls,
        sock: socket.socket,
        on_broken: OnBroken,
        *,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
        pong_timeout_s: float = PONG_TIMEOUT_S,
    ) -> Self:
        """Take over a connected stream socket and say HELLO. `on_broken` is called at most once, with the reason."""
        link = cls(on_broken, hello_timeout_s, pong_timeout_s)
        loop = asyncio.get_running_loop()
        connect = loop.create_unix_connection if sock.family == socket.AF_UNIX else loop.create_connection
        try:
            await connect(lambda: link, sock=sock)
        except BaseException:
            link._end(errors.SandboxGoneError("the guest link could not be opened"))
            sock.close()
            raise
        return link

    @property
    def closed(self) -> bool:
        """Whether the link is of no use any more."""
        return self._error is not None

    @property
    def held_bytes(self) -> int:
        """What is held unread beside the windows."""
        return self._budget.held_bytes

    async def ready(self) -> str:
        """Wait for the guest's HELLO; its boot id. Raises SandboxGoneError."""
        self._check_open()
        return await asyncio.shield(self._boot_id)

    async def open(
        self, op: str, parameters: Mapping[str, Any], *, max_message_bytes: int = DEFAULT_MESSAGE_BYTES
    ) -> guest_channel.Channel:
        """Begin an operation. Raises SandboxGoneError, InvalidRequestError, and GuestError when too many are open."""
        await self.drain()
        if len(self._channels) >= wire.MAX_CHANNELS:
            raise errors.GuestError("resource_exhausted", "too many operations at once in this sandbox")
        number = next(self._numbers)
        try:
            frames = list(wire.encode_message(number, wire.OPEN, {"op": op, **parameters}))
        except ValueError as error:
            raise errors.InvalidRequestError(f"the parameters of {op} cannot be sent") from error
        channel = guest_channel.Channel(number, self, self._budget, max_message_bytes)
        self._channels[number] = channel
        for frame in frames:
            self.write(frame)
        return channel

    def close(self) -> None:
        """Let go of the link; its channels raise SandboxGoneError. Safe at any time, and twice."""
        self._end(errors.SandboxGoneError("the guest link was closed"))

    # --- what channels need (guest_channel.Outlet) ---

    def write(self, data: bytes) -> None:
        """Send, or keep for sending."""
        if self._transport is not None and self._error is None:
            self._transport.write(data)

    async def drain(self) -> None:
        """Wait until the guest takes what is sent."""
        self._check_open()
        while self._drained is not None:
            await asyncio.shield(self._drained)
            self._check_open()

    def violated(self, reason: str) -> None:
        """The guest broke the protocol."""
        if self._error is None:
            self._end(errors.GuestProtocolError(reason))
            self._on_broken(reason)

    def forgotten(self) -> None:
        """One more channel is cancelled and waits for its END."""
        self._forgotten += 1
        if self._forgotten > MAX_FORGOTTEN:
            self.violated("too many cancelled operations are not ended")

    # --- the event loop's side (asyncio.BufferedProtocol) ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is ours."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its class
        self._transport.set_write_buffer_limits(_WRITE_HIGH_BYTES)
        for frame in wire.encode_message(0, wire.HELLO, {"version": wire.VERSION}):
            self._transport.write(frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone, by either side."""
        self._end(errors.SandboxGoneError("the guest link was lost"))

    def pause_writing(self) -> None:
        """The guest does not take what is sent."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """The guest takes it again."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to put what comes."""
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._error is not None:
            return
        started = time.perf_counter()
        try:
            for frame in self._decoder.feed(self._view[:nbytes]):
                self._dispatch(frame)
        except wire.ProtocolError as error:
            self.violated(str(error))
            return
        spent_s = time.perf_counter() - started
        if spent_s > _LONG_READ_S:
            self._rest(spent_s)

    def eof_received(self) -> bool:
        """The guest closed its side: the link is over (False closes the transport)."""
        return False

    # --- inside ---

    def _dispatch(self, frame: wire.Frame) -> None:
        if frame.channel == 0:
            self._on_link_frame(frame)
            return
        channel = self._channels.get(frame.channel)
        if channel is None or not self._boot_id.done():
            raise wire.ProtocolError("a frame is for an operation that is not open")
        if channel.feed(frame):
            del self._channels[frame.channel]
            self._forgotten -= channel.cancelled

    def _on_link_frame(self, frame: wire.Frame) -> None:
        if frame.kind == wire.HELLO:
            self._on_hello(frame)
        elif not self._boot_id.done():
            raise wire.ProtocolError("the guest did not say HELLO first")
        elif frame.kind == wire.PING:
            self._guest_pings += 1
            if self._guest_pings > _MAX_PINGS:
                raise wire.ProtocolError("too many pings")
            self.write(wire.encode(0, wire.PONG, frame.body))
        elif self._ping is None or frame.body != self._ping[0]:
            raise wire.ProtocolError("a pong answers no ping")
        else:
            self._ping = None

    def _on_hello(self, frame: wire.Frame) -> None:
        if self._boot_id.done():
            raise wire.ProtocolError("the guest said HELLO twice")
        message = self._hello.add(frame)
        if message is not None:
            self._boot_id.set_result(guest_replies.hello(message))
            self._hello_timer.cancel()

    def _hello_is_late(self) -> None:
        self.violated("the guest did not say HELLO in time")

    def _tick(self) -> None:
        """Ask for a sign of life where somebody waits for an answer."""
        now = self._loop.time()
        self._guest_pings = 0
        if self._ping is not None:
            if not self._channels:
                self._ping = (self._ping[0], now)  # nobody waits; it may be frozen
            elif now - self._ping[1] >= self._pong_timeout_s:
                self.violated("the guest does not answer")
                return
        elif self._channels and self._boot_id.done():
            body = int(now * 1e6).to_bytes(8, "big")
            self._ping = (body, now)
            self.write(wire.encode(0, wire.PING, body))
        self._tick_timer = self._loop.call_later(min(PING_INTERVAL_S, self._pong_timeout_s / 4), self._tick)

    def _rest(self, seconds: float) -> None:
        """Read nothing for a while, so that others get their turn."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
            self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._error is None and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def _check_open(self) -> None:
        if self._error is not None:
            raise type(self._error)(str(self._error))

    def _end(self, error: errors.SandboxGoneError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._hello_timer.cancel()
        self._tick_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        if not self._boot_id.done():
            self._boot_id.set_exception(error)
            self._boot_id.exception()  # it may be that nobody asks
        self.resume_writing()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(error)
