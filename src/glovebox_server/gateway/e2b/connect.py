"""The Connect protocol's server side, as envd speaks it: unary calls, server streams, client streams; JSON and protobuf.

The `connectrpc` library's ASGI server was tried first and left. It always ends a stream cleanly (a sandbox that dies
must cut it), does not enforce `connect-timeout-ms`, sees a client's disconnect only when the next message is sent,
answers a malformed body or header with a 500 and a traceback, and takes the messages of another protobuf library.

A stream is a row of envelopes, `flags u8 | length u32 | message`; the last of an answer has the flag END and JSON:
`{}` or `{"error": {"code", "message"}}`. Its HTTP status is 200 all the same.
"""

import asyncio
import dataclasses
import json
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Generic, TypeVar

from google.protobuf import json_format, message
from starlette import datastructures, responses, types

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers, presence, problems

Request = TypeVar("Request", bound=message.Message)
Answer = TypeVar("Answer", bound=message.Message)

#: The most a message may have: few need more, and what is small cannot hold up the others while it is read.
MAX_MESSAGE_BYTES = 1024 * 1024
_THREAD_BYTES = 32 * 1024
_ENVELOPE = struct.Struct(">BI")
_COMPRESSED, _END = 1, 2
_WRITTEN_AS_TEXT = frozenset(("google.protobuf.Timestamp",))
_DEFAULT_KEEPALIVE_S, _MAX_TIMEOUT_DIGITS = 90, 10

#: HTTP statuses of unary errors.
STATUSES: dict[str, int] = {
    "canceled": 499,
    "unknown": 500,
    "invalid_argument": 400,
    "deadline_exceeded": 504,
    "not_found": 404,
    "already_exists": 409,
    "permission_denied": 403,
    "resource_exhausted": 429,
    "failed_precondition": 400,
    "aborted": 409,
    "out_of_range": 400,
    "unimplemented": 501,
    "internal": 500,
    "unavailable": 503,
    "data_loss": 500,
    "unauthenticated": 401,
}


