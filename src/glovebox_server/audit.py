"""The audit trail: one JSON line per record, each holding the hash of the one before, so that tampering shows.

Recording puts a record into a queue and returns; a thread of its own writes what is in it, in order. When the queue is
full the caller writes, and waits: nothing is dropped. When the disk refuses, records wait in the queue, and once that is
full recording raises CapacityError: work that cannot be audited is refused.

    {"seq": 2, "timestamp": ..., "action": ..., ..., "prev_hash": <hash of 1>, "hash": <sha256 of all but this>}

A crash can tear the last line. The next start cuts it off and says so in a record. What the chain cannot show is the
loss of its last lines: `verify` returns the head, for whoever keeps heads elsewhere.
"""

import collections
import dataclasses
import datetime as dt
import hashlib
import json
import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from glovebox import errors
from glovebox_server.contract import clock
from glovebox_server.model import text

_log = structlog.get_logger(__name__)

FIRST_HASH = "0" * 64
MAX_DETAIL_LETTERS = 256
_MAX_BATCH = 20  # between batches the writer lets go of the interpreter, on which the event loop waits
_RETRY_AFTER_S = 1.0
_TAIL_BYTES = 256 * 1024  # more than the longest line
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


@dataclasses.dataclass(frozen=True)
class Record:
    """Who did what, where, and how it went. `detail` may hold guest text; it is cut and escaped. No secrets."""

    action: str
    sandbox_id: str | None = None
    user_id: str | None = None  # the API key's id
    code_hash: str | None = None
    duration_ms: float | None = None
    exit_code: int | None = None
    resource_usage: Mapping[str, float] | None = None
    security_events: Sequence[str] = ()
    detail: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What `verify` found: how many records stand, the last one's hash, and the first thing that is wrong."""

    records: int
    head: str
    torn_bytes: int = 0
    problem: str | None = None


class AuditLog:
    """The trail's one writer. Any thread may record."""

    def __init__(self, path: pathlib.Path, clock: clock.Clock, *, max_waiting: int = 10_000) -> None:
        self._clock = clock
        self._max_waiting = max_waiting
        self._waiting: collections.deque[tuple[dt.datetime, Record]] = collections.deque()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._writing = threading.Lock()
        self._fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.fchmod(self._fd, 0o600)
        self._seq, self._head, torn = _recover(self._fd)
        if torn:
            self.record(Record("audit.recovered", detail={"torn_bytes": str(torn)}))
        self._thread = threading.Thread(target=self._write_on, name="audit", daemon=True)
        self._thread.start()

    def record(self, record: Record) -> None:
        """Note it. CapacityError when nothing can be written and no more can wait."""
        self._waiting.append((self._clock.now(), record))
        if len(self._waiting) <= self._max_waiting:
            self._wake.set()
            return
        try:
            self._drain()
        except OSError as error:
            self._waiting.pop()
            raise errors.CapacityError("the audit log cannot be written") from error

    def flush(self) -> None:
        """Return when all that was recorded is in the file and on the disk. Raises OSError."""
        self._drain()
        os.fsync(self._fd)

    def close(self) -> None:
        """Write what waits and let go of the file. Twice is fine."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._wake.set()
        self._thread.join()
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def _write_on(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._wake.clear()
            try:
                self._drain()
            except OSError as error:
                _log.error("audit write failed", error=str(error), waiting=len(self._waiting))
                self._closing.wait(_RETRY_AFTER_S)
                self._wake.set()

    def _drain(self) -> None:
        with self._writing:
            while batch := [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]:
                try:
                    self._write(batch)
                except OSError:
                    self._waiting.extendleft(reversed(batch))
                    raise

    def _write(self, batch: Sequence[tuple[dt.datetime, Record]]) -> None:
        seq, head, lines = self._seq, self._head, []
        for time, record in batch:
            seq += 1
            line, head = _line(seq, time, record, head)
            lines.append(line)
        _append(self._fd, b"".join(lines))
        self._seq, self._head = seq, head


def verify(path: pathlib.Path) -> Verdict:
    """Walk the chain from its beginning."""
    seq, head = 0, FIRST_HASH
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return Verdict(seq, head, torn_bytes=len(line))
            problem, found = _check(line, seq + 1, head)
            if problem:
                return Verdict(seq, head, problem=f"line {seq + 1}: {problem}")
            seq, head = seq + 1, found
    return Verdict(seq, head)


def _check(line: bytes, seq: int, head: str) -> tuple[str | None, str]:
    try:
        fields = json.loads(line)
        found = fields.pop("hash")
        if fields["seq"] != seq:
            return f"record {seq} is missing: {fields['seq']!r} stands in its place", ""
        if fields["prev_hash"] != head:
            return "does not follow the record before it", ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is not a record", ""
    if found != _hash(fields):
        return "was altered", ""
    return None, found


def _line(seq: int, time: dt.datetime, record: Record, head: str) -> tuple[bytes, str]:
    fields: dict[str, Any] = {
        "seq": seq,
        "timestamp": time.isoformat(),
        "action": record.action,
        "sandbox_id": record.sandbox_id,
        "user_id": record.user_id,
        "code_hash": record.code_hash,
        "duration_ms": None if record.duration_ms is None else round(record.duration_ms, 3),
        "exit_code": record.exit_code,
        "resource_usage": None if record.resource_usage is None else dict(record.resource_usage),
        "security_events": list(record.security_events),
        "detail": {name: text.clean(value, MAX_DETAIL_LETTERS) for name, value in record.detail.items()},
        "prev_hash": head,
    }
    body = _canonical(fields)
    digest = hashlib.sha256(body).hexdigest()
    return b'%b,"hash":"%b"}\n' % (body[:-1], digest.encode()), digest


def _canonical(fields: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode("ascii")


def _hash(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()


def _append(fd: int, data: bytes) -> None:
    """Write all or nothing: what a full disk took of it is cut off again."""
    size = os.fstat(fd).st_size
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except OSError:
        os.ftruncate(fd, size)
        raise


def _recover(fd: int) -> tuple[int, str, int]:
    """Number and hash of the last record, and how many bytes of a torn line after it were cut off."""
    size = os.fstat(fd).st_size
    start = max(0, size - _TAIL_BYTES)
    complete, newline, torn = os.pread(fd, size - start, start).rpartition(b"\n")
    if torn:
        os.ftruncate(fd, size - len(torn))
    if not newline:
        return 0, FIRST_HASH, len(torn)
    last = complete.rpartition(b"\n")[2]
    try:
        fields = json.loads(last)
        return int(fields["seq"]), str(fields["hash"]), len(torn)
    except (ValueError, KeyError, TypeError):
        # Somebody wrote into the file. The chain goes on from what stands there; `verify` points at the line.
        return 0, hashlib.sha256(last).hexdigest(), len(torn)
