"""Processes of the host, told apart for good: by a pidfd while we hold one, by pid and start time on paper."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Identity:
    """A process that cannot be taken for a later one with the same pid."""

    pid: int
    start_time: int  # clock ticks after boot (proc_pid_stat(5), field 22)


def identify(pid: int) -> Identity:
    """Who has this pid now. Raises ProcessLookupError."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return Identity(pid, int(fields[19]))


def open_pidfd(identity: Identity) -> int:
    """A pidfd (pidfd_open(2)) of exactly this process. Raises ProcessLookupError when it is gone."""
    fd = os.pidfd_open(identity.pid)
    # Safety: the pidfd pins whoever has the pid now; comparing the start time afterwards proves it is ours.
    try:
        same = identify(identity.pid) == identity
    except ProcessLookupError:
        same = False
    if not same:
        os.close(fd)
        raise ProcessLookupError(f"process {identity.pid} is not the one that was meant")
    return fd
