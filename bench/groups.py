"""Looks up cgroups and processes: which groups bear a name, who is in them, who descends from whom."""

import contextlib
import os
import pathlib
from collections.abc import Iterable

CGROUPS = pathlib.Path("/sys/fs/cgroup")
SERVER_PREFIX = "glovebox-"


def find_groups(names: Iterable[str], root: pathlib.Path = CGROUPS) -> list[pathlib.Path]:
    """All cgroup directories with one of these names, in any hierarchy."""
    wanted = set(names)
    found = []
    for parent, directories, _ in os.walk(root):
        found += [pathlib.Path(parent, name) for name in directories if name in wanted]
    return found


def members(groups: Iterable[pathlib.Path]) -> set[int]:
    """Pids in these groups and in all below them."""
    pids = set()
    for group in groups:
        for parent, _, _ in os.walk(group):
            with contextlib.suppress(OSError):
                pids |= {int(line) for line in pathlib.Path(parent, "cgroup.procs").read_text().split()}
    return pids


def descendants(pid: int) -> set[int]:
    """A process and all below it."""
    parents: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                # After the last parenthesis: the name before it may hold anything (proc_pid_stat(5)).
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                parents.setdefault(parent, []).append(int(entry.name))
    found, pending = set(), [pid]
    while pending:
        current = pending.pop()
        found.add(current)
        pending += parents.get(current, [])
    return found


def own_groups(pid: int) -> set[str]:
    """The names of the server's own root groups, as /proc/<pid>/cgroup of the processes below `pid` tells them.

    Ask for the harness's own: a zygote leaves its server's tree, and is then adopted by the harness (see `leaks`).
    """
    names: set[str] = set()
    for child in descendants(pid):
        with contextlib.suppress(OSError):
            for line in pathlib.Path(f"/proc/{child}/cgroup").read_text().splitlines():
                parts = pathlib.PurePath(line.split(":", 2)[2]).parts
                names |= {part for part in parts if part.startswith(SERVER_PREFIX)}
    return names
