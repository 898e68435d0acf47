"""WebSocket frames between a client and a service inside: read by the rules of one end, and written anew for the other.

    client ──read──▶ Passage: frames checked, masked anew ──send──▶ service
    client ◀─write── Passage: frames checked, unmasked    ◀─receive── service

Everything passes: fragments, pings and pongs, close codes and reasons. No message is put together here, so that none is too
long: a frame goes on whole up to 64 KiB, a longer one in fragments. What is no valid frame ends its connection. There are no
extensions: the hop to the inside does not offer any, so that nothing compressed has to be trusted.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from starlette import requests
from wsproto import frame_protocol, utilities

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import upgrade

_PIECE_BYTES = 64 * 1024
#: A read may hold ten thousands of frames: after so many, other connections have their turn.
_FRAMES_AT_ONCE = 128
_CLOSE_WITHIN_S = 10.0
_KEY, _ACCEPT = b"sec-websocket-key", b"sec-websocket-accept"
_EXTENSIONS, _SUBPROTOCOL = b"sec-websocket-extensions", b"sec-websocket-protocol"
_THEIR_DOING = (frame_protocol.ParseFailed, errors.GuestError, requests.ClientDisconnect)
_Code = frame_protocol.CloseReason


class HandshakeError(Exception):
    """The service's 101 does not accept the WebSocket that was asked for."""


