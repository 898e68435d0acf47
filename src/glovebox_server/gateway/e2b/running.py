"""One program that a client started: its events passed on while the client listens, its deadline kept when it has left.

The deadline is the process's, unlike the client's leaving. So a task of its own follows the process; the request only
waits for it, and may be cancelled at any moment: before the pid is known, or just when the time is over.

    listening ──client left, deadline set──► detached ──┬─► process ended
        │                                               └─► deadline: killed
        └──client left, no deadline──► unsubscribed; the process goes on
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers

_log = structlog.get_logger(__name__)

_SIGKILL = 9
_KILLED_WITHIN_S = 1.0
#: The loop holds its tasks only weakly.
_following: set[asyncio.Task[None]] = set()

Listener = Callable[[guest.ProcessEvent], Awaitable[None]]


async def follow(
    found: guest.Guest, events: AsyncIterator[guest.ProcessEvent], timeout_s: float | None, listener: Listener
) -> None:
    """Tell `listener` of a process that `events` starts, until its end. TimeoutError at the deadline, which kills it."""
    deadline = None if timeout_s is None else asyncio.get_running_loop().time() + timeout_s
    process = _Process(found, events, deadline, listener)
    task = asyncio.create_task(process.follow())
    _following.add(task)
    task.add_done_callback(process.done)
    try:
        async with asyncio.timeout_at(deadline):
            await asyncio.shield(task)
    except TimeoutError:
        process.detach()
        # Not longer: a guest that has not even said the pid would hold the answer back.
        await asyncio.wait((task,), timeout=_KILLED_WITHIN_S)
        raise
    except asyncio.CancelledError:
        process.detach()
        if deadline is None:
            task.cancel()
            await asyncio.wait((task,))
        raise


class _Process:
    def __init__(
        self,
        found: guest.Guest,
        events: AsyncIterator[guest.ProcessEvent],
        deadline: float | None,
        listener: Listener,
    ) -> None:
        self._guest, self._events, self._deadline = found, events, deadline
        self._listener: Listener | None = listener

    def detach(self) -> None:
        """Nobody listens any more. Errors of a process that nobody hears of are nobody's."""
        self._listener = None

    def done(self, task: "asyncio.Task[None]") -> None:
        _following.discard(task)
        error = None if task.cancelled() else task.exception()
        told = errors.GloveboxError | TimeoutError | answers.CutError
        if error is not None and self._listener is None and not isinstance(error, told):
            _log.error("process follower failed", exc_info=error)

    async def follow(self) -> None:
        async with closing(self._events):
            # Not under the deadline: what is being started can only be killed when its pid is known.
            first = await anext(self._events, None)
            try:
                async with asyncio.timeout_at(self._deadline):
                    if first is not None:
                        await self._tell(first)
                    async for event in self._events:
                        await self._tell(event)
            except TimeoutError:
                if isinstance(first, guest.Started):
                    await self._kill(first.pid)
                raise

    async def _tell(self, event: guest.ProcessEvent) -> None:
        if self._listener is not None:
            await self._listener(event)

    async def _kill(self, pid: int) -> None:
        with contextlib.suppress(errors.GuestError):  # it has just ended by itself
            await self._guest.signal_process(pid, _SIGKILL)


@contextlib.asynccontextmanager
async def closing(events: AsyncIterator[object]) -> AsyncIterator[None]:
    """Within; at its end the guest's iterator is closed, which ends its channel."""
    try:
        yield
    finally:
        if (aclose := getattr(events, "aclose", None)) is not None:
            await aclose()
