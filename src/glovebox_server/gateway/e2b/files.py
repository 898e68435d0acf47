"""envd's /files: downloads and uploads of any size, streamed, with gzip both ways, ranges and metadata."""

import asyncio
import dataclasses
import mimetypes
import re
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from starlette import datastructures, types

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers, presence
from glovebox_server.gateway.e2b import filesystem, multipart, running

_PEEK_BYTES = 64 * 1024
_THREAD_BYTES = 16 * 1024
_MAX_KEY_BYTES, _MAX_METADATA_BYTES = 246, 4096
_METADATA = "x-metadata-"
_CONDITIONAL = ("range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since")
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")
_PSEUDO = ("/proc/", "/sys/")  # where a file's size says nothing of its content
_TYPES = mimetypes.MimeTypes(filenames=())


@dataclasses.dataclass(frozen=True)
class Target:
    """Which file, as which user."""

    path: str
    user: str | None

    @classmethod
    def of(cls, query: Mapping[str, str]) -> "Target":
        return cls(filesystem.path(query.get("path", "")), query.get("username") or None)


async def download(
    found: guest.Guest, target: Target, scope: types.Scope, receive: types.Receive, send: types.Send
) -> None:
    """GET /files."""
    headers = datastructures.Headers(scope=scope)
    if not target.path:
        raise errors.InvalidRequestError("the query parameter path is missing")
    plain = any(name in headers for name in _CONDITIONAL)
    zipped = not plain and _accepts(headers.get("accept-encoding"))
    part = await _range(found, target, headers)
    if part is not None and part.start >= part.size:
        out = {"Content-Range": f"bytes */{part.size}"}
        await answers.Json({"code": 416, "message": "the range is outside the file"}, 416, out)(scope, receive, send)
        return
    offset, length = (part.start, part.length) if part else (0, None)
    content = found.read_file(target.path, user=target.user, offset=offset, length=length)
    async with presence.watched(receive), running.closing(content):
        answer = _Download(send, scope["method"] == "HEAD")
        try:
            await answer.run(content, part, zipped)
        except errors.GuestError as error:
            if answer.started:
                raise answers.CutError from error
            raise


@dataclasses.dataclass(frozen=True)
class _Part:
    """A range that was asked for, of a file of this size."""

    start: int
    length: int
    size: int


class _Download:
    """One answer to a download."""

    def __init__(self, send: types.Send, head_only: bool) -> None:
        self._send, self._head_only = send, head_only
        self.started = False

    async def run(self, content: AsyncIterator[guest.Entry | bytes], part: _Part | None, zipped: bool) -> None:
        entry = await anext(content)
        assert isinstance(entry, guest.Entry)
        first, over = await _peek(content)
        length: int | None = len(first) if over else None
        if not over and not entry.path.startswith(_PSEUDO):
            expected = part.length if part else entry.size
            # More has come than stat promised: the file grows, or is no plain one.
            length = expected if expected >= len(first) else None
        zipped = zipped and bool(first)
        await self._start(entry, part, None if zipped else length, zipped)
        if self._head_only:
            await self._body(b"", more=False)
        elif zipped:
            await self._zipped(first, over, content)
        else:
            await self._plain(first, over, content, length)

    async def _start(self, entry: guest.Entry, part: _Part | None, length: int | None, zipped: bool) -> None:
        headers = {
            "content-type": content_type(entry.name),
            "content-disposition": disposition(entry.name),
            "vary": "Accept-Encoding",
            # What a sandbox holds is not to run as a page of this host.
            "x-content-type-options": "nosniff",
            "content-security-policy": "sandbox",
        }
        if length is not None:
            headers["content-length"] = str(length)
            headers["accept-ranges"] = "bytes"
        if zipped:
            headers["content-encoding"] = "gzip"
        if part is not None:
            headers["content-range"] = f"bytes {part.start}-{part.start + part.length - 1}/{part.size}"
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        self.started = True
        await self._send({"type": "http.response.start", "status": 206 if part else 200, "headers": raw})

    async def _plain(
        self, first: bytes, over: bool, content: AsyncIterator[guest.Entry | bytes], length: int | None
    ) -> None:
        left = length
        await self._body(first, more=not over)
        if over:
            return
        left = None if left is None else left - len(first)
        async for chunk in content:
            assert isinstance(chunk, bytes)
            # A file that grows meanwhile is cut at the length that was told.
            data = chunk if left is None else chunk[:left]
            left = None if left is None else left - len(data)
            if data:
                await self._body(data)
        if left:
            raise answers.CutError  # the file became shorter while it was read
        await self._body(b"", more=False)

    async def _zipped(self, first: bytes, over: bool, content: AsyncIterator[guest.Entry | bytes]) -> None:
        packer = zlib.compressobj(1, wbits=31)
        await self._body(await _run(packer.compress, first))
        if not over:
            async for chunk in content:
                assert isinstance(chunk, bytes)
                await self._body(await _run(packer.compress, chunk))
        await self._body(packer.flush(), more=False)

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        if data or not more:
            await self._send({"type": "http.response.body", "body": data, "more_body": more})


