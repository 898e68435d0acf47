"""The end of a control group: what lives in it is killed, and the kernel is given the time it takes to let go of it."""

import asyncio
import contextlib
import errno
import os
import signal

from glovebox_server.linux import cgroups

#: A process that dies in a group which has used up its processor time waits for its next share of it, as any other does.
_TIMEOUT_S = 30.0
_FIRST_WAIT_S, _LAST_WAIT_S = 0.001, 0.05


async def remove(group: cgroups.Group) -> None:
    """Kill everything in a group of ours, and remove it; nothing happens when it is gone.

    Raises OSError EBUSY when that takes too long: try again later, for it is still there.
    """
    loop = asyncio.get_running_loop()
    deadline, wait_s = loop.time() + _TIMEOUT_S, _FIRST_WAIT_S
    while True:
        _kill_members(group)
        try:
            group.remove()
            return
        except OSError as error:
            if error.errno != errno.EBUSY or loop.time() > deadline:
                raise
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, _LAST_WAIT_S)


def _kill_members(group: cgroups.Group) -> None:
    with contextlib.suppress(FileNotFoundError):
        for pid in group.pids():
            # Safety: these pids are members of a control group that we made for this one sandbox (or zygote), and nothing
            # else ever joins it. Should one end and its number be taken in the microseconds between, it is no longer
            # listed: that is looked up once the pidfd holds whoever has the number now.
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                try:
                    if pid in group.pids():
                        signal.pidfd_send_signal(fd, signal.SIGKILL)
                finally:
                    os.close(fd)
