"""What is done now and then: measure the sandboxes for the metrics, forget those that ended long ago."""

import asyncio
import datetime as dt

import structlog

from glovebox_server import telemetry as metrics
from glovebox_server.contract import clock, store
from glovebox_server.manager import lives
from glovebox_server.model import lifecycle

_log = structlog.get_logger(__name__)

_MEASURE_EVERY_S = 15.0
_FORGET_EVERY = 240  # measurements: once an hour
_AT_ONCE = 8


class Housekeeping:
    """One task, of which nothing else depends."""

    def __init__(
        self,
        lives: lives.Lives,
        store: store.Store,
        clock: clock.Clock,
        telemetry: metrics.Telemetry,
        keep_records: dt.timedelta,
    ) -> None:
        self._lives = lives
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._keep_records = keep_records
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, with a round at once."""
        self._task = asyncio.create_task(self._run(), name="housekeeping")

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        rounds = 0
        while True:
            try:
                await self.measure()
                if rounds % _FORGET_EVERY == 0:
                    await self._store.forget_sandboxes(self._clock.now() - self._keep_records)
            except Exception as error:
                _log.error("housekeeping failed", error=repr(error)[:500])
            rounds += 1
            await self._clock.sleep(_MEASURE_EVERY_S)

    async def measure(self) -> None:
        """Measure every sandbox that runs or is paused once, a few at a time."""
        slots = asyncio.Semaphore(_AT_ONCE)

        async def one(life: lives.Life) -> int:
            async with slots:
                usage = await self._lives.measure(life)
            return usage.memory_bytes if usage is not None else 0

        settled = (lifecycle.State.RUNNING, lifecycle.State.PAUSED)
        measured = [life for life in self._lives if life.box.state in settled]
        self._telemetry.memory(sum(await asyncio.gather(*(one(life) for life in measured))))