def request_headers(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """End-to-end headers of the client's request, as the service gets them."""
    kept = [(name, value) for name, value in headers if name != _EXTENSIONS]
    return [*kept, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")]


def answer_headers(
    asked: list[tuple[bytes, bytes]], answered: list[tuple[bytes, bytes]], end_to_end: list[tuple[bytes, bytes]]
) -> list[tuple[bytes, bytes]]:
    """The headers of the 101 for the client. Raises HandshakeError unless the service's one is right (RFC 6455, 4.1)."""
    accepted = utilities.generate_accept_token(b"".join(_values(asked, _KEY)))
    if _values(answered, _ACCEPT) != [accepted]:
        raise HandshakeError("its key was not accepted")
    if [value.lower() for value in _values(answered, b"upgrade")] != [b"websocket"]:
        raise HandshakeError("it changed to another protocol")
    if _values(answered, _EXTENSIONS):
        raise HandshakeError("it uses an extension that was not offered")
    chosen = _values(answered, _SUBPROTOCOL)
    if len(chosen) > 1 or not set(chosen) <= set(_items(asked, _SUBPROTOCOL)):
        raise HandshakeError("it chose a subprotocol that was not offered")
    # RFC 9110, section 8.6: a 101 has no length, and a proxy further on might believe one.
    kept = [(name, value) for name, value in end_to_end if name.lower() != b"content-length"]
    return [*kept, (b"connection", b"Upgrade"), (b"upgrade", b"websocket")]


def _values(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [value for name, value in headers if name.lower() == wanted]


def _items(headers: list[tuple[bytes, bytes]], wanted: bytes) -> list[bytes]:
    return [item.strip() for value in _values(headers, wanted) for item in value.split(b",")]


class Passage:
    """One direction, without I/O: bytes of frames in, bytes of frames out."""

    def __init__(self, source: frame_protocol.FrameProtocol, target: frame_protocol.FrameProtocol) -> None:
        #: A Close has passed: no frame comes after it.
        self.closed = False
        self._source, self._target = source, target
        self._held: list[Any] = []  # of bytes or of str: a message is text or binary to its end
        self._held_size = 0

    def translate(self, data: bytes) -> Iterator[bytes]:
        """What the other end is to get, a few whole frames at a time. Raises ParseFailed, after what was valid before."""
        self._source.receive_bytes(data)
        ready, frames = bytearray(), 0
        try:
            for frame in self._source.received_frames():
                ready += self._passed(frame)
                frames += 1
                if len(ready) >= _PIECE_BYTES or frames >= _FRAMES_AT_ONCE:
                    yield bytes(ready)
                    ready.clear()
                    frames = 0
        except frame_protocol.ParseFailed:
            yield bytes(ready)
            raise
        yield bytes(ready)

    def _passed(self, frame: frame_protocol.Frame) -> bytearray:
        payload = frame.payload
        if isinstance(payload, tuple):
            self.closed = True
            return self._target.close(*payload)
        if frame.opcode.iscontrol():
            assert isinstance(payload, bytes)
            answering = frame.opcode is frame_protocol.Opcode.PONG
            return self._target.pong(payload) if answering else self._target.ping(payload)
        return self._message(payload, frame.frame_finished, frame.message_finished)

    def _message(self, payload: bytes | str, frame_finished: bool, message_finished: bool) -> bytearray:
        self._held.append(payload)
        self._held_size += len(payload)
        # A frame that dribbles in is not held byte by byte, either: each piece costs more than a byte.
        if not frame_finished and self._held_size < _PIECE_BYTES and len(self._held) < _FRAMES_AT_ONCE:
            return bytearray()
        whole = payload[:0].join(self._held)
        self._held.clear()
        self._held_size = 0
        return self._target.send_data(whole, message_finished)


async def relay(service: guest.Connection, early: bytes, client: upgrade.Stream) -> None:
    """Pass frames on until both ends have closed, one has left or broken the protocol, or the server stops.

    `early` came from the service with its 101. A service that leaves without a Close is a cut at the client, too: no end
    looks better than it was. Raises SandboxGoneError.
    """
    running = _Relay(service, early, client)
    try:
        await running.over()
    finally:
        await running.cancel()
    last = running.last_words()
    if last is None:
        client.abort()
        await _let_go(service)
    else:
        await asyncio.gather(client.close(last), _let_go(service))


class _Relay:
    """Both directions as tasks, and what their ends mean."""

    def __init__(self, service: guest.Connection, early: bytes, client: upgrade.Stream) -> None:
        self._at_client = frame_protocol.FrameProtocol(client=False, extensions=[])
        at_service = frame_protocol.FrameProtocol(client=True, extensions=[])
        self._in, self._out = Passage(self._at_client, at_service), Passage(at_service, self._at_client)
        self._inward = asyncio.create_task(_carry(self._in, client.read, service.send, b""))
        self._outward = asyncio.create_task(_carry(self._out, service.receive, client.write, early))
        self._stopping = asyncio.create_task(client.stopping.wait())
        self._tasks: list[asyncio.Task[Any]] = [self._inward, self._outward, self._stopping]
        self._client = client

    async def over(self) -> None:
        """Return when there is nothing more to wait for. After one Close the other has a little time to come."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        both = self._inward.done() and self._outward.done()
        if both or self._stopping.done() or self._client_ended() or self._service_ended():
            return
        if self._inward.done():
            # Nobody reads the client any more, and so nobody would see it leave.
            self._tasks.append(asyncio.create_task(self._client.lost.wait()))
        rest = [task for task in self._tasks if not task.done()]
        await asyncio.wait(rest, timeout=_CLOSE_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)

    def _client_ended(self) -> bool:
        """It left, or broke the protocol. A service that takes no more (GuestError) may still have said something."""
        ended = self._inward.done() and not self._in.closed
        return ended and not isinstance(_error(self._inward), errors.GuestError)

    def _service_ended(self) -> bool:
        """It left, or broke the protocol. Of a client that takes no more the last frames are still to be read."""
        ended = self._outward.done() and not self._out.closed
        return ended and not isinstance(_error(self._outward), requests.ClientDisconnect)

    async def cancel(self) -> None:
        """End the tasks. Safe at any time."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def last_words(self) -> bytes | None:
        """The frame that the client's connection ends with, b"" when it needs none; None: it is cut.

        Raises what was not the doing of one of the two ends.
        """
        theirs, services = _error(self._inward), _error(self._outward)
        for error in (theirs, services):
            if error is not None and not isinstance(error, _THEIR_DOING):
                raise error
        if self._out.closed:
            return b""
        if isinstance(theirs, frame_protocol.ParseFailed):
            return bytes(self._at_client.close(theirs.code, str(theirs)))
        if isinstance(services, frame_protocol.ParseFailed):
            return bytes(self._at_client.close(_Code.INTERNAL_ERROR, "the service sent an invalid frame"))
        if not self._stopping.cancelled():
            return bytes(self._at_client.close(_Code.GOING_AWAY, "the server is stopping"))
        return None


async def _carry(
    passage: Passage, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]], data: bytes
) -> None:
    """Returns after a Close, or at the end of what is read."""
    while True:
        for piece in passage.translate(data):
            if piece:
                await write(piece)
                await asyncio.sleep(0)
        if passage.closed or not (data := await read()):
            return


def _error(task: asyncio.Task[Any]) -> BaseException | None:
    return task.exception() if task.done() and not task.cancelled() else None


async def _let_go(service: guest.Connection) -> None:
    """Let the service hear what was sent last, and close first, as a server should: but not for ever."""
    with contextlib.suppress(TimeoutError, errors.GuestError):
        async with asyncio.timeout(_CLOSE_WITHIN_S):
            await service.send_eof()
            while await service.receive():
                pass
