"""uvicorn, set up for the gateway: bounds on heads of requests, no logs of its own, connections cut without a word."""

import asyncio
import logging
from typing import Any

import structlog
import uvicorn
from starlette import types
from uvicorn.protocols.http import httptools_impl

from glovebox_server.gateway import answers, problems
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


class BoundedProtocol(httptools_impl.HttpToolsProtocol):
    """httptools' protocol, which would keep a head of any size and wait for it as long as one likes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._refused = False
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
        if self._in_head:
            if self._head_bytes == 0 and self._deadline is None:
                self._expect_head()
            self._head_bytes += len(data)
        super().data_received(data)
        # What came with the head of a body is not counted against it: the head was over then.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._stop_waiting()
            self._refused = True
            self.transport.write(_TOO_LARGE)
            # Closed with unread bytes the connection would be reset, and the answer lost with it.
            self._deadline = self.loop.call_later(_LINGER_S, self._close)

    def send_400_response(self, msg: str) -> None:
        self.transport.write(_BAD_REQUEST)
        self.transport.close()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._stop_waiting()
        super().on_headers_complete()

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
        app,
        loop="none",
        http=BoundedProtocol,
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
