"""inotify(7) by ctypes: one queue, its watches, and its events as they stand."""

import ctypes
import errno
import os
import struct
from typing import List, NamedTuple

MODIFY = 0x2
ATTRIB = 0x4
MOVED_FROM = 0x40
MOVED_TO = 0x80
CREATE = 0x100
DELETE = 0x200
DELETE_SELF = 0x400
MOVE_SELF = 0x800
Q_OVERFLOW = 0x4000
IGNORED = 0x8000
ONLYDIR = 0x1000000
DONT_FOLLOW = 0x2000000
ISDIR = 0x40000000

_HEADER = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)


class Event(NamedTuple):
    """One event: in which watched directory, what, the cookie that joins the halves of a move, and the name."""

    watch: int
    mask: int
    cookie: int
    name: str


def open_queue() -> int:
    """A new queue's descriptor, not blocking. Raises OSError."""
    # inotify_init1 takes the flags of open(2).
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), "inotify")


def add_watch(queue: int, path: str, mask: int) -> int:
    """Watch `path`; the same number again when its inode is watched already. Raises OSError."""
    return _checked(_libc.inotify_add_watch(queue, os.fsencode(path), ctypes.c_uint32(mask)), path)


def remove_watch(queue: int, watch: int) -> None:
    """Stop watching; no error when it has stopped by itself."""
    if _libc.inotify_rm_watch(queue, watch) < 0 and ctypes.get_errno() != errno.EINVAL:
        _checked(-1, "inotify")


def read(queue: int) -> List[Event]:
    """Some of the events that are there; none when there are none."""
    try:
        data = os.read(queue, _READ_BYTES)
    except BlockingIOError:
        return []
    events = []
    at = 0
    while at < len(data):
        watch, mask, cookie, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
        at += length
        events.append(Event(watch, mask, cookie, name))
    return events


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result
