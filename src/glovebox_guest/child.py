"""Between fork and the user's code: a child sheds everything of the agent's and becomes the user.

    pid = child.fork()
    if pid == 0:
        try:
            child.enter(user, keep_fds=())
            ...                             # exec, or the user's code
        finally:
            os._exit(126)                   # never back into the agent's loop

The agent has one thread, so anything may be done after fork.
"""

import _signal
import contextlib
import ctypes
import fcntl
import os
import signal
import termios
from typing import Collection, Optional

from glovebox_guest import users

UMASK = 0o022
OOM_SCORE = b"500"
PR_SET_DUMPABLE = 4
#: Where to stop closing descriptors one by one when /proc is not there to name them.
FALLBACK_MAX_DESCRIPTORS = 65536

_libc = ctypes.CDLL(None, use_errno=True)
_EVERY_SIGNAL = signal.valid_signals()
#: Nobody here handles or ignores real-time signals; asking about each would take longer than the fork.
_RESET_SIGNALS = sorted(
    int(number)
    for number in _EVERY_SIGNAL
    if number < signal.SIGRTMIN and number not in (signal.SIGKILL, signal.SIGSTOP)
)


def fork() -> int:
    """fork(2) with every signal blocked, so that none meets the agent's handlers in the child.

    The child must call `enter`, which unblocks them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _EVERY_SIGNAL)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pid


def enter(
    user: users.User,
    *,
    keep_fds: Collection[int] = (),
    new_session: bool = True,
    controlling_tty: Optional[int] = None,
    dumpable: bool = True,
) -> None:
    """Become `user` in a session of its own, with nothing of the agent's. Call it in the child only.

    Descriptors 0, 1, 2 and `keep_fds` stay open; put the standard ones in place first. `controlling_tty` is the
    descriptor of a terminal, among those that stay. `dumpable`: leave it True when no exec follows, so that the process
    owns its /proc/self; exec sets it anyway. Raises OSError when the user's identity cannot be taken: then exit.
    """
    _reset_signals()
    if new_session:
        os.setsid()
    _shed_priority()
    if controlling_tty is not None:
        fcntl.ioctl(controlling_tty, termios.TIOCSCTTY, 0)
    _close_all_but({0, 1, 2, *keep_fds})
    os.umask(UMASK)
    _become(user)
    if dumpable:
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for number in _RESET_SIGNALS:
        if _signal.getsignal(number) != _signal.SIG_DFL:  # not `signal`: it makes an enum of each number
            _signal.signal(number, _signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _shed_priority() -> None:
    """When memory runs out, what the agent runs goes first, and the agent, which can tell of it, last."""
    # Raising one's own score needs no privilege, and can be taken back only to what it was. The agent is not dumpable,
    # which gives its /proc/self to the host's root (proc(5)): the child must be, to write there.
    _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
        try:
            os.write(descriptor, OOM_SCORE)
        finally:
            os.close(descriptor)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)


def _close_all_but(keep: Collection[int]) -> None:
    try:
        descriptors = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        highest = min(os.sysconf("SC_OPEN_MAX"), FALLBACK_MAX_DESCRIPTORS)
        descriptors = list(range(highest))
    for descriptor in descriptors:
        if descriptor not in keep:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _become(user: users.User) -> None:
    """Take the user's ids for good: real, effective and saved, groups first."""
    same = os.getresuid() == (user.uid,) * 3 and os.getresgid() == (user.gid,) * 3
    try:
        os.setgroups(user.groups)
    except PermissionError:
        # A user namespace with one id forbids it, and then there is nobody else to become.
        if not same:
            raise
    if not same:
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)


def kill_all() -> None:
    """Kill every process that this one is responsible for, as its last act."""
    if os.getpid() == 1:
        # Safety: as pid 1 of its namespace, "all processes" are the sandbox's, and not this one (kill(2)).
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)
        return
    with contextlib.suppress(OSError):
        for thread in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{thread}/children", "rb") as file:
                children = [int(pid) for pid in file.read().split()]
            for pid in children:
                # Each is the leader of its session and group, and what it started is usually in it.
                with contextlib.suppress(OSError):
                    os.killpg(pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
