"""Who is still there: the client that may leave, and the silence that must be broken before a proxy gives up.

Both are made for the middle of a streamed answer: `watched(receive)` ends what is inside it when the client
disconnects, `Silence` speaks up whenever nothing was said for a while.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Self

from starlette import requests, types


@contextlib.asynccontextmanager
async def watched(receive: types.Receive, upload: Callable[[], Awaitable[None]] | None = None) -> AsyncIterator[None]:
    """Within: the client's leaving ends the block with ClientDisconnect.

    `upload` reads the request's body on the side; without it, it has been read. It is cancelled at the block's end.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        with contextlib.suppress(requests.ClientDisconnect):
            if upload is not None:
                await upload()
            while (await receive())["type"] != "http.disconnect":
                pass
        left = True
        task.cancel()

    # While the watcher runs the task stands at an await inside the block: there the cancellation arrives.
    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else may have cancelled too: that one counts.
        if left and task.uncancel() == 0:
            raise requests.ClientDisconnect from None
        raise
    finally:
        watcher.cancel()
        await asyncio.wait((watcher,))


class Silence:
    """Within: `speak` is called whenever `heard` was not, for so many seconds."""

    def __init__(self, seconds: float, speak: Callable[[], Awaitable[None]]) -> None:
        self._seconds = seconds
        self._speak = speak
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._speaking: asyncio.Future[None] | None = None

    def heard(self) -> None:
        """Something was said."""
        self._last = self._loop.time()

    async def __aenter__(self) -> Self:
        self._timer = self._loop.call_later(self._seconds, self._due)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._speaking is not None and not self._speaking.done():
            self._speaking.cancel()
            await asyncio.wait((self._speaking,))

    def _due(self) -> None:
        left = self._last + self._seconds - self._loop.time()
        if left <= 0 and (self._speaking is None or self._speaking.done()):
            self.heard()
            self._speaking = asyncio.ensure_future(self._said())
            left = self._seconds
        self._timer = self._loop.call_later(max(left, 0.05), self._due)

    async def _said(self) -> None:
        # A client that cannot be written to is found out by the stream itself.
        with contextlib.suppress(OSError):
            await self._speak()
