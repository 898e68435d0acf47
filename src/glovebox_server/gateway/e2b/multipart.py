"""multipart/form-data pulled part by part from a body as it comes: never more than one chunk is held."""

import collections
import dataclasses
from collections.abc import AsyncIterator

import python_multipart
from python_multipart import exceptions, multipart

from glovebox import errors


@dataclasses.dataclass(frozen=True)
class Part:
    """What a part says of itself before its content."""

    name: str
    filename: str | None


class Parts:
    """The parts of one body: `async for` the parts, and `content()` of each before the next one."""

    def __init__(self, content_type: str, body: AsyncIterator[bytes]) -> None:
        _, options = multipart.parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if not boundary or len(boundary) > 256:
            raise errors.InvalidRequestError("the multipart content type has no usable boundary")
        self._body = body
        self._ended = False
        self._in_part = False
        self._events: collections.deque[tuple[str, bytes]] = collections.deque()
        self._parser = python_multipart.MultipartParser(
            boundary,
            {
                "on_part_begin": lambda: self._add("begin"),
                "on_header_field": lambda data, start, end: self._add("field", data[start:end]),
                "on_header_value": lambda data, start, end: self._add("value", data[start:end]),
                "on_header_end": lambda: self._add("header"),
                "on_headers_finished": lambda: self._add("headers"),
                "on_part_data": lambda data, start, end: self._add("data", data[start:end]),
                "on_part_end": lambda: self._add("end"),
            },
        )

    def _add(self, kind: str, data: bytes = b"") -> None:
        self._events.append((kind, data))

    async def __aiter__(self) -> AsyncIterator[Part]:
        """The parts. What of a part's content was not read is passed over."""
        while (event := await self._next()) is not None:
            if event[0] == "begin":
                yield await self._part()

    async def content(self) -> AsyncIterator[bytes]:
        """The current part's content."""
        while (event := await self._next()) is not None and event[0] != "end":
            yield event[1]

    async def _part(self) -> Part:
        disposition, field, value = b"", b"", b""
        while (event := await self._next()) is not None and event[0] != "headers":
            kind, data = event
            if kind == "field":
                field += data
            elif kind == "value":
                value += data
            elif kind == "header":
                if field.lower() == b"content-disposition":
                    disposition = value
                field, value = b"", b""
        _, options = multipart.parse_options_header(disposition)
        filename = options.get(b"filename")
        return Part(
            options.get(b"name", b"").decode("utf-8", "replace"),
            None if filename is None else filename.decode("utf-8", "replace"),
        )

    async def _next(self) -> tuple[str, bytes] | None:
        while not self._events:
            if self._ended:
                if self._in_part:
                    raise errors.InvalidRequestError("the multipart body ends within a part")
                return None
            chunk = await anext(self._body, None)
            try:
                if chunk is None:
                    self._ended = True
                    self._parser.finalize()
                else:
                    self._parser.write(chunk)
            except exceptions.FormParserError as error:
                raise errors.InvalidRequestError("the body is not multipart/form-data") from error
        event = self._events.popleft()
        if event[0] in ("begin", "end"):
            self._in_part = event[0] == "begin"
        return event
