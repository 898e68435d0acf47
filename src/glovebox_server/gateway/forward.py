"""A sandbox's own ports: HTTP/1.1 passed through, both ways at once, over a channel of the guest link.

What comes from inside is parsed (h11) and written anew: a service cannot smuggle a second answer into the connection.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import h11
from starlette import types

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers, presence
from glovebox_server.model import text

_RETRY_AFTER_S = (0.05, 0.1, 0.2, 0.4)  # a service may just be starting
_MAX_HEADER_BYTES = 64 * 1024
_HOP_BY_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
#: Ours alone: routing, and tokens that what runs inside need not see.
_OURS = frozenset((b"e2b-sandbox-id", b"e2b-sandbox-port", b"e2b-traffic-access-token", b"expect"))


async def forward(
    found: guest.Guest,
    sandbox_id: str,
    port: int,
    token: str,
    scope: types.Scope,
    receive: types.Receive,
    send: types.Send,
) -> None:
    """Answer one request with what the service on a port inside answers."""
    if (protocol := upgrade(scope["headers"])) is not None:
        raise errors.UnsupportedError(f"upgrading a connection to {protocol} is not served by this server yet")
    try:
        connection = await _dial(found, port)
    except errors.GuestError:
        body = {"sandboxId": sandbox_id, "message": "The sandbox is running but port is not open", "port": port}
        await answers.Json(body | {"code": 502}, 502)(scope, receive, send)
        return
    try:
        await _Exchange(connection, port, scope, receive, send).run(token)
    except _BadServiceError:
        message = f"The service on port {port} did not answer in HTTP/1.1"
        body = {"sandboxId": sandbox_id, "message": message, "port": port, "code": 502}
        await answers.Json(body, 502)(scope, receive, send)
    finally:
        with contextlib.suppress(errors.GloveboxError):
            await connection.close()


async def _dial(found: guest.Guest, port: int) -> guest.Connection:
    for wait_s in _RETRY_AFTER_S:
        try:
            return await found.dial(port)
        except errors.GuestError as error:
            if error.code != "unavailable":
                raise
        await asyncio.sleep(wait_s)
    return await found.dial(port)


class _BadServiceError(Exception):
    """The service's answer is no HTTP, and nothing of it has been passed on yet."""


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, connection: guest.Connection, port: int, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        self._connection = connection
        self._port = port
        self._scope, self._receive, self._send = scope, receive, send
        self._inner = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
        self._started = False

    async def run(self, token: str) -> None:
        await self._write(self._request(token))
        try:
            async with presence.watched(self._receive, self._send_body):
                await self._answer()
        except (h11.RemoteProtocolError, errors.GuestError) as error:
            if self._started:
                raise answers.CutError from error
            raise _BadServiceError from error

    def _request(self, token: str) -> h11.Request:
        headers = [
            (name, value)
            for name, value in self._scope["headers"]
            if name not in _OURS and not (name == b"x-access-token" and value == token.encode())
        ]
        headers = end_to_end(headers)
        client = self._scope.get("client")
        if client:
            headers.append((b"x-forwarded-for", client[0].encode()))
        headers += [(b"x-forwarded-proto", self._scope.get("scheme", "http").encode()), (b"connection", b"close")]
        if any(name == b"transfer-encoding" for name, _ in self._scope["headers"]):
            headers = [(name, value) for name, value in headers if name != b"content-length"]
            headers.append((b"transfer-encoding", b"chunked"))
        if not any(name == b"host" for name, _ in headers):
            headers.append((b"host", f"localhost:{self._port}".encode()))
        path: bytes = self._scope.get("raw_path") or self._scope["path"].encode()
        query: bytes = self._scope.get("query_string", b"")
        target = path + (b"?" + query if query else b"")
        # A path may hold raw bytes that a client should have escaped; h11 refuses them.
        target = re.sub(rb"[^\x21-\x7e]", lambda match: b"%%%02X" % match[0][0], target)
        try:
            return h11.Request(method=self._scope["method"].encode(), target=target, headers=headers)
        except h11.LocalProtocolError as error:
            raise errors.InvalidRequestError("the request's headers cannot be forwarded") from error

    async def _send_body(self) -> None:
        # A service may answer, and stop reading, before it has taken the whole body: its answer tells.
        with contextlib.suppress(errors.GuestError, h11.LocalProtocolError):
            async for chunk in answers.stream(self._receive):
                await self._write(h11.Data(data=chunk))
            await self._write(h11.EndOfMessage())

    async def _write(self, event: h11.Event) -> None:
        if data := self._inner.send(event):
            await self._connection.send(data)

    async def _answer(self) -> None:
        async for event in self._events():
            if isinstance(event, h11.Response):
                await self._start(event)
            elif isinstance(event, h11.Data):
                await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _start(self, response: h11.Response) -> None:
        headers = end_to_end(list(response.headers.raw_items()))
        self._started = True
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})

    async def _events(self) -> AsyncIterator[h11.Event]:
        """What the service sends, up to the end of its answer."""
        while True:
            event = self._inner.next_event()
            if event is h11.NEED_DATA:
                self._inner.receive_data(await self._connection.receive())
            elif isinstance(event, h11.EndOfMessage):
                return
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the service closed the connection before its answer's end")
            elif not isinstance(event, h11.InformationalResponse):
                assert not isinstance(event, type)
                yield event


def upgrade(headers: list[tuple[bytes, bytes]]) -> str | None:
    """The protocol that a request would change to. Not HTTP/2, which clients offer and do well without."""
    asked = b",".join(value for name, value in headers if name == b"connection").lower()
    if b"upgrade" not in (item.strip() for item in asked.split(b",")):
        return None
    offered = b",".join(value for name, value in headers if name == b"upgrade").decode("latin-1").split(",")
    wanted = [text.clean(name.strip(), 32) for name in offered if name.strip().lower() not in ("", "h2c", "h2")]
    return wanted[0] if wanted else None


def end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are not for one hop only: those of RFC 9110, and those that Connection names."""
    named = {
        item.strip().lower() for name, value in headers if name.lower() == b"connection" for item in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | named]
