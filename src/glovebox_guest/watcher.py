"""One watched directory: what the kernel says of it, turned into changes that a caller understands.

    the kernel ──▶ inotify queue ── read_changes ──▶ the watcher's own queue (bounded) ──▶ stream, or poll

A recursive watcher watches every directory below, new ones as soon as it reads of them; what was put into a new one
before its watch stood is found by looking. The agent's own uploads are told as what they mean (see uploads).
"""

import collections
import itertools
import os
from typing import Any, Deque, Dict, List, Optional, Set

from glovebox_guest import entries, inotify, uploads, users

#: Changes kept for a caller who does not take them; the oldest go first.
MAX_QUEUED_CHANGES = 8192
#: Directories watched by one watcher; those beyond are not.
MAX_WATCHED_FOLDERS = 8192
MAX_READS_AT_ONCE = 64
#: Entries looked at for one new directory.
MAX_LOOKED_AT = 100_000

_MASK = (
    inotify.MODIFY
    | inotify.ATTRIB
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
    | inotify.CREATE
    | inotify.DELETE
    | inotify.ONLYDIR
)
_ROOT_MASK = _MASK | inotify.DELETE_SELF | inotify.MOVE_SELF

#: What each of the kernel's events is called, in the order in which they are looked for.
_TYPES = (
    (inotify.CREATE | inotify.MOVED_TO, "create"),
    (inotify.MODIFY, "write"),
    (inotify.DELETE | inotify.DELETE_SELF, "remove"),
    (inotify.MOVED_FROM | inotify.MOVE_SELF, "rename"),
    (inotify.ATTRIB, "chmod"),
)
_NEW_UPLOAD = ("create", "chmod", "write")