class RpcError(Exception):
    """An answer with a Connect code of its own, where no error of ours has it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclasses.dataclass(frozen=True)
class Call:
    """What a handler knows of its call, besides the message."""

    guest: guest.Guest
    user: str | None
    timeout_s: float | None
    keepalive_s: float


class Stream(Generic[Answer]):
    """The answers of a server stream, as the handler sends them; broken silence is filled with `keepalive`."""

    def __init__(self, send: types.Send, codec: "Codec", keepalive: Answer, keepalive_s: float) -> None:
        self._send, self._codec, self._keepalive = send, codec, keepalive
        self._started = False
        self.silence = presence.Silence(keepalive_s, self._keep_alive)

    async def send(self, answer: Answer) -> None:
        self.silence.heard()
        await self._frame(0, self._codec.encode(answer))

    async def end(self, error: dict[str, str] | None) -> None:
        """The last frame, which says how it went."""
        await self._frame(_END, json.dumps({"error": error} if error else {}).encode(), more=False)

    async def _keep_alive(self) -> None:
        if self._started:
            await self._frame(0, self._codec.encode(self._keepalive))

    async def _frame(self, flags: int, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            self._started = True
            headers = [(b"content-type", b"application/connect+" + self._codec.name.encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        data = _ENVELOPE.pack(flags, len(body)) + body
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


@dataclasses.dataclass(frozen=True)
class Unary(Generic[Request]):
    """One message in, one out."""

    request: type[Request]
    handle: Callable[[Call, Request], Awaitable[message.Message]]
    limit_bytes: int = MAX_MESSAGE_BYTES


@dataclasses.dataclass(frozen=True)
class ServerStream(Generic[Request, Answer]):
    """One message in, many out. The handler keeps to the deadline itself: it knows what must end with it."""

    request: type[Request]
    handle: Callable[[Call, Request, Stream[Answer]], Awaitable[None]]
    keepalive: Answer
    limit_bytes: int = MAX_MESSAGE_BYTES


@dataclasses.dataclass(frozen=True)
class ClientStream(Generic[Request]):
    """Many messages in, one out."""

    request: type[Request]
    handle: Callable[[Call, AsyncIterator[Request]], Awaitable[message.Message]]
    limit_bytes: int = MAX_MESSAGE_BYTES


Method = Unary[Any] | ServerStream[Any, Any] | ClientStream[Any]


@dataclasses.dataclass(frozen=True)
class Codec:
    """How messages are written."""

    name: str
    encode: Callable[[message.Message], bytes]
    fill: Callable[[bytes, message.Message], object]

    def decode(self, body: bytes, cls: type[Request]) -> Request:
        """A message; InvalidRequestError when it is none."""
        found = cls()
        try:
            self.fill(body, found)
        except (json_format.ParseError, message.DecodeError, ValueError, RecursionError) as error:
            reason = str(error)[:200]
            raise errors.InvalidRequestError(f"the message is not a {cls.DESCRIPTOR.full_name}: {reason}") from error
        return found


async def decoded(codec: Codec, body: bytes, cls: type[Request]) -> Request:
    """A message; a long one is read in a thread, for it takes seconds that others need not wait."""
    if len(body) < _THREAD_BYTES:
        return codec.decode(body, cls)
    return await asyncio.to_thread(codec.decode, body, cls)


async def encoded(codec: Codec, answer: message.Message) -> bytes:
    """A message as bytes; the same goes for writing."""
    if answer.ByteSize() < _THREAD_BYTES:
        return codec.encode(answer)
    return await asyncio.to_thread(codec.encode, answer)


def _fill_json(body: bytes, found: message.Message) -> object:
    content = json.loads(body.decode() or "{}")  # decoded first: of bytes, json would take UTF-16, too
    _check_shape(content, found.DESCRIPTOR)
    return json_format.ParseDict(content, found, ignore_unknown_fields=True)


def _check_shape(content: Any, wanted: Any) -> None:
    """ParseError where a message should be and no object is; `wanted` is a descriptor, of whichever implementation.

    json_format takes what is there for a row of field names, letter by letter: seven seconds for a long text.
    """
    if not isinstance(content, dict):
        raise json_format.ParseError(f"a {wanted.name} must be an object")
    for field in wanted.fields:
        kind = field.message_type
        if kind is None or kind.full_name in _WRITTEN_AS_TEXT or kind.GetOptions().map_entry:
            continue  # json_format checks these itself
        for inside in (content.get(name) for name in {field.json_name, field.name}):
            for one in inside if field.is_repeated and isinstance(inside, list) else (inside,):
                if one is not None:
                    _check_shape(one, kind)


CODECS = {
    "json": Codec("json", lambda found: json_format.MessageToJson(found, indent=None).encode(), _fill_json),
    "proto": Codec("proto", lambda found: found.SerializeToString(), lambda body, found: found.ParseFromString(body)),
}


async def serve(
    method: Method, found: guest.Guest, user: str | None, scope: types.Scope, receive: types.Receive, send: types.Send
) -> None:
    """Answer one call. Raises SandboxGoneError and ClientDisconnect, which only the connection's owner can answer."""
    headers = datastructures.Headers(scope=scope)
    codec = _codec(headers.get("content-type", ""), unary=isinstance(method, Unary))
    if codec is None:
        await responses.Response(status_code=415, headers={"Accept-Post": "application/json, application/proto"})(
            scope, receive, send
        )
        return
    stream: Stream[Any] | None = None
    if not isinstance(method, Unary):
        keepalive = method.keepalive if isinstance(method, ServerStream) else method.request()
        stream = Stream(send, codec, keepalive, _keepalive_s(headers))
    try:
        call = Call(found, user, _timeout_s(headers), _keepalive_s(headers))
        _check_encoding(headers, unary=stream is None)
        answer = await _handle(method, call, codec, receive, stream)
    except (errors.GloveboxError, RpcError, TimeoutError) as error:
        await _refuse(error, stream, scope, receive, send)
    else:
        if answer is not None:
            body = await encoded(codec, answer)
            await responses.Response(body, media_type=f"application/{codec.name}")(scope, receive, send)
        elif stream is not None:
            await stream.end(None)


