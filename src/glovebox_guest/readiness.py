"""Waiting for descriptors without threads, and letting the others have their turn."""

import asyncio
from typing import Optional


class Waiter:
    """One task's waiting for one descriptor; another task may end it early."""

    def __init__(self) -> None:
        self._ready: Optional["asyncio.Future[bool]"] = None

    async def readable(self, descriptor: int, timeout_s: Optional[float] = None) -> bool:
        """Wait until a read would not block; False when woken, or the time is up, first."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_reader(descriptor, self._settle, True)
        timer = None if timeout_s is None else loop.call_later(max(0.0, timeout_s), self._settle, False)
        try:
            return await self._ready
        finally:
            loop.remove_reader(descriptor)
            if timer is not None:
                timer.cancel()

    async def writable(self, descriptor: int) -> bool:
        """Wait until a write would not block; False when woken first."""
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        loop.add_writer(descriptor, self._settle, True)
        try:
            return await self._ready
        finally:
            loop.remove_writer(descriptor)

    def wake(self) -> None:
        """End the wait, if there is one."""
        self._settle(False)

    def _settle(self, value: bool) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(value)


class Breather:
    """For long work in small steps: gives way to the loop whenever it has had it for a while."""

    def __init__(self, share_s: float = 0.004) -> None:
        self._loop = asyncio.get_running_loop()
        self._share_s = share_s
        self._since = self._loop.time()

    async def breathe(self) -> None:
        """Call between two steps."""
        if self._loop.time() - self._since > self._share_s:
            await asyncio.sleep(0)
            self._since = self._loop.time()
