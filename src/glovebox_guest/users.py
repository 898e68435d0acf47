"""Who is who inside: users and groups as /etc/passwd and /etc/group name them, and where their paths lead.

The two files are read by hand: NSS would load libraries of the sandbox's into the agent, and might wait for a network.
"""

import os
from typing import Dict, List, NamedTuple, Optional, Tuple

from glovebox_guest import refusals

#: More of either file than this is not looked at.
MAX_TABLE_BYTES = 4 * 1024 * 1024
FALLBACK_DEFAULT = "user"


class User(NamedTuple):
    """A user of the sandbox, with what a process of theirs needs."""

    name: str
    uid: int
    gid: int
    home: str
    groups: Tuple[int, ...]


_ROOT = User("root", 0, 0, "/root", (0,))


class _Table:
    """The lines of one colon-separated file, read again when the file has changed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._stamp: Optional[Tuple[int, int, int]] = None
        self._by_name: Dict[str, List[str]] = {}
        self._by_id: Dict[int, str] = {}

    def load(self) -> "_Table":
        try:
            status = os.stat(self._path)
        except OSError:
            self._stamp, self._by_name, self._by_id = None, {}, {}
            return self
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            self._stamp = stamp
            self._read()
        return self

    def _read(self) -> None:
        self._by_name, self._by_id = {}, {}
        # O_NONBLOCK: whoever is root inside may have put a FIFO there.
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                text = (file.read(MAX_TABLE_BYTES) or b"").decode("utf-8", "surrogateescape")
        except OSError:
            return
        for line in text.splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and fields[0] and fields[2].isascii() and fields[2].isdigit():
                self._by_name.setdefault(fields[0], fields)
                self._by_id.setdefault(int(fields[2]), fields[0])

    def row(self, name: str) -> Optional[List[str]]:
        return self._by_name.get(name)

    def rows(self) -> List[List[str]]:
        return list(self._by_name.values())

    def name_of(self, number: int) -> str:
        return self._by_id.get(number, str(number))


_passwd = _Table("/etc/passwd")
_group = _Table("/etc/group")


def find(name: str) -> User:
    """The user of this name; Refused `unauthenticated` when there is none."""
    row = _passwd.load().row(name)
    if row is None or len(row) < 6 or not (row[3].isascii() and row[3].isdigit()):
        if name == "root":
            return _ROOT
        raise refusals.Refused("unauthenticated", f"invalid username: '{name}'")
    gid = int(row[3])
    groups = [gid]
    for group in _group.load().rows():
        if name in group[3].split(",") and int(group[2]) not in groups:
            groups.append(int(group[2]))
    return User(name, int(row[2]), gid, row[5] or "/", tuple(groups))


def default_name() -> str:
    """The user that requests without one mean, while the host has configured none."""
    return FALLBACK_DEFAULT if _passwd.load().row(FALLBACK_DEFAULT) is not None else "root"


def refresh() -> None:
    """Look at the two files again, once, before many names are asked for."""
    _passwd.load()
    _group.load()


def owner_name(uid: int) -> str:
    """A user's name by number, as `refresh` saw it; the number itself when it has none."""
    return _passwd.name_of(uid)


def group_name(gid: int) -> str:
    """A group's name by number, as `refresh` saw it; the number itself when it has none."""
    return _group.name_of(gid)


def resolve(path: str, user: User, workdir: Optional[str]) -> str:
    """The absolute, cleaned path that a caller means; Refused when it cannot be a path."""
    if "\0" in path:
        raise refusals.Refused("invalid_argument", "a path holds no NUL")
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise refusals.Refused("invalid_argument", "a path is not text") from None
    base = workdir or user.home
    if path == "~" or path.startswith("~/"):
        path = path[2:]
    elif path.startswith("~"):
        raise refusals.Refused("invalid_argument", f"path '{path}': another user's home cannot be named so")
    cleaned = os.path.normpath(os.path.join("/", base, path))
    # POSIX keeps two leading slashes apart from one; Linux does not.
    return cleaned[1:] if cleaned.startswith("//") else cleaned
