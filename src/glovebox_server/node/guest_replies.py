"""What a guest may answer, and in which form: guest data in, the contract's types out, or ProtocolError.

Strict on purpose. Our own agent never sends anything else, so whoever does has taken its place. Pure: no I/O.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, TypeVar, cast, get_args

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.contract import guest

_MAX_ERROR_BYTES = 2048
_MAX_NAME_CHARS = 512
_MAX_PATH_CHARS = 64 * 1024
_MAX_TEXT_CHARS = wire.MAX_MESSAGE_BYTES
_MAX_INT = 2**63 - 1
#: Deeper values are no use to any caller, and take more stack than they should in whoever walks over them.
_MAX_DEPTH = 64

_HEX = re.compile(r"[0-9a-f]{8,64}")
_CHANGE_TYPES = frozenset(("create", "write", "remove", "rename", "chmod"))
_METRICS = ("ts", "cpu_count", "cpu_used_pct", "mem_total", "mem_used", "mem_cache", "disk_used", "disk_total")
_EntryType = Literal["file", "directory", "symlink", "other"]
_ENTRY_TYPES = frozenset(get_args(_EntryType))

T = TypeVar("T")
Fields = Mapping[str, Any]


def printable(text: str, max_bytes: int = _MAX_ERROR_BYTES) -> str:
    """Guest text for a log, a terminal or an error: cut, with everything that does not print escaped."""
    cut = text[:max_bytes]
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return escaped.encode()[:max_bytes].decode(errors="ignore")


def ok_or_raise(message: Fields) -> Fields:
    """The `ok` of an END message; raises GuestError when it carries an error instead."""
    if message.keys() == {"ok"}:
        return table(message["ok"])
    if message.keys() != {"error"}:
        raise wire.ProtocolError("an answer is neither ok nor an error")
    error = table(message["error"])
    code, text = error.get("code"), error.get("message")
    if not isinstance(code, str) or not isinstance(text, str):
        raise wire.ProtocolError("an error has no code or no message")
    raise errors.GuestError(code if code in wire.ERROR_CODES else "internal", printable(text))


# --- values ---


def table(value: Any) -> Fields:
    """A JSON object."""
    if not isinstance(value, dict):
        raise wire.ProtocolError("a field is not an object")
    return value


def text(value: Any, max_chars: int = _MAX_TEXT_CHARS) -> str:
    """A string that can be written as UTF-8."""
    if not isinstance(value, str) or len(value) > max_chars:
        raise wire.ProtocolError("a field is not text, or too long")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise wire.ProtocolError("a text has half a character") from error
    return value


def number(value: Any, low: int = 0, high: int = _MAX_INT) -> int:
    """A whole number within bounds (true and false are none)."""
    if type(value) is not int or not low <= value <= high:
        raise wire.ProtocolError("a field is not a number, or out of bounds")
    return value


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise wire.ProtocolError("a field is neither true nor false")
    return value


def texts(value: Any) -> Mapping[str, str]:
    """An object whose values are all text."""
    return {text(key, _MAX_NAME_CHARS * 8): text(item) for key, item in table(value).items()}


def listed(value: Any, parse: Callable[[Any], T]) -> list[T]:
    """A list, every item of it parsed."""
    if not isinstance(value, list):
        raise wire.ProtocolError("a field is not a list")
    return [parse(item) for item in value]


def plain(value: Any) -> Mapping[str, Any]:
    """An object of any JSON values that can be written as JSON again: not too deep, no NaN, no half characters."""
    result = table(value)
    level: Iterable[Any] = [result]
    for _ in range(_MAX_DEPTH):
        level = [item for item in itertools.chain.from_iterable(map(_children, level)) if isinstance(item, dict | list)]
        if not level:
            break
    else:
        raise wire.ProtocolError("a value is too deep")
    try:
        json.dumps(result, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:  # UnicodeEncodeError is one
        raise wire.ProtocolError("a value cannot be JSON") from error
    return result


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value


def _maybe(value: Any, parse: Callable[[Any], T]) -> T | None:
    return None if value is None else parse(value)


def _name(value: Any) -> str:
    return text(value, _MAX_NAME_CHARS)


def _path(value: Any) -> str:
    return text(value, _MAX_PATH_CHARS)


def _one_of(value: Any, choices: frozenset[str]) -> str:
    if not isinstance(value, str) or value not in choices:
        raise wire.ProtocolError("a field is none of the known words")
    return value


# --- answers ---


def hello(message: Fields) -> str:
    """The guest's boot id, from its HELLO."""
    if message.get("version") is True or message.get("version") != wire.VERSION:
        raise wire.ProtocolError("the guest speaks another version")
    number(message.get("pid"), 1)
    boot_id = text(message.get("boot_id"))
    if not _HEX.fullmatch(boot_id):
        raise wire.ProtocolError("a boot id is not hexadecimal")
    return boot_id


def empty(message: Fields) -> None:
    """An answer that says nothing."""
    if message:
        raise wire.ProtocolError("an answer says something where nothing was asked")


def env(message: Fields) -> Mapping[str, str]:
    """`sandbox.env`."""
    return texts(message.get("env"))