async def _handle(
    method: Method, call: Call, codec: Codec, receive: types.Receive, stream: Stream[Any] | None
) -> message.Message | None:
    """Run the handler; a stream's answers are sent on the way, a unary one's is returned."""
    if isinstance(method, Unary):
        request = await decoded(codec, await answers.read(receive, method.limit_bytes), method.request)
        async with asyncio.timeout(call.timeout_s):
            unary: message.Message = await method.handle(call, request)
        return unary
    assert stream is not None
    incoming = _messages(receive, codec, method)
    if isinstance(method, ClientStream):
        async with asyncio.timeout(call.timeout_s):
            await stream.send(await method.handle(call, incoming))
    else:
        only = await _only(incoming)
        async with presence.watched(receive), stream.silence:
            await method.handle(call, only, stream)
    return None


async def _only(incoming: AsyncIterator[Request]) -> Request:
    request = await anext(incoming, None)
    if request is None:
        raise errors.InvalidRequestError("the request holds no message")
    async for _ in incoming:
        raise errors.InvalidRequestError("the request holds more than one message")
    return request


async def _refuse(
    error: errors.GloveboxError | RpcError | TimeoutError,
    stream: Stream[Any] | None,
    scope: types.Scope,
    receive: types.Receive,
    send: types.Send,
) -> None:
    if isinstance(error, errors.SandboxGoneError):
        raise error
    if isinstance(error, RpcError):
        code = error.code
    elif isinstance(error, errors.GloveboxError):
        code = problems.of(error).code
    else:
        code = "deadline_exceeded"
    body = {"code": code, "message": answers.text(str(error)) or "the call's time is over"}
    if stream is not None:
        await stream.end(body)
        return
    status = STATUSES[code]
    if isinstance(error, errors.GuestError) and error.code == "no_space":
        status = 507
    await answers.Json(body, status)(scope, receive, send)


async def _messages(
    receive: types.Receive, codec: Codec, method: ServerStream[Request, Any] | ClientStream[Request]
) -> AsyncIterator[Request]:
    """The messages in a request's body of envelopes, as they come."""
    buffer = bytearray()
    async for chunk in answers.stream(receive):
        buffer += chunk
        while len(buffer) >= _ENVELOPE.size:
            flags, length = _ENVELOPE.unpack_from(buffer)
            if flags & _COMPRESSED:
                raise RpcError("unimplemented", "compressed messages are not supported")
            if length > method.limit_bytes:
                raise errors.QuotaExceededError(f"a message is longer than {method.limit_bytes} bytes")
            end = _ENVELOPE.size + length
            if len(buffer) < end:
                break
            body = bytes(buffer[_ENVELOPE.size : end])
            del buffer[:end]
            yield await decoded(codec, body, method.request)
    if buffer:
        raise errors.InvalidRequestError("the last message is incomplete")


def _codec(content_type: str, *, unary: bool) -> Codec | None:
    kind = content_type.partition(";")[0].strip().lower()
    prefix = "application/" if unary else "application/connect+"
    return CODECS.get(kind.removeprefix(prefix)) if kind.startswith(prefix) else None


def _check_encoding(headers: Mapping[str, str], *, unary: bool) -> None:
    # Python's SDK sends connect-content-encoding with unary calls too, where it means nothing.
    name = "content-encoding" if unary else "connect-content-encoding"
    if (encoding := headers.get(name, "identity").lower()) not in ("identity", ""):
        raise RpcError("unimplemented", f"unknown compression '{encoding[:32]}': only identity is supported")


def _timeout_s(headers: Mapping[str, str]) -> float | None:
    given = headers.get("connect-timeout-ms", "")
    if not given:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= _MAX_TIMEOUT_DIGITS):
        raise errors.InvalidRequestError("the header connect-timeout-ms is not a number of at most 10 digits")
    return int(given) / 1000


def _keepalive_s(headers: Mapping[str, str]) -> float:
    given = headers.get("keepalive-ping-interval", "")
    seconds = int(given) if given.isascii() and given.isdigit() and len(given) < 6 else _DEFAULT_KEEPALIVE_S
    return max(1, seconds)
