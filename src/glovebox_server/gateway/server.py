"""uvicorn, set up for the gateway: bounds on heads of requests, connections that may leave HTTP, no logs of its own."""

import asyncio
import logging
import socket
from typing import Any

import httptools
import structlog
import uvicorn
from starlette import requests, types
from uvicorn.protocols.http import httptools_impl

from glovebox_server.gateway import answers, problems, upgrade
from glovebox_server.model import text

_log = structlog.get_logger(__name__)

MAX_HEAD_BYTES = 64 * 1024
HEAD_WITHIN_S = 15.0
_GRACE_S = 5
_LINGER_S = 1.0
_MAX_SAID_LETTERS = 500


def _closing_answer(status: int, phrase: str, message: str) -> bytes:
    """An error in the shape of all others, for what never becomes a request."""
    body = answers.dump(problems.body(status, message))
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_TOO_LARGE = _closing_answer(431, "Request Header Fields Too Large", f"the head is longer than {MAX_HEAD_BYTES} bytes")
_BAD_REQUEST = _closing_answer(400, "Bad Request", "the request is not HTTP/1.1")
_EARLY = _closing_answer(400, "Bad Request", "something follows a request for a WebSocket that is not answered yet")


class BoundedProtocol(httptools_impl.HttpToolsProtocol):
    """httptools' protocol, which would keep a head of any size and wait for it as long as one likes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
        self._switch: upgrade.Switch | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._switch is not None:
            self._refuse_early()
            return
        if self._in_head:
            if self._head_bytes == 0 and self._deadline is None:
                self._expect_head()
            self._head_bytes += len(data)
        self._parse(data)
        # What came with the head of a body is not counted against it: the head was over then.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._stop_waiting()
            self._refused = True
            self.transport.write(_TOO_LARGE)
            # Closed with unread bytes the connection would be reset, and the answer lost with it.
            self._deadline = self.loop.call_later(_LINGER_S, self._close)

    def _parse(self, data: bytes) -> None:
        """As HttpToolsProtocol.data_received, but with an eye on what comes after a request that may leave HTTP."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        except httptools.HttpParserUpgrade as head:
            if self._switch is not None and head.args[0] < len(data):
                self._refuse_early()

    def _refuse_early(self) -> None:
        """Close: a client must wait for its 101 (RFC 6455, 4.1), and its next bytes are neither HTTP nor frames yet."""
        self._refused = True
        if not self.pipeline and not self.cycle.response_started:
            self.transport.write(_EARLY)
        # The request may have been handed on already: it hears that its client has left.
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_BAD_REQUEST)
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()
        # Both must see it so: the parser, which stops after this head, and we.
        if self.parser.should_upgrade() and upgrade.asks_for_websocket(
            self.scope["method"], self.scope["http_version"], self.headers
        ):
            self._switch = upgrade.Switch(self._leave_http)
            self.scope["extensions"] = {upgrade.EXTENSION: {"switch": self._switch}}
            self.cycle.keep_alive = False

    def _leave_http(self, headers: upgrade.Headers) -> upgrade.Stream:
        """Answer the last request with 101, and be replaced by what serves the connection from then on."""
        if self.cycle.disconnected or self.transport.is_closing():
            raise requests.ClientDisconnect
        self.cycle.response_started = self.cycle.response_complete = True
        self.connections.discard(self)
        stream = upgrade.Stream(self.transport, self.connections, writable=not self.flow.write_paused)  # type: ignore[arg-type]
        self.transport.set_protocol(stream)
        _notice_loss(self.transport)
        lines = [b"HTTP/1.1 101 Switching Protocols", *(name + b": " + value for name, value in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", b""]))
        return stream

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    def _expect_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_WITHIN_S, self._close)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _notice_loss(transport: asyncio.Transport) -> None:
    """Have the kernel find out when the peer is gone without a word (tcp(7)): it could stay silent for hours otherwise."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)


class _Lines(logging.Handler):
    """What the HTTP server and the event loop say, as lines like ours: one per event, whatever is in it."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # An answer left without an end is how a dead sandbox's connections are cut.
        if record.levelno < logging.WARNING or "without completing response" in message:
            return
        said = text.clean(message, _MAX_SAID_LETTERS)
        level = min(record.levelno, logging.ERROR)
        _log.log(level, "server library spoke", logger=record.name, said=said, exc_info=record.exc_info)


def config(app: types.ASGIApp) -> uvicorn.Config:
    """How the gateway is served, in the running event loop, on sockets that the caller gives to `Server.serve`."""
    for name in ("uvicorn.error", "asyncio"):
        log = logging.getLogger(name)
        if not any(isinstance(one, _Lines) for one in log.handlers):
            log.addHandler(_Lines())
    return uvicorn.Config(
        upgrade.Switching(app),
        loop="none",
        http=BoundedProtocol,
        # uvicorn's own would answer pings in the service's place, hold each message whole, and write pongs without end
        # to a client that reads none.
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        # The SDKs drop an idle connection after 300 s: none of their requests meets one that is just being closed.
        timeout_keep_alive=330,
        timeout_graceful_shutdown=_GRACE_S,
    )
