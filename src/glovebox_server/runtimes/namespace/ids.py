"""Ranges of user and group ids: one window for each zygote, one slice of it for each sandbox; nobody else's on the host.

    host ids    ... │ window of a zygote                                           │ ...
                    │ 0: root of the zygote │ slot 0 │ slot 1 │ ... │ slot n       │
                                              each: root and users of one sandbox

Quotas that the kernel counts by user (inotify, pending signals, keys, processes) are so each sandbox's own.
A window is held by a locked file whose descriptor the zygote inherits: it is free again when the zygote is gone, however
it went.
"""

import dataclasses
import fcntl
import os
import pathlib
import pwd

from glovebox import errors

_FULL_SPAN = 65_536
_WINDOW_SLOTS = 2047
#: The first id above those that systemd gives to containers (systemd.io/UIDS-GIDS), up to the last below 2^32.
_FIRST_ID = 0x7000_0000
_WINDOWS = 16
_LOCKS = pathlib.Path("/run/glovebox/ids")

#: For users with a subordinate range (subuid(5)) of the usual 65536: enough for root, `user` and nobody, 63 times.
_NARROW_SPAN = 1025
_NOBODY = 65_534


@dataclasses.dataclass(frozen=True)
class Window:
    """The ids of one zygote, seen from the host, and how sandboxes share them."""

    uid_map: str  # of the zygote's user namespace
    gid_map: str
    slots: int
    narrow: bool
    lock_fd: int  # -1: nothing to lock

    def base(self, slot: int) -> int:
        """The sandbox's first id, in the zygote's user namespace."""
        return 1 + slot * _NARROW_SPAN if self.narrow else _FULL_SPAN * (slot + 1)

    def map(self, slot: int) -> str:
        """The sandbox's map, with ids of the zygote's user namespace on the right (user_namespaces(7))."""
        base = self.base(slot)
        if self.narrow:
            return f"0 {base} {_NARROW_SPAN - 1}\n{_NOBODY} {base + _NARROW_SPAN - 1} 1"
        return f"0 {base} {_FULL_SPAN}"


def take_window() -> Window:
    """A window of the host's ids that no other zygote holds. Raises CapacityError, UnsupportedError."""
    return _take_root_window() if os.geteuid() == 0 else _subordinate_window()


def _take_root_window() -> Window:
    _LOCKS.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in range(_WINDOWS):
        fd = os.open(_LOCKS / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            continue
        size = (_WINDOW_SLOTS + 1) * _FULL_SPAN
        ids = f"0 {_FIRST_ID + number * size} {size}"
        return Window(ids, ids, _WINDOW_SLOTS, narrow=False, lock_fd=fd)
    raise errors.CapacityError(f"all {_WINDOWS} id windows of this host are held by other zygotes")


def _subordinate_window() -> Window:
    ranges = {kind: _subordinate_range(kind) for kind in ("uid", "gid")}
    count = min(count for _, count in ranges.values())
    if count < _NARROW_SPAN:
        raise errors.UnsupportedError(
            f"a subordinate range of {count} ids is too small (subuid(5)): {_NARROW_SPAN} are needed"
        )
    own = {"uid": os.geteuid(), "gid": os.getegid()}
    maps = {kind: f"0 {own[kind]} 1 1 {ranges[kind][0]} {count}" for kind in ranges}
    return Window(maps["uid"], maps["gid"], count // _NARROW_SPAN, narrow=True, lock_fd=-1)


def _subordinate_range(kind: str) -> tuple[int, int]:
    """First id and number of ids that /etc/subuid or /etc/subgid gives to us."""
    path = pathlib.Path(f"/etc/sub{kind}")
    names = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    for line in path.read_text().splitlines() if path.exists() else []:
        name, _, rest = line.partition(":")
        first, _, count = rest.partition(":")
        if name in names and first.isdigit() and count.isdigit():
            return int(first), int(count)
    raise errors.UnsupportedError(
        f"{path} gives no range of ids to the user {os.geteuid()}: run "
        f"`usermod --add-sub{kind}s 100000-165535 <user>` as root"
    )
