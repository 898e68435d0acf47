"""A connection that stops being HTTP: who may ask for that, and its bytes, both ways, from then on.

    server.py puts a Switch into the scope of a request that asks well ─▶ the application answers it with status 101
    ─▶ the connection is a Stream, with no HTTP on it any more, and ends with the request

Such a request is the last one on its connection, whatever the answer: nothing that comes after it is read as HTTP.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable

from starlette import requests, types

from glovebox_server.model import text

#: Where a request's scope has its Switch, among the extensions.
EXTENSION = "glovebox.switch"

_UNREAD_BYTES = 64 * 1024  # more waits in the kernel, and the client with it
_LINGER_S = 2.0

Headers = Iterable[tuple[bytes, bytes]]


def asked(headers: Headers) -> str | None:
    """The protocol that a request would change to. Not HTTP/2, which clients offer and do well without."""
    fields = list(headers)
    connection = b",".join(value for name, value in fields if name == b"connection").lower()
    if b"upgrade" not in (item.strip() for item in connection.split(b",")):
        return None
    offered = b",".join(value for name, value in fields if name == b"upgrade").decode("latin-1").split(",")
    wanted = [text.clean(name.strip(), 32) for name in offered if name.strip().lower() not in ("", "h2c", "h2")]
    return wanted[0] if wanted else None


def asks_for_websocket(method: str, http_version: str, headers: Headers) -> bool:
    """Whether a request may become a WebSocket: RFC 6455, section 4.1, and no body that could hide something."""
    fields = list(headers)
    bare = all(name != b"transfer-encoding" and (name != b"content-length" or value == b"0") for name, value in fields)
    return method == "GET" and http_version == "1.1" and bare and (asked(fields) or "").lower() == "websocket"


class Stream(asyncio.Protocol):
    """What a connection is after its switch. Little waits in it either way: before that, its peer waits."""

    def __init__(self, transport: asyncio.Transport, connections: set[object], *, writable: bool) -> None:
        #: Set when the server stops: whoever serves the stream should end it then.
        self.stopping = asyncio.Event()
        #: Set when the client has left, or was sent away; what it sent before can still be read.
        self.lost = asyncio.Event()
        self._transport = transport
        self._connections = connections
        self._unread = bytearray()
        self._paused = False
        self._readable, self._writable = asyncio.Event(), asyncio.Event()
        if writable:
            self._writable.set()
        connections.add(self)

    # The event loop's side, and uvicorn's

    def data_received(self, data: bytes) -> None:
        self._unread += data
        self._readable.set()
        if len(self._unread) >= _UNREAD_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()
        self._connections.discard(self)
        self._readable.set()
        self._writable.set()  # nobody calls resume_writing for what is lost

    def shutdown(self) -> None:
        """Called by uvicorn, as for a connection of its own, when the server stops."""
        self.stopping.set()

    # The application's side

    async def read(self) -> bytes:
        """The next bytes; b"" when the client has left."""
        while not self._unread and not self.lost.is_set():
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._unread)
        self._unread.clear()
        if self._paused and not self.lost.is_set():
            self._paused = False
            self._transport.resume_reading()
        return data

    async def write(self, data: bytes) -> None:
        """Send, and wait while the client does not read. Raises ClientDisconnect."""
        if not self._transport.is_closing():
            self._transport.write(data)
            await self._writable.wait()
        if self._transport.is_closing():
            raise requests.ClientDisconnect

    async def close(self, last: bytes = b"") -> None:
        """Send what is to be last, and let the client hear it: closed with bytes unread, TCP would take it back."""
        with contextlib.suppress(TimeoutError, requests.ClientDisconnect):
            async with asyncio.timeout(_LINGER_S):
                await self.write(last)
                self._transport.write_eof()
                while await self.read():
                    pass
        self.abort()

    def abort(self) -> None:
        """End it at once. Safe at any time, and twice."""
        self._transport.abort()


class Switch:
    """The offer of a request's connection. `take` is called once, with the headers of the 101."""

    def __init__(self, take: Callable[[Headers], Stream]) -> None:
        self._take = take
        self._stream: Stream | None = None

    def take(self, headers: Headers) -> None:
        """End HTTP on the connection, with this answer. Raises ClientDisconnect."""
        self._stream = self._take(headers)

    @property
    def stream(self) -> Stream:
        """The connection, once it is taken."""
        assert self._stream is not None
        return self._stream

    def end(self) -> None:
        """Nobody serves it any more."""
        if self._stream is not None:
            self._stream.abort()


def offered(scope: types.Scope) -> Switch | None:
    """The switch that comes with a request, if one does."""
    found: Switch | None = scope.get("extensions", {}).get(EXTENSION, {}).get("switch")
    return found


class Switching:
    """The application, with the answer 101 made into a switch, for which ASGI has no message."""

    def __init__(self, app: types.ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if (switch := offered(scope)) is None:
            await self._app(scope, receive, send)
            return

        async def switching(message: types.Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 101:
                switch.take(message["headers"])
            else:
                await send(message)

        try:
            await self._app(scope, receive, switching)
        finally:
            switch.end()
