"""Empty network namespaces, made a little ahead of need: the slowest single step of a sandbox's start.

Each is used by one sandbox and never again. When there is none ready (a rush, a busy zygote), the sandbox makes its own.
"""

import asyncio
import collections
import contextlib
import os

from glovebox import errors
from glovebox_server.runtimes.namespace import zygotes

_AHEAD = 8
#: How long it must be quiet before new ones are made: sandboxes that are wanted now come first, until their first results.
_QUIET_S = 0.03


class Networks:
    """The namespaces of one zygote."""

    def __init__(self, zygote: zygotes.Zygote) -> None:
        self._zygote = zygote
        self._ready: collections.deque[int] = collections.deque()
        self._last_taken = 0.0
        self._filling: asyncio.Task[None] | None = None

    def take(self) -> int | None:
        """A descriptor of a fresh network namespace, loopback up, which the caller closes; None when none is ready."""
        self._last_taken = asyncio.get_running_loop().time()
        if self._filling is None or self._filling.done():
            self._filling = asyncio.create_task(self._fill())
        return self._ready.popleft() if self._ready else None

    async def fill(self) -> None:
        """Make the first ones ready."""
        await self._fill()

    async def close(self) -> None:
        """Stop, and let go of all that are ready."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        while self._ready:
            os.close(self._ready.pop())

    async def _fill(self) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(errors.CapacityError, errors.SandboxGoneError):
            while len(self._ready) < _AHEAD:
                quiet = loop.time() - self._last_taken
                if quiet < _QUIET_S:
                    await asyncio.sleep(_QUIET_S - quiet)
                    continue
                self._ready.append(await self._zygote.network_namespace())
