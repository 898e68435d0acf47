"""Finds, removes and tells what was left behind: processes, mounts, cgroups. A clean run leaves nothing to find."""

import contextlib
import ctypes
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Iterable

from bench import groups, server

_PR_SET_CHILD_SUBREAPER = 36
_END_TIMEOUT_S = 15.0


def adopt_orphans() -> None:
    """From now on what our children leave behind becomes our child (prctl(2)), so that it can be found and ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl PR_SET_CHILD_SUBREAPER")


def sweep(work: pathlib.Path, subject: server.Server) -> list[str]:
    """After all contenders are closed: remove what is left, and name it."""
    found = end_children()
    found += _unmount_below(work)
    found += _remove_groups(groups.find_groups(subject.created), tell=True)
    # Parents of the groups of one server, or of the OCI runtimes', empty by now: they are made, and kept, by design.
    own = groups.find_groups([f"glovebox-bench-{os.getpid()}", *subject.groups])
    found += _remove_groups(own, tell=False)
    return found


def end_children() -> list[str]:
    """End every process below us, by its id, until there is none; name those that were alive."""
    found: list[str] = []
    told: set[int] = set()
    deadline = time.monotonic() + _END_TIMEOUT_S
    while children := groups.descendants(os.getpid()) - {os.getpid()}:
        for pid in children:
            name = _name_if_alive(pid)
            if name is None:
                continue
            found += [f"process {pid} ({name})"] if pid not in told else []
            told.add(pid)
            # Safety: it descends from this process, and was seen alive a moment ago by its name.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        if time.monotonic() > deadline:
            return [*found, "some processes could not be ended"]
        time.sleep(0.01)
    return found


def _name_if_alive(pid: int) -> str | None:
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, state = stat.partition("(")[2].rpartition(")")[0], stat.rpartition(")")[2].split()[0]
    return None if state in "ZX" else name


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _unmount_below(work: pathlib.Path) -> list[str]:
    points = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    left = sorted((point for point in points if point.startswith(f"{work}/")), key=len, reverse=True)
    for point in left:
        # Safety: it lies below a directory that this run made; nothing else mounts there.
        subprocess.run(["umount", "--lazy", point], capture_output=True, timeout=20, check=False)
    return [f"mount {point}" for point in left]


def _remove_groups(left: Iterable[pathlib.Path], *, tell: bool) -> list[str]:
    found = []
    for group in left:
        for parent, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(parent)
                error = None
            except OSError as refused:
                error = refused
            if tell or error is not None:
                found.append(f"cgroup {parent}" + (f" (stays: {error.strerror})" if error else ""))
    return found