async def _peek(content: AsyncIterator[guest.Entry | bytes]) -> tuple[bytes, bool]:
    """The beginning of a file, and whether that is all: a small file's length is told by its content, not by stat."""
    first = bytearray()
    async for chunk in content:
        assert isinstance(chunk, bytes)
        first += chunk
        if len(first) >= _PEEK_BYTES:
            return bytes(first), False
    return bytes(first), True


async def _run(call: Any, data: bytes) -> bytes:
    """(De)compress: in a thread where it takes long enough to hold up the others."""
    result: bytes = await asyncio.to_thread(call, data) if len(data) >= _THREAD_BYTES else call(data)
    return result


async def _range(found: guest.Guest, target: Target, headers: Mapping[str, str]) -> _Part | None:
    """The one range that is asked for; None for the whole file (also when the header cannot be honoured)."""
    match = _RANGE.fullmatch(headers.get("range", "").replace(" ", ""))
    if match is None or "if-range" in headers or match.groups() == ("", ""):
        return None
    entry = await found.stat(target.path, user=target.user)
    if entry.type != "file" or entry.size == 0:
        return None
    first, last = match.groups()
    start = int(first) if first else max(0, entry.size - int(last))
    end = min(int(last), entry.size - 1) if first and last else entry.size - 1
    return None if end < start < entry.size else _Part(start, end - start + 1, entry.size)


async def upload(
    found: guest.Guest, target: Target, scope: types.Scope, receive: types.Receive
) -> list[dict[str, object]]:
    """POST /files: write what comes, and say what was written, in that order."""
    headers = datastructures.Headers(scope=scope)
    metadata = metadata_of(headers)
    body = _decoded(answers.stream(receive), headers.get("content-encoding", "identity").lower())
    given = headers.get("content-type", "")
    kind = given.partition(";")[0].strip().lower()
    if kind == "application/octet-stream":
        if not target.path:
            raise errors.InvalidRequestError("the query parameter path is missing")
        entry = await found.write_file(target.path, body, user=target.user, metadata=metadata)
        return [_written(entry, metadata)]
    if kind != "multipart/form-data":
        raise errors.InvalidRequestError("Content-Type must be multipart/form-data or application/octet-stream")
    return await _upload_parts(found, target, multipart.Parts(given, body), metadata)


async def _upload_parts(
    found: guest.Guest, target: Target, parts: multipart.Parts, metadata: Mapping[str, str]
) -> list[dict[str, object]]:
    written: list[dict[str, object]] = []
    seen: set[str] = set()
    async for part in parts:
        if part.name != "file":
            continue
        path = filesystem.path(target.path or part.filename or "")
        if not path:
            raise errors.InvalidRequestError("a file has neither a path in the query nor a file name")
        if path in seen:
            raise errors.InvalidRequestError(f"path '{path}' is uploaded twice in one request")
        entry = await found.write_file(path, parts.content(), user=target.user, metadata=metadata)
        if entry.path in seen - {path}:
            raise errors.InvalidRequestError(f"path '{answers.text(entry.path)}' is uploaded twice in one request")
        seen |= {path, entry.path}
        written.append(_written(entry, metadata))
    return written


