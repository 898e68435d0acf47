"""What pid 1 owes the others: every child is waited for, and whoever cares learns how it ended.

reaper = Reaper()
reaper.start()                        # within the running loop
status = await reaper.watch(pid)      # the raw wait status; os.WIFEXITED and so on read it
"""

import asyncio
import collections
import ctypes
import os
import signal
from typing import Dict, Optional

PR_SET_CHILD_SUBREAPER = 36
#: Ends of children that nobody has asked for yet.
MAX_KEPT_STATUSES = 1024
#: Children taken in one go, so that a storm of them does not hold up the loop.
MAX_REAPED_AT_ONCE = 256

_libc = ctypes.CDLL(None, use_errno=True)


class Reaper:
    """Waits for all children of this process, adopted orphans included."""

    def __init__(self) -> None:
        self._watched: Dict[int, "asyncio.Future[int]"] = {}
        self._kept: "collections.OrderedDict[int, int]" = collections.OrderedDict()
        self._loop: Optional[asyncio.AbstractEventLoop] = None

    def start(self) -> None:
        """Begin; the loop must be running."""
        self._loop = asyncio.get_running_loop()
        if os.getpid() != 1:
            _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._loop.add_signal_handler(signal.SIGCHLD, self.reap)
        self.reap()

    def watch(self, pid: int) -> "asyncio.Future[int]":
        """The raw wait status of a child, once it has ended; also when that was before this call.

        The future is done in the same moment as the pid is free for others: while it is not, the pid may be signalled.
        """
        assert self._loop is not None, "the reaper has not been started"
        if pid in self._watched:
            return self._watched[pid]
        future: "asyncio.Future[int]" = self._loop.create_future()
        if pid in self._kept and not _is_child(pid):
            future.set_result(self._kept.pop(pid))
        else:
            # A kept status, if any, is that of an earlier process with this number.
            self._kept.pop(pid, None)
            self._watched[pid] = future
        return future

    def reap(self) -> None:
        """Take every child that has ended."""
        for _ in range(MAX_REAPED_AT_ONCE):
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self._ended(pid, status)
        if self._loop is not None:
            self._loop.call_soon(self.reap)

    def _ended(self, pid: int, status: int) -> None:
        future = self._watched.pop(pid, None)
        if future is not None:
            if not future.done():
                future.set_result(status)
            return
        self._kept[pid] = status
        if len(self._kept) > MAX_KEPT_STATUSES:
            self._kept.popitem(last=False)


def _is_child(pid: int) -> bool:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