def metrics(message: Fields) -> Mapping[str, float]:
    """`sandbox.metrics`."""
    values = {}
    for name in _METRICS:
        value: Any = message.get(name)
        # NaN compares false with everything.
        if type(value) not in (int, float) or not 0 <= value <= _MAX_INT:
            raise wire.ProtocolError("a metric is not a number, or out of bounds")
        values[name] = float(value)
    return values


def process_event(message: Fields) -> guest.Started:
    """The one event of `process.start` and `process.connect`."""
    if message.get("event") != "start":
        raise wire.ProtocolError("a process's event is unknown")
    return guest.Started(number(message.get("pid"), 1))


def exited(message: Fields) -> guest.Exited:
    """How a process ended."""
    return guest.Exited(
        exit_code=number(message.get("exit_code"), -(2**31), 2**31),
        exited=flag(message.get("exited")),
        status=_name(message.get("status")),
        error=_maybe(message.get("error"), lambda value: printable(text(value))),
    )


def processes(message: Fields) -> list[guest.ProcessInfo]:
    """`process.list`."""
    return listed(message.get("processes"), _process)


def _process(value: Any) -> guest.ProcessInfo:
    fields = table(value)
    return guest.ProcessInfo(
        pid=number(fields.get("pid"), 1),
        argv=tuple(listed(fields.get("argv"), text)),
        env=texts(fields.get("env")),
        cwd=_maybe(fields.get("cwd"), _path),
        tag=_maybe(fields.get("tag"), text),
    )


def entry(value: Any) -> guest.Entry:
    """A file, directory or symlink."""
    fields = table(value)
    return guest.Entry(
        name=_path(fields.get("name")),
        type=cast(_EntryType, _one_of(fields.get("type"), _ENTRY_TYPES)),
        path=_path(fields.get("path")),
        size=number(fields.get("size")),
        mode=number(fields.get("mode"), 0, 0o7777),
        permissions=_name(fields.get("permissions")),
        owner=_name(fields.get("owner")),
        group=_name(fields.get("group")),
        mtime_ns=number(fields.get("mtime_ns"), -_MAX_INT),
        symlink_target=_maybe(fields.get("symlink_target"), _path),
        is_symlink=flag(fields.get("is_symlink")),
        metadata=texts(fields.get("metadata")),
    )


def one_entry(message: Fields) -> guest.Entry:
    """The answers of `fs.stat`, `fs.make_dir`, `fs.move` and `fs.write`."""
    return entry(message.get("entry"))


def entry_event(message: Fields) -> guest.Entry:
    """The one event of `fs.read`."""
    if message.get("event") != "entry":
        raise wire.ProtocolError("a download's event is unknown")
    return entry(message.get("entry"))


def entries_event(message: Fields) -> list[guest.Entry]:
    """An event of `fs.list`."""
    if message.get("event") != "entries":
        raise wire.ProtocolError("a listing's event is unknown")
    return listed(message.get("entries"), entry)


def watch_event(message: Fields) -> guest.Change | None:
    """An event of `fs.watch`: None is its start."""
    event = message.get("event")
    if event == "start":
        return None
    if event != "change":
        raise wire.ProtocolError("a watch's event is unknown")
    return _change(message)


def watcher_id(message: Fields) -> str:
    """`fs.watcher_create`."""
    return _name(message.get("watcher_id"))


def changes(message: Fields) -> list[guest.Change]:
    """`fs.watcher_events`."""
    return listed(message.get("events"), _change)


def _change(value: Any) -> guest.Change:
    fields = table(value)
    return guest.Change(
        name=_path(fields.get("name")),
        type=cast(Any, _one_of(fields.get("type"), _CHANGE_TYPES)),
        entry=_maybe(fields.get("entry"), entry),
    )


def code_event(message: Fields) -> guest.ExecutionStarted | guest.Result | guest.ExecutionError:
    """An event of `code.execute`."""
    event = message.get("event")
    if event == "started":
        return guest.ExecutionStarted(number(message.get("execution_count")))
    if event == "result":
        return guest.Result(plain(message.get("data")), flag(message.get("is_main_result")))
    if event == "error":
        return guest.ExecutionError(
            name=text(message.get("name")), value=text(message.get("value")), traceback=text(message.get("traceback"))
        )
    raise wire.ProtocolError("an execution's event is unknown")


def execution_ended(message: Fields) -> guest.ExecutionEnded:
    """The answer of `code.execute`."""
    return guest.ExecutionEnded(number(message.get("execution_count")))


def context(message: Fields) -> guest.Context:
    """`code.create_context`."""
    return _context(message.get("context"))


def contexts(message: Fields) -> list[guest.Context]:
    """`code.list_contexts`."""
    return listed(message.get("contexts"), _context)


def _context(value: Any) -> guest.Context:
    fields = table(value)
    return guest.Context(
        context_id=_name(fields.get("id")), language=_name(fields.get("language")), cwd=_path(fields.get("cwd"))
    )


def connected(message: Fields) -> None:
    """The one event of `net.dial`."""
    if message.get("event") != "connected":
        raise wire.ProtocolError("a connection's event is unknown")
