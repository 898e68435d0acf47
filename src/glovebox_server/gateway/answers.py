"""Answers and request bodies: JSON out, bounded bytes in, on bare ASGI.

JSON goes out in ASCII: guest text may hold lone surrogates, which UTF-8 cannot.
"""

import json
import math
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette import requests, responses, types

from glovebox import errors
from glovebox_server.gateway import problems


class CutError(Exception):
    """What an answer is made of broke off after it had begun: the answer must break off too, not end."""


class Json(responses.Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return dump(content)


def dump(content: Any) -> bytes:
    """`content` as JSON. What JSON has no word for (NaN, infinities, which Python reads from a guest) becomes null."""
    try:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")
    except ValueError:
        return json.dumps(_finite(content), separators=(",", ":")).encode("ascii")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content


def problem(error: errors.GloveboxError, headers: Mapping[str, str] | None = None) -> Json:
    """The answer that an error is, on the control plane."""
    found = problems.of(error)
    return Json(problems.body(found.status, str(error), found.slug), found.status, headers)


def failure(status: int, message: str) -> Json:
    """An error answer by its status alone."""
    return Json(problems.body(status, message), status)


async def stream(receive: types.Receive) -> AsyncIterator[bytes]:
    """The request's body as it comes. Raises ClientDisconnect when the client leaves before its end."""
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise requests.ClientDisconnect
        if chunk := message.get("body", b""):
            yield chunk
        more = message.get("more_body", False)


async def read(receive: types.Receive, limit_bytes: int) -> bytes:
    """The request's whole body; InvalidRequestError when it is over the limit."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")
        if len(body) <= limit_bytes:
            return body
        raise _too_long(limit_bytes)
    return await _read_on(message, receive, limit_bytes)


async def _read_on(message: types.Message, receive: types.Receive, limit_bytes: int) -> bytes:
    parts = bytearray()
    while True:
        if message["type"] == "http.disconnect":
            raise requests.ClientDisconnect
        parts += message.get("body", b"")
        if len(parts) > limit_bytes:
            raise _too_long(limit_bytes)
        if not message.get("more_body", False):
            return bytes(parts)
        message = await receive()


def _too_long(limit_bytes: int) -> errors.InvalidRequestError:
    return errors.InvalidRequestError(f"the request's body is longer than {limit_bytes} bytes")


def text(guest_text: str) -> str:
    """Guest text as it may stand in a message or a header: what is not Unicode is replaced."""
    return guest_text if guest_text.isascii() else guest_text.encode("utf-8", "replace").decode()
