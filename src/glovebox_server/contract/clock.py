"""Time as a dependency, so that tests own it."""

import datetime as dt
from typing import Protocol


class Clock(Protocol):
    """Wall time for people, monotonic time for measuring, and waiting."""

    def now(self) -> dt.datetime:
        """The time of day, UTC, with its zone."""

    def monotonic(self) -> float:
        """Seconds that only go forward."""

    async def sleep(self, seconds: float) -> None: ...
