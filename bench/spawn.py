"""Starts a program and takes the time until its first output; the same for every contender that is a command."""

import contextlib
import os
import select
import signal
import tempfile
import time
from collections.abc import Sequence

from bench.contenders import contract

TIMEOUT_S = 60.0
_STDERR_SHOWN = 400


def time_to_output(argv: Sequence[str], expected: bytes, timeout_s: float = TIMEOUT_S) -> int:
    """Nanoseconds from before the program was started until its first byte was read. It has ended on return.

    `posix_spawn`, not `subprocess`: it does without a fork of the harness, whose size would count otherwise.
    """
    deadline = time.monotonic() + timeout_s
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with tempfile.TemporaryFile() as stderr, open("/dev/null", "rb") as stdin:
        actions = [
            (os.POSIX_SPAWN_DUP2, stdin.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_DUP2, stderr.fileno(), 2),
        ]
        pid = 0
        try:
            start = time.perf_counter_ns()
            # A group of its own: a timeout ends it and its children, and Ctrl-C does not reach it before us.
            pid = os.posix_spawn(argv[0], list(argv), os.environ, file_actions=actions, setpgroup=0)
            os.close(writer)
            writer = -1
            output = _read(reader, deadline)
            end = time.perf_counter_ns()
            output += _rest(reader, output, deadline)
            status = _wait(pid, deadline)
            pid = 0
        finally:
            _close(reader, writer)
            if pid:
                _kill(pid)
        if status != 0 or output.strip() != expected:
            stderr.seek(0)
            said = stderr.read(_STDERR_SHOWN).decode(errors="replace").strip()
            raise contract.MeasureError(f"{argv[0]} ended with {status} and {output[:80]!r}; {said}")
        return end - start


def _read(reader: int, deadline: float) -> bytes:
    ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
    if not ready:
        raise contract.MeasureError("no output in time")
    return os.read(reader, 4096)


def _rest(reader: int, first: bytes, deadline: float) -> bytes:
    """What follows the first output, to the end of the stream, in bounds."""
    rest, chunk = b"", first
    while chunk and len(rest) < 65536:
        chunk = _read(reader, deadline)
        rest += chunk
    return rest


def _wait(pid: int, deadline: float) -> int:
    """Exit status, by a pidfd: so that the wait has an end."""
    fd = os.pidfd_open(pid)
    try:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise contract.MeasureError("it printed, and then did not end in time")
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _kill(pid: int) -> None:
    # Safety: the group was made by us for this child, which has not been waited for, so its id is not another's.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _close(*fds: int) -> None:
    for fd in fds:
        if fd >= 0:
            os.close(fd)
