"""The real clock."""

import asyncio
import datetime as dt
import time


class SystemClock:
    """The host's clocks and the event loop's timer; implements contract.clock.Clock."""

    def now(self) -> dt.datetime:
        return dt.datetime.now(dt.UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