def _written(entry: guest.Entry, metadata: Mapping[str, str]) -> dict[str, object]:
    info: dict[str, object] = {"name": entry.name, "path": entry.path, "type": "file"}
    if metadata:
        info["metadata"] = dict(metadata)
    return info


async def _decoded(body: AsyncIterator[bytes], encoding: str) -> AsyncIterator[bytes]:
    """The body's content; a compressed one is unpacked in small pieces, whatever it grows to."""
    if encoding in ("identity", ""):
        async for chunk in body:
            yield chunk
        return
    if encoding != "gzip":
        raise errors.InvalidRequestError(f"Content-Encoding '{encoding[:32]}' is not gzip or identity")
    unpacker = zlib.decompressobj(wbits=31)
    async for chunk in body:
        while chunk:
            try:
                data = unpacker.decompress(chunk, _PEEK_BYTES)
            except zlib.error as error:
                raise errors.InvalidRequestError("the body is not gzip") from error
            if data:
                yield data
            chunk = unpacker.unconsumed_tail
            if unpacker.eof and unpacker.unused_data:
                chunk, unpacker = unpacker.unused_data, zlib.decompressobj(wbits=31)
    if not unpacker.eof:
        raise errors.InvalidRequestError("the gzip body is incomplete")


def metadata_of(headers: datastructures.Headers) -> dict[str, str]:
    """The `X-Metadata-<key>` headers, keys in lower case, checked."""
    metadata = {key[len(_METADATA) :]: value for key, value in headers.items() if key.startswith(_METADATA)}
    for key, value in metadata.items():
        if not 0 < len(key) <= _MAX_KEY_BYTES:
            raise errors.InvalidRequestError(f"metadata: a key must have 1 to {_MAX_KEY_BYTES} bytes")
        if not all(" " <= char <= "~" for char in key + value):
            raise errors.InvalidRequestError(f"metadata: '{answers.text(key)}' holds more than printable ASCII")
    if sum(len(key) + len(value) for key, value in metadata.items()) > _MAX_METADATA_BYTES:
        raise errors.InvalidRequestError(f"metadata: keys and values have more than {_MAX_METADATA_BYTES} bytes")
    return metadata


def content_type(name: str) -> str:
    """A file's media type, by its name."""
    guessed, encoding = _TYPES.guess_type("x/" + name.lstrip("/"))
    if guessed is None or encoding is not None:
        return "application/octet-stream"
    return f"{guessed}; charset=utf-8" if guessed.startswith("text/") else guessed


def disposition(name: str) -> str:
    """Content-Disposition for a name that a guest chose: nothing in it may break the header."""
    if re.fullmatch(r"[A-Za-z0-9._ +@,=-]{1,255}", name):
        return f'inline; filename="{name}"'
    return f"inline; filename*=utf-8''{urllib.parse.quote(name, safe='', errors='replace')}"


def _accepts(accept_encoding: str | None) -> bool:
    """Whether gzip is wanted. InvalidRequestError when neither it nor an unpacked answer would do."""
    weights: dict[str, bool] = {}
    for item in (accept_encoding or "").lower().split(","):
        coding, _, parameter = item.partition(";")
        weights[coding.strip()] = parameter.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    gzip = weights.get("gzip", weights.get("*", False))
    if not gzip and not weights.get("identity", weights.get("*", True)):
        raise NotAcceptableError("neither gzip nor identity is acceptable to the caller")
    return gzip


class NotAcceptableError(errors.InvalidRequestError):
    """Accept-Encoding leaves no way to answer (406)."""
