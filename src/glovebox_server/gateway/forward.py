"""A sandbox's own ports: HTTP/1.1 passed through, both ways at once, over a channel of the guest link; and WebSockets.

What comes from inside is parsed (h11) and written anew: a service cannot smuggle a second answer into the connection.
A request for a WebSocket is a request like any other until the service has accepted it; then websocket.py has both ends.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator

import h11
from starlette import types

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers, presence, upgrade, websocket

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
    protocol = upgrade.asked(scope["headers"])
    if protocol is not None and upgrade.offered(scope) is None:
        raise errors.UnsupportedError(
            f"upgrading a connection to {protocol} is not served: only to a WebSocket, by GET in HTTP/1.1 without a body"
        )
    try:
        connection = await _dial(found, port)
    except errors.GuestError as error:
        await _unreachable(error, sandbox_id, port)(scope, receive, send)
        return
    try:
        await _Exchange(connection, port, scope, receive, send).run(token)
    except _BadServiceError as error:
        await _failure(502, f"The service on port {port} {error}", sandbox_id, port)(scope, receive, send)
    finally:
        with contextlib.suppress(errors.GloveboxError):
            await connection.close()


def _unreachable(error: errors.GuestError, sandbox_id: str, port: int) -> answers.Json:
    if error.code == "resource_exhausted":
        return _failure(429, "The sandbox has too many connections open", sandbox_id, port)
    return _failure(502, "The sandbox is running but port is not open", sandbox_id, port)


def _failure(status: int, message: str, sandbox_id: str, port: int) -> answers.Json:
    """An error in the shape of the protocol's proxy."""
    return answers.Json({"sandboxId": sandbox_id, "message": message, "port": port, "code": status}, status)


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
    """The service's answer cannot be passed on, and nothing of it has been; the message says what the service did."""


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, connection: guest.Connection, port: int, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        self._connection = connection
        self._port = port
        self._scope, self._receive, self._send = scope, receive, send
        self._switch = upgrade.offered(scope)
        self._inner = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEADER_BYTES)
        self._started = False

    async def run(self, token: str) -> None:
        await self._write(self._request(token))
        if self._switch is not None:
            await self._write(h11.EndOfMessage())
        try:
            # Of a request for a WebSocket nothing is left to read but that the client leaves.
            async with presence.watched(self._receive, self._send_body if self._switch is None else None):
                accepted = await self._answer()
            if accepted is not None and self._switch is not None:
                await self._relay(accepted, self._switch)
        except (h11.RemoteProtocolError, errors.GuestError) as error:
            if self._started:
                raise answers.CutError from error
            raise _BadServiceError("did not answer in HTTP/1.1") from error

    async def _relay(self, accepted: h11.InformationalResponse, switch: upgrade.Switch) -> None:
        answered = list(accepted.headers.raw_items())
        try:
            headers = websocket.answer_headers(self._scope["headers"], answered, end_to_end(answered))
        except websocket.HandshakeError as error:
            raise _BadServiceError(f"did not accept the WebSocket rightly: {error}") from error
        self._started = True
        await self._send({"type": "http.response.start", "status": 101, "headers": headers})
        early, _ = self._inner.trailing_data
        await websocket.relay(self._connection, early, switch.stream)

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
        headers.append((b"x-forwarded-proto", self._scope.get("scheme", "http").encode()))
        if self._switch is None:
            headers.append((b"connection", b"close"))
        else:
            headers = websocket.request_headers(headers)
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

    async def _answer(self) -> h11.InformationalResponse | None:
        """Pass the service's answer on; but return it when it is a 101, after which nothing more is HTTP."""
        accepted = None
        async for event in self._events():
            if isinstance(event, h11.Response):
                await self._start(event)
            elif isinstance(event, h11.Data):
                await self._send({"type": "http.response.body", "body": bytes(event.data), "more_body": True})
            elif isinstance(event, h11.InformationalResponse):
                accepted = event
        if accepted is None:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        return accepted

    async def _start(self, response: h11.Response) -> None:
        headers = end_to_end(list(response.headers.raw_items()))
        self._started = True
        await self._send({"type": "http.response.start", "status": response.status_code, "headers": headers})

    async def _events(self) -> AsyncIterator[h11.Event]:
        """What the service sends, up to the end of its answer or to its 101."""
        while True:
            event = self._inner.next_event()
            if event is h11.NEED_DATA:
                self._inner.receive_data(await self._connection.receive())
            elif isinstance(event, h11.EndOfMessage):
                return
            elif isinstance(event, h11.InformationalResponse):
                # h11 lets a 101 through only where an upgrade was asked for.
                if event.status_code == 101:
                    yield event
                    return
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise h11.RemoteProtocolError("the service closed the connection before its answer's end")
            else:
                assert not isinstance(event, type)
                yield event


def end_to_end(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that are not for one hop only: those of RFC 9110, and those that Connection names."""
    named = {
        item.strip().lower() for name, value in headers if name.lower() == b"connection" for item in value.split(b",")
    }
    return [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | named]
