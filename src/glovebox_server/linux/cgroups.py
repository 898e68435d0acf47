"""Control groups, v2 (the normal case) and v1, behind one face: limits, joining, usage, freezing, removal (cgroups(7)).

A `Hierarchy` is where this host has its controllers; a `Group` is one directory in it (v1: one for each controller).
Only directories that this module made are ever changed or removed.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Protocol

from glovebox_server.model import resources

_V1_CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
_V1_FREEZER = "freezer"  # not on every host: without it sandboxes cannot be paused
_V2_CONTROLLERS = ("memory", "cpu", "pids")
_CPU_PERIOD_US = 100_000


class Group(Protocol):
    """One sandbox's (or one service's) control group."""

    def limit(self, limits: resources.Resources) -> None:
        """Set memory, CPU and process limits."""

    def open_join(self) -> list[int]:
        """Descriptors; a process that writes `0` to each of them has joined. The caller closes them.

        They are opened with our rights, and the kernel checks these and not the writer's: that is how a process
        without any privilege moves itself, and nothing else, into its group.
        """

    def pids(self) -> list[int]:
        """Host pids of the members."""

    def usage(self) -> resources.Usage: ...

    @property
    def can_freeze(self) -> bool:
        """Whether it has a freezer; if not, `freeze` is not to be called. One made by an earlier version may have none."""

    def freeze(self) -> None:
        """Ask the kernel to stop every member where it stands; `is_frozen` tells when that is so.

        To be asked again as long as it is not: with v1 what is started meanwhile may slip through.
        """

    def thaw(self) -> None:
        """Let them go on. Nothing happens when they are not frozen.

        With v1 a frozen process cannot die, of SIGKILL neither: what is to be ended is killed first and then thawed, so
        that none of it runs again in between.
        """

    @property
    def is_frozen(self) -> bool:
        """Whether every member stands still."""

    def remove(self) -> None:
        """Remove it and all below it. Nothing happens when it is gone.

        OSError EBUSY while it has members; also for a moment after the last of them has ended and been waited for, as
        the kernel takes a process out of its group only when it has left the processor for good.
        """


class Hierarchy(Protocol):
    """Where groups are made."""

    @property
    def version(self) -> int: ...

    @property
    def can_freeze(self) -> bool:
        """Whether groups that are made here can be frozen."""

    def group(self, *names: str) -> Group:
        """The group at this path below our own root; made when `create` is called, or found."""

    def create(self, *names: str) -> Group: ...

    def children(self, *names: str) -> list[str]:
        """Names of the groups below this one."""


def detect(name: str, root: pathlib.Path = pathlib.Path("/sys/fs/cgroup")) -> Hierarchy | str:
    """The hierarchy of this host, with `name` as our own root in it; or, in words, why there is none for us."""
    if (root / "cgroup.controllers").exists():
        return _detect_v2(name, root)
    missing = [controller for controller in _V1_CONTROLLERS if not (root / controller / "tasks").exists()]
    if missing:
        return f"no cgroup controller for {', '.join(missing)} is mounted below {root}"
    if not all(os.access(root / controller, os.W_OK) for controller in _V1_CONTROLLERS):
        return f"the cgroup v1 controllers below {root} belong to root"
    freezer = root / _V1_FREEZER
    return V1(root, name, can_freeze=(freezer / "tasks").exists() and os.access(freezer, os.W_OK))


def _detect_v2(name: str, root: pathlib.Path) -> Hierarchy | str:
    available = (root / "cgroup.controllers").read_text().split()
    missing = [controller for controller in _V2_CONTROLLERS if controller not in available]
    if missing:
        return f"the cgroup v2 controllers {', '.join(missing)} are not available below {root}"
    if not os.access(root, os.W_OK):
        return f"the cgroup v2 tree {root} belongs to root"
    return V2(root, name)


def _write(path: pathlib.Path, text: str) -> None:
    # Not pathlib: one open, one write, no buffering, so that the kernel's refusal comes from this very write.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _number(path: pathlib.Path) -> int:
    return int(path.read_text())


def _field(path: pathlib.Path, name: str) -> int:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0


def _remove_tree(path: pathlib.Path) -> None:
    """Remove a cgroup directory, children first."""
    for child in _children(path):
        _remove_tree(path / child)
    with contextlib.suppress(FileNotFoundError):
        path.rmdir()


def _children(path: pathlib.Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []


@dataclasses.dataclass(frozen=True)
class V1:
    """cgroup v1: one tree for each controller."""

    root: pathlib.Path
    name: str
    version: int = 1
    can_freeze: bool = True

    @property
    def _controllers(self) -> tuple[str, ...]:
        return (*_V1_CONTROLLERS, _V1_FREEZER) if self.can_freeze else _V1_CONTROLLERS

    def group(self, *names: str) -> "V1Group":
        return V1Group(tuple(self.root.joinpath(c, self.name, *names) for c in self._controllers))

    def create(self, *names: str) -> "V1Group":
        group = self.group(*names)
        for path in group.paths:
            path.mkdir(parents=True, exist_ok=True)
        return group

    def children(self, *names: str) -> list[str]:
        found = {child for c in self._controllers for child in _children(self.root.joinpath(c, self.name, *names))}
        return sorted(found)


@dataclasses.dataclass(frozen=True)
class V1Group:
    """The same path in each controller's tree; the freezer's is the last one, where there is a freezer."""

    paths: Sequence[pathlib.Path]

    def _of(self, controller: str) -> pathlib.Path:
        return self.paths[_V1_CONTROLLERS.index(controller)]

    def limit(self, limits: resources.Resources) -> None:
        memory = self._of("memory")
        _write(memory / "memory.limit_in_bytes", str(limits.memory_bytes))
        swap = memory / "memory.memsw.limit_in_bytes"  # absent without swap accounting
        if swap.exists():
            _write(swap, str(limits.memory_bytes))
        _write(self._of("cpu") / "cpu.cfs_quota_us", str(int(limits.cpu_count * _CPU_PERIOD_US)))
        _write(self._of("pids") / "pids.max", str(limits.pids))

    def open_join(self) -> list[int]:
        # `tasks` and not `cgroup.procs`: moving one thread, oneself, needs no global lock, so it takes microseconds.
        return [os.open(path / "tasks", os.O_WRONLY | os.O_CLOEXEC) for path in self.paths]

    def pids(self) -> list[int]:
        # Of every tree: a process joins one after the other, and may be found half-way.
        return sorted({int(pid) for path in self.paths for pid in (path / "cgroup.procs").read_text().split()})

    def usage(self) -> resources.Usage:
        memory = self._of("memory")
        return resources.Usage(
            cpu_seconds=_number(self._of("cpuacct") / "cpuacct.usage") / 1e9,
            memory_bytes=_number(memory / "memory.usage_in_bytes"),
            memory_cache_bytes=_field(memory / "memory.stat", "total_inactive_file"),
            pids=_number(self._of("pids") / "pids.current"),
            oom_kills=_field(memory / "memory.oom_control", "oom_kill"),
        )

    @property
    def can_freeze(self) -> bool:
        return len(self.paths) > len(_V1_CONTROLLERS) and self._state.exists()

    @property
    def _state(self) -> pathlib.Path:
        return self.paths[-1] / "freezer.state"  # THAWED, FREEZING or FROZEN

    def freeze(self) -> None:
        _write(self._state, "FROZEN")

    def thaw(self) -> None:
        if self.can_freeze:
            _write(self._state, "THAWED")

    @property
    def is_frozen(self) -> bool:
        return self.can_freeze and self._state.read_text().strip() == "FROZEN"

    def remove(self) -> None:
        for path in self.paths:
            _remove_tree(path)


@dataclasses.dataclass(frozen=True)
class V2:
    """cgroup v2: one tree."""

    root: pathlib.Path
    name: str
    version: int = 2
    can_freeze: bool = True  # since Linux 5.2; what else we need (overlays in a user namespace) is of 5.11

    def group(self, *names: str) -> "V2Group":
        return V2Group(self.root.joinpath(self.name, *names))

    def create(self, *names: str) -> "V2Group":
        group = self.group(*names)
        # A controller must be passed on by every directory above (cgroups(7), "no internal processes": ours have none).
        at = self.root
        for part in (self.name, *names):
            enabled = (at / "cgroup.subtree_control").read_text().split()
            wanted = [f"+{c}" for c in _V2_CONTROLLERS if c not in enabled]
            if wanted:
                _write(at / "cgroup.subtree_control", " ".join(wanted))
            at = at / part
            at.mkdir(exist_ok=True)
        return group

    def children(self, *names: str) -> list[str]:
        return _children(self.root.joinpath(self.name, *names))


@dataclasses.dataclass(frozen=True)
class V2Group:
    """One directory."""

    path: pathlib.Path
    can_freeze: bool = True

    def limit(self, limits: resources.Resources) -> None:
        _write(self.path / "memory.max", str(limits.memory_bytes))
        swap = self.path / "memory.swap.max"  # absent without swap accounting
        if swap.exists():
            _write(swap, "0")
        _write(self.path / "cpu.max", f"{int(limits.cpu_count * _CPU_PERIOD_US)} {_CPU_PERIOD_US}")
        _write(self.path / "pids.max", str(limits.pids))

    def open_join(self) -> list[int]:
        return [os.open(self.path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)]

    def pids(self) -> list[int]:
        return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]

    def usage(self) -> resources.Usage:
        return resources.Usage(
            cpu_seconds=_field(self.path / "cpu.stat", "usage_usec") / 1e6,
            memory_bytes=_number(self.path / "memory.current"),
            memory_cache_bytes=_field(self.path / "memory.stat", "inactive_file"),
            pids=_number(self.path / "pids.current"),
            oom_kills=_field(self.path / "memory.events", "oom_kill"),
        )

    def freeze(self) -> None:
        _write(self.path / "cgroup.freeze", "1")

    def thaw(self) -> None:
        _write(self.path / "cgroup.freeze", "0")

    @property
    def is_frozen(self) -> bool:
        return _field(self.path / "cgroup.events", "frozen") == 1

    def remove(self) -> None:
        _remove_tree(self.path)
