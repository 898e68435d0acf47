"""Acts on sandboxes when they are due: one task, a heap of deadlines, no polling.

It knows of no reasons: it calls `act` with the id when the time has come, and again, ever later, as long as that fails.
"""

import asyncio
import heapq
from collections.abc import Awaitable, Callable

import structlog

from glovebox_server.contract import clock
from glovebox_server.model import ids

_log = structlog.get_logger(__name__)

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_AT_ONCE = 32  # a thousand sandboxes may be due in one instant


class Reaper:
    """Deadlines by sandbox id, in monotonic time: a step of the host's wall clock ends nobody."""

    def __init__(self, clock: clock.Clock, act: Callable[[ids.SandboxId], Awaitable[None]]) -> None:
        self._clock = clock
        self._act = act
        self._due: dict[ids.SandboxId, float] = {}
        self._heap: list[tuple[float, ids.SandboxId]] = []  # stale entries stay until they come up
        self._failures: dict[ids.SandboxId, int] = {}
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._loop: asyncio.Task[None] | None = None
        self._acting: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin. Deadlines that have passed are acted on at once."""
        self._loop = asyncio.create_task(self._run(), name="reaper")

    def schedule(self, sandbox_id: ids.SandboxId, deadline: float) -> None:
        """Act then, and not at an earlier or later time that was said before."""
        if self._due.get(sandbox_id) == deadline:
            return
        self._due[sandbox_id] = deadline
        heapq.heappush(self._heap, (deadline, sandbox_id))
        if self._heap[0] == (deadline, sandbox_id):
            self._changed.set()
        if len(self._heap) > 64 + 4 * len(self._due):  # mostly stale: timeouts that were moved again and again
            self._heap = [(due, due_id) for due_id, due in self._due.items()]
            heapq.heapify(self._heap)

    def retry(self, sandbox_id: ids.SandboxId) -> None:
        """What was tried has failed: act again in a while."""
        failures = self._failures.get(sandbox_id, 0)
        self._failures[sandbox_id] = failures + 1
        wait_s = min(_FIRST_RETRY_S * 2 ** min(failures, 10), _LAST_RETRY_S)
        self.schedule(sandbox_id, self._clock.monotonic() + wait_s)

    def cancel(self, sandbox_id: ids.SandboxId) -> None:
        """It has ended: never act."""
        self._due.pop(sandbox_id, None)
        self._failures.pop(sandbox_id, None)

    async def close(self) -> None:
        """Stop, after what has begun is done."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.gather(*self._acting, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            for sandbox_id in self._take_due():
                task = asyncio.create_task(self._try(sandbox_id), name=f"reap {sandbox_id}")
                self._acting.add(task)
                task.add_done_callback(self._acting.discard)
            await self._wait()

    def _take_due(self) -> list[ids.SandboxId]:
        now, due = self._clock.monotonic(), []
        while self._heap and (self._heap[0][0] <= now or self._is_stale(self._heap[0])):
            entry = heapq.heappop(self._heap)
            if not self._is_stale(entry):
                del self._due[entry[1]]
                due.append(entry[1])
        return due

    def _is_stale(self, entry: tuple[float, ids.SandboxId]) -> bool:
        return self._due.get(entry[1]) != entry[0]

    async def _wait(self) -> None:
        """Until the next deadline, or until an earlier one is set."""
        if not self._heap:
            await self._changed.wait()
            return
        timer = asyncio.ensure_future(self._clock.sleep(max(0.0, self._heap[0][0] - self._clock.monotonic())))
        changed = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((timer, changed), return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
            changed.cancel()
            await asyncio.gather(timer, changed, return_exceptions=True)

    async def _try(self, sandbox_id: ids.SandboxId) -> None:
        async with self._slots:
            try:
                await self._act(sandbox_id)
            except Exception as error:  # whatever it was, the sandbox must still end
                _log.error("sandbox not reaped", sandbox_id=sandbox_id, error=repr(error)[:500])
                self.retry(sandbox_id)
