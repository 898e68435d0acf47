"""What takes the kernel a while to do to a control group: to freeze what lives in it, to let go of it at its end."""

import asyncio
import contextlib
import errno
import os
import signal
from collections.abc import Callable

from glovebox import errors
from glovebox_server.linux import cgroups

#: A process that dies in a group which has used up its processor time waits for its next share of it, as any other does.
_TIMEOUT_S = 30.0
_FREEZE_TIMEOUT_S = 10.0
_FIRST_WAIT_S, _LAST_WAIT_S = 0.001, 0.05


async def freeze(group: cgroups.Group, given_up: Callable[[], bool]) -> None:
    """Return when all that lives in a group of ours stands still, or `given_up` says that it is to end instead.

    Raises CapacityError when it takes too long; it goes on then.
    """
    loop = asyncio.get_running_loop()
    deadline, wait_s = loop.time() + _FREEZE_TIMEOUT_S, _FIRST_WAIT_S
    while not given_up():
        # Safety: nothing but one sandbox ever joins this group. That it is frozen is undone by `thaw`, and before it is
        # removed (`let_die`), as what is frozen could not die.
        group.freeze()
        if group.is_frozen:
            return
        if loop.time() > deadline:
            group.thaw()
            raise errors.CapacityError(f"the sandbox did not stand still within {_FREEZE_TIMEOUT_S:.0f} s")
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LAST_WAIT_S)


def let_die(group: cgroups.Group) -> None:
    """Thaw a group whose process 1 is killed already; in a frozen one nothing runs again before it dies."""
    with contextlib.suppress(FileNotFoundError):
        if group.is_frozen:
            _kill_members(group)
        group.thaw()


async def remove(group: cgroups.Group) -> None:
    """Kill everything in a group of ours, and remove it; nothing happens when it is gone.

    Raises OSError EBUSY when that takes too long: try again later, for it is still there.
    """
    loop = asyncio.get_running_loop()
    deadline, wait_s = loop.time() + _TIMEOUT_S, _FIRST_WAIT_S
    while True:
        _kill_members(group)
        try:
            with contextlib.suppress(FileNotFoundError):
                group.thaw()  # what is frozen cannot die
            group.remove()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or loop.time() > deadline:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LAST_WAIT_S)


def _kill_members(group: cgroups.Group) -> None:
    with contextlib.suppress(FileNotFoundError), contextlib.ExitStack() as stack:
        fds = {}
        for pid in group.pids():
            with contextlib.suppress(ProcessLookupError):
                fds[pid] = os.pidfd_open(pid)
                stack.callback(os.close, fds[pid])
        # Safety: these pids are members of a control group that we made for this one sandbox (or zygote), and nothing
        # else ever joins it. Should one have ended and its number been taken in the microseconds between, it is no longer
        # listed: that is looked up once the pidfds hold whoever has the numbers now.
        for pid in set(group.pids()).intersection(fds):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fds[pid], signal.SIGKILL)
