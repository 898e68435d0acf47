"""A sandbox's journal: the last things that happened to it, in memory, for its owner to read (the `logs` command).

Bounded twice, by entries and by bytes, because guests write into it. Program output is kept as the raw chunks it came
in and is cut into lines only when somebody reads: the data plane pays for an append and nothing else.
"""

import collections
import dataclasses
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from glovebox_server.contract import clock
from glovebox_server.model import text

MAX_ENTRIES = 1000
MAX_BYTES = 256 * 1024
MAX_LINE_BYTES = 4096

Level = Literal["debug", "info", "warn", "error"]


@dataclasses.dataclass(frozen=True)
class JournalEntry:
    """One line of the journal. Guest text in it is cut and escaped."""

    timestamp: dt.datetime
    level: Level
    message: str
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Chunk:
    """Output as it came; adjacent small pieces of one stream are put together, so that no program fills the ring with bytes."""

    timestamp: dt.datetime
    source: str  # "process 12", "code 3"
    stream: str
    data: bytes


class Journal:
    """The ring."""

    def __init__(self, clock: clock.Clock, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._clock = clock
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._items: collections.deque[JournalEntry | _Chunk] = collections.deque()
        self._bytes = 0

    def add(self, message: str, *, level: Level = "info", **fields: object) -> None:
        """Note an event. `message` is a constant of ours; what a guest said goes into fields, and is cleaned here."""
        clean = {name: text.clean(str(value), MAX_LINE_BYTES) for name, value in fields.items() if value is not None}
        self._append(JournalEntry(self._clock.now(), level, message, clean))

    def output(self, source: str, stream: str, data: bytes) -> None:
        """Note what a program wrote."""
        data = data[-self._max_bytes :]
        last = self._items[-1] if self._items else None
        if (
            isinstance(last, _Chunk)
            and len(last.data) + len(data) <= MAX_LINE_BYTES
            and (last.source, last.stream) == (source, stream)
        ):
            last.data += data
            self._bytes += len(data)
            self._trim()
        else:
            self._append(_Chunk(self._clock.now(), source, stream, data))

    def entries(self) -> Sequence[JournalEntry]:
        """What is in the ring, oldest first, at most `max_entries` of them (the newest)."""
        found: collections.deque[JournalEntry] = collections.deque(maxlen=self._max_entries)
        for item in self._items:
            if isinstance(item, JournalEntry):
                found.append(item)
            else:
                found.extend(_lines(item))
        return tuple(found)

    def _append(self, item: JournalEntry | _Chunk) -> None:
        self._items.append(item)
        self._bytes += _size(item)
        self._trim()

    def _trim(self) -> None:
        while len(self._items) > self._max_entries or (self._bytes > self._max_bytes and len(self._items) > 1):
            self._bytes -= _size(self._items.popleft())


def _size(item: JournalEntry | _Chunk) -> int:
    if isinstance(item, _Chunk):
        return len(item.data)
    return len(item.message) + sum(len(key) + len(value) for key, value in item.fields.items())


def _lines(chunk: _Chunk) -> Iterator[JournalEntry]:
    fields = {"source": chunk.source, "stream": chunk.stream}
    level: Level = "warn" if chunk.stream == "stderr" else "info"
    for line in chunk.data.split(b"\n"):
        if stripped := line.rstrip(b"\r"):
            shown = text.clean(stripped[: MAX_LINE_BYTES * 2].decode("utf-8", "replace"), MAX_LINE_BYTES)
            yield JournalEntry(chunk.timestamp, level, shown, fields)