class Watcher:
    """Watches one directory. Raises OSError when it cannot begin."""

    def __init__(self, path: str, *, recursive: bool, include_entry: bool, names: uploads.Names) -> None:
        self._path = path
        self._is_recursive = recursive
        self._includes_entry = include_entry
        self._names = names
        self._changes: Deque[Dict[str, Any]] = collections.deque(maxlen=MAX_QUEUED_CHANGES)
        # The watched directories, by number and by their path below the root ("" is the root itself).
        self._folders: Dict[int, str] = {}
        self._watches: Dict[str, int] = {}
        # What looking into a new directory has found, and its events may tell again.
        self._found: Set[str] = set()
        # The first halves of moves, by their cookies, until the second is read, which is usually at once.
        self._upload_moves: Dict[int, str] = {}
        self._folder_moves: Dict[int, str] = {}
        self.queue = inotify.open_queue()
        try:
            self._watch("", _ROOT_MASK)
        except OSError:
            os.close(self.queue)
            raise
        if recursive:
            self._look_into("", tells=False)

    def close(self) -> None:
        """Stop watching. Call once."""
        os.close(self.queue)

    def read_changes(self) -> int:
        """Take what has happened up to now out of the kernel's queue; how many events that were."""
        count = 0
        for _ in range(MAX_READS_AT_ONCE):
            events = inotify.read(self.queue)
            if not events:
                break
            count += len(events)
            for event in events:
                self._take(event)
        # What was moved, and not to another place in here, has left.
        for name in self._folder_moves.values():
            self._unwatch_below(name)
        self._folder_moves.clear()
        self._upload_moves.clear()
        return count

    def drain(self) -> List[Dict[str, Any]]:
        """The changes that have been read, which are then the caller's."""
        changes = list(self._changes)
        self._changes.clear()
        return changes

    # Inside.

    def _take(self, event: inotify.Event) -> None:
        if event.mask & inotify.Q_OVERFLOW:
            # Some events are lost. Directories that were made meanwhile are not.
            if self._is_recursive:
                self._look_into("", tells=False)
            return
        folder = self._folders.get(event.watch)
        if folder is None:
            return
        if event.mask & inotify.IGNORED:
            self._forget(event.watch, folder)
        elif not event.name:
            # Of a directory below, the one above tells the same.
            if not folder:
                self._tell(".", _type_of(event.mask))
        elif not self._take_upload(event, folder):
            self._take_named(event, _join(folder, event.name))

    def _take_named(self, event: inotify.Event, name: str) -> None:
        type_ = _type_of(event.mask)
        was_found = name in self._found
        if type_ in ("create", "remove", "rename"):
            self._found.discard(name)
        if was_found and event.mask & inotify.CREATE:
            return
        self._tell(name, type_)
        if not self._is_recursive or not event.mask & inotify.ISDIR:
            return
        if event.mask & inotify.MOVED_FROM:
            self._folder_moves[event.cookie] = name
        elif event.mask & inotify.MOVED_TO and event.cookie in self._folder_moves:
            self._rename_below(self._folder_moves.pop(event.cookie), name)
        elif type_ == "create":
            # What was moved here has its content from elsewhere: none of that is new.
            self._look_into(name, tells=bool(event.mask & inotify.CREATE))

    def _take_upload(self, event: inotify.Event, folder: str) -> bool:
        """Tell an upload as one thing; False when the event is not part of any."""
        if self._names.is_known(event.name):
            if event.mask & inotify.MOVED_FROM:
                self._upload_moves[event.cookie] = event.name
            return True
        temporary = self._upload_moves.pop(event.cookie, None) if event.mask & inotify.MOVED_TO else None
        if temporary is None:
            return False
        name = _join(folder, event.name)
        self._found.discard(name)
        for type_ in ("write",) if self._names.has_replaced(temporary) else _NEW_UPLOAD:
            self._tell(name, type_)
        return True

    def _tell(self, name: str, type_: str) -> None:
        last = self._changes[-1] if self._changes else None
        # A program that writes and writes is one change until somebody has taken it.
        if type_ == "write" and last is not None and (last["name"], last["type"]) == (name, type_):
            self._changes.pop()
        change: Dict[str, Any] = {"name": name, "type": type_}
        entry = self._entry_of(name) if self._includes_entry and type_ not in ("remove", "rename") else None
        if entry is not None:
            change["entry"] = entry
        self._changes.append(change)

    def _entry_of(self, name: str) -> Optional[Dict[str, Any]]:
        users.refresh()
        try:
            return entries.describe(os.path.normpath(os.path.join(self._path, name)))
        except OSError:
            return None

    def _watch(self, folder: str, mask: int) -> None:
        # The root may be reached through a symlink; nothing below it is.
        flags = inotify.DONT_FOLLOW if folder else 0
        watch = inotify.add_watch(self.queue, os.path.join(self._path, folder), mask | flags)
        known = self._folders.get(watch)
        if known is not None and known != folder:
            self._watches.pop(known, None)
        self._folders[watch] = folder
        self._watches[folder] = watch

    def _look_into(self, top: str, *, tells: bool) -> None:
        """Watch a directory and all below it, and tell what is there already. Breadth first, without recursion."""
        ahead: Deque[str] = collections.deque([top])
        left = MAX_LOOKED_AT
        while ahead and left > 0 and len(self._watches) < MAX_WATCHED_FOLDERS:
            folder = ahead.popleft()
            try:
                if folder:
                    self._watch(folder, _MASK)
                # After the watch stands: what comes between is told twice, and `_found` drops the second.
                with os.scandir(os.path.join(self._path, folder)) as found:
                    items = [item for item in itertools.islice(found, left) if not self._names.is_known(item.name)]
            except OSError:
                continue  # Gone again, or the kernel allows no more watches.
            left -= len(items) + 1
            if tells:
                self._tell_found(folder, items)
            ahead.extend(_join(folder, item.name) for item in items if item.is_dir(follow_symlinks=False))

    def _tell_found(self, folder: str, items: List["os.DirEntry[str]"]) -> None:
        for item in sorted(items, key=lambda one: one.name):
            name = _join(folder, item.name)
            if name in self._found:
                continue
            self._found.add(name)
            self._tell(name, "create")
            if _has_content(item):
                self._tell(name, "write")
        if len(self._found) > MAX_QUEUED_CHANGES:
            self._found.clear()

    def _below(self, name: str) -> List[str]:
        return [one for one in self._watches if one == name or one.startswith(name + "/")]

    def _rename_below(self, old: str, new: str) -> None:
        """The watches stay: they are of inodes, and what happened in these since the move is still to be read."""
        self._unwatch_below(new)
        for folder in self._below(old):
            watch = self._watches.pop(folder)
            self._folders[watch] = new + folder[len(old) :]
            self._watches[self._folders[watch]] = watch

    def _unwatch_below(self, name: str) -> None:
        for folder in self._below(name):
            watch = self._watches.pop(folder)
            self._folders.pop(watch, None)
            inotify.remove_watch(self.queue, watch)

    def _forget(self, watch: int, folder: str) -> None:
        del self._folders[watch]
        if self._watches.get(folder) == watch:
            del self._watches[folder]


def _has_content(item: "os.DirEntry[str]") -> bool:
    try:
        return item.is_file(follow_symlinks=False) and item.stat(follow_symlinks=False).st_size > 0
    except OSError:
        return False


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _type_of(mask: int) -> str:
    return next(name for bits, name in _TYPES if mask & bits)
