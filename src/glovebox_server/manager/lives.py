"""The sandboxes that are not killed, in memory, and the only code that moves one through its lifecycle.

Every change of a sandbox happens under its own lock, is written to the store, and only then becomes what `Life.box`
says. A sandbox is in here from before it is made, while no row speaks of it, until after its last row is written.
"""

import asyncio
import collections
import dataclasses
import datetime as dt
from collections.abc import Iterator
from typing import Any

import structlog

from glovebox_server import audit as audit_trail
from glovebox_server import telemetry as metrics
from glovebox_server.contract import clock, guest, node, store
from glovebox_server.manager import journal
from glovebox_server.model import ids, lifecycle, resources, sandbox

_log = structlog.get_logger(__name__)

_REMEMBERED = 200  # journals of sandboxes that have ended


@dataclasses.dataclass
class Activity:
    """When the guest was last asked for anything, and how many calls are open."""

    last: float
    calls: int = 0


@dataclasses.dataclass(eq=False)
class Life:
    """One sandbox that is not killed yet."""

    box: sandbox.Sandbox
    deadline: float  # `box.end_at` on the monotonic clock; in the past while it is paused
    journal: journal.Journal
    activity: Activity
    lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    ended: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)  # its present time of running is over
    waking: bool = False  # paused still, but it has its place among those that run
    guest_face: guest.Guest | None = None  # audited; made when first asked for
    usage: resources.Usage | None = None  # when last measured


class Lives:
    """All of them."""

    def __init__(
        self,
        store: store.Store,
        node: node.Node,
        clock: clock.Clock,
        audit: audit_trail.AuditLog,
        telemetry: metrics.Telemetry,
    ) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._audit = audit
        self._telemetry = telemetry
        self._lives: dict[ids.SandboxId, Life] = {}
        self._past: collections.OrderedDict[ids.SandboxId, journal.Journal] = collections.OrderedDict()

    def __iter__(self) -> Iterator[Life]:
        return iter(tuple(self._lives.values()))

    def get(self, sandbox_id: ids.SandboxId) -> Life | None:
        """The one with this id, in whatever state."""
        return self._lives.get(sandbox_id)

    def journal(self, sandbox_id: ids.SandboxId) -> journal.Journal | None:
        """Its journal, also when it ended not long ago."""
        life = self._lives.get(sandbox_id)
        return life.journal if life is not None else self._past.get(sandbox_id)

    def open(self, box: sandbox.Sandbox) -> Life:
        """Take one in. From here on it counts against quotas."""
        now = self._clock.monotonic()
        life = Life(
            box=box,
            deadline=now + (box.end_at - self._clock.now()).total_seconds(),
            journal=journal.Journal(self._clock),
            activity=Activity(last=now),
        )
        self._lives[box.sandbox_id] = life
        self._telemetry.moved(None, box.state)
        return life

    def by_place(self) -> tuple[list[sandbox.Sandbox], list[sandbox.Sandbox]]:
        """Those that have a place among the running ones, and those that are paused and have none."""
        active: list[sandbox.Sandbox] = []
        paused: list[sandbox.Sandbox] = []
        for life in self._lives.values():
            has_none = life.box.state is lifecycle.State.PAUSED and not life.waking
            (paused if has_none else active).append(life.box)
        return active, paused

    async def write(self, life: Life, *, timeout_s: float | None = None, **changes: Any) -> None:
        """Change what is not the state; `timeout_s` lets it end so long from now. The caller holds the lock."""
        deadline = life.deadline
        if timeout_s is not None:
            deadline = self._clock.monotonic() + timeout_s
            changes["end_at"] = self._clock.now() + dt.timedelta(seconds=timeout_s)
        box = dataclasses.replace(life.box, **changes)
        await self._store.put_sandbox(box)
        before, life.box, life.deadline = life.box.state, box, deadline
        if before is not box.state:
            self._telemetry.moved(before, box.state)
            life.journal.add(f"sandbox {box.state}", reason=box.end_reason)

    async def advance(self, life: Life, event: lifecycle.Event, **changes: Any) -> None:
        """Change the state, and what `write` can. The caller holds the lock. ConflictError when the state forbids it."""
        await self.write(life, state=lifecycle.advance(life.box.state, event), **changes)

    async def end(self, life: Life, reason: str, detail: str | None = None) -> None:
        """End it and leave nothing; nothing happens when it has ended. May be called again after it failed.

        The caller holds the lock.
        """
        if life.box.state is lifecycle.State.KILLED:
            return
        if life.box.state not in (lifecycle.State.CREATING, lifecycle.State.KILLING):
            await self._announce_end(life, reason, detail)
        life.ended.set()
        await self._node.destroy(life.box.sandbox_id)
        if life.box.state is lifecycle.State.CREATING:
            await self._finish(life, lifecycle.Event.FAILED, reason)
        else:
            await self._finish(life, lifecycle.Event.DESTROYED, life.box.end_reason or reason)

    async def _announce_end(self, life: Life, reason: str, detail: str | None) -> None:
        await self.measure(life)
        life.journal.add("sandbox ends", level="error" if reason == "died" else "info", reason=reason, detail=detail)
        # The end of a paused one was that of its running, which may be long ago; its record is kept from now on.
        timeout_s = 0 if life.box.state is lifecycle.State.PAUSED else None
        try:
            await self.advance(life, lifecycle.Event.KILL, timeout_s=timeout_s, end_reason=reason)
        except Exception as error:
            # The store is broken (the disk is full?). The sandbox must end all the same; should the server die before
            # that can be written, the next one finds a running sandbox that is no more, and calls it lost.
            _log.error("sandbox state not stored", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])
            killing = lifecycle.advance(life.box.state, lifecycle.Event.KILL)
            self._telemetry.moved(life.box.state, killing)
            life.box = dataclasses.replace(life.box, state=killing, end_reason=reason)

    async def _finish(self, life: Life, event: lifecycle.Event, reason: str) -> None:
        if life.box.state is not lifecycle.State.CREATING:
            await self.advance(life, event, end_reason=reason)
        else:  # it never ran, and so has no row: there is nothing to close
            self._telemetry.moved(life.box.state, lifecycle.State.KILLED)
            life.box = dataclasses.replace(life.box, state=lifecycle.advance(life.box.state, event))
        sandbox_id = life.box.sandbox_id
        del self._lives[sandbox_id]
        self._past[sandbox_id] = life.journal
        while len(self._past) > _REMEMBERED:
            self._past.popitem(last=False)
        self._telemetry.ended(reason)
        _log.info("sandbox ended", sandbox_id=sandbox_id, reason=reason)
        self._audit_end(life, reason)

    def _audit_end(self, life: Life, reason: str) -> None:
        usage = None if life.usage is None else dataclasses.asdict(life.usage)
        lived = self._clock.now() - life.box.started_at
        record = audit_trail.Record(
            "sandbox.end",
            sandbox_id=life.box.sandbox_id,
            user_id=life.box.key_id,
            duration_ms=lived.total_seconds() * 1000,
            resource_usage=usage,
            detail={"reason": reason},
        )
        try:
            self._audit.record(record)
        except Exception as error:  # what has ended has ended
            _log.error("sandbox end not audited", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])

    async def measure(self, life: Life) -> resources.Usage | None:
        """What it uses now, noted; None when it cannot be measured any more."""
        try:
            usage = await self._node.usage(life.box.sandbox_id)
        except Exception as error:  # it may be dying under our hands; a number is not worth more than its end
            _log.debug("sandbox not measured", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])
            return None
        self._telemetry.used(usage, life.usage)
        life.usage = usage
        return usage
