"""A directory tree as data: described first, so that it can be hashed and tested, then written.

An `Entry` is one file, directory or symlink. Nothing here looks at the host: `skeleton` describes, this module writes.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Entry:
    """One thing in a tree; `path` is relative to its root, and `content` is a symlink's target or a file's bytes."""

    path: str
    kind: Literal["directory", "file", "symlink"]
    mode: int = 0o755
    owner: int = 0  # user id and group id, where the writer may set them
    content: bytes = b""


def directory(path: str, mode: int = 0o755, owner: int = 0) -> Entry:
    """An empty directory."""
    return Entry(path, "directory", mode, owner)


def file(path: str, text: str | bytes, mode: int = 0o644, owner: int = 0) -> Entry:
    """A regular file with this content."""
    return Entry(path, "file", mode, owner, text.encode() if isinstance(text, str) else text)


def symlink(path: str, target: str) -> Entry:
    """A symbolic link, dangling or not."""
    return Entry(path, "symlink", 0o777, 0, os.fsencode(target))


def digest(entries: Iterable[Entry]) -> str:
    """A hash that any change of any entry changes."""
    whole = hashlib.sha256()
    for entry in sorted(entries, key=lambda entry: entry.path):
        content = hashlib.sha256(entry.content).hexdigest()
        whole.update(repr((entry.path, entry.kind, entry.mode, entry.owner, content)).encode())
    return whole.hexdigest()


def write(entries: Iterable[Entry], root: pathlib.Path) -> None:
    """Write the entries under `root`, which nobody else may be writing to; missing parents are made, root's, 0755.

    Owners are set when this process may (it is root); an ordinary user's tree is the user's.
    """
    for entry in sorted(entries, key=lambda entry: entry.path):
        path = root / entry.path
        _make_parents(path.parent)
        if entry.kind == "symlink":
            path.symlink_to(os.fsdecode(entry.content))
        elif entry.kind == "directory":
            path.mkdir(exist_ok=True)
        else:
            path.write_bytes(entry.content)
        own(path, entry.owner)
        if entry.kind != "symlink":
            path.chmod(entry.mode)  # after chown, which takes setuid bits away; and whatever the umask is


def _make_parents(path: pathlib.Path) -> None:
    """`mkdir -p` with mode 0755 under any umask."""
    if not path.is_dir():
        _make_parents(path.parent)
        path.mkdir()
        path.chmod(0o755)


def own(path: pathlib.Path, owner: int) -> None:
    """Give the entry itself (not what a symlink names) to user and group `owner`, if this process may."""
    # Safety: only root may, and `path` lies in a tree that this process is making: no link of it leads elsewhere.
    if os.geteuid() == 0:
        os.chown(path, owner, owner, follow_symlinks=False)


def clone(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a tree by hard links: both must stay read-only from now on."""
    target.mkdir()
    with os.scandir(source) as entries:
        for entry in entries:
            copy = target / entry.name
            if entry.is_dir(follow_symlinks=False):
                clone(pathlib.Path(entry.path), copy)
            else:
                os.link(entry.path, copy, follow_symlinks=False)
    facts = source.stat()
    own(target, facts.st_uid)
    target.chmod(facts.st_mode & 0o7777)
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))  # importers compare a directory's time with their cache
