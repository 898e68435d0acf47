"""Pausing and resuming: in which order the store, the connections and the node hear of it, and how a half is undone.

    pause     store: pausing ─▶ connections are cut ─▶ node: link let go, frozen ─▶ audit ─▶ store: paused
    resume    store: resuming ─▶ node: thawed, the agent answers ─▶ audit ─▶ store: running

Each half-way state says what was wanted: a server that finds one at its start finishes it (reconcile.py). In a server
that lives on, what cannot be finished is undone; where even that fails the state stays half-way, and the reaper tries again.
"""

import asyncio
from collections.abc import Mapping

import structlog

from glovebox import errors
from glovebox_server import audit as audit_trail
from glovebox_server import telemetry as metrics
from glovebox_server.contract import clock, node, store
from glovebox_server.manager import lives, quota
from glovebox_server.model import lifecycle
from glovebox_server.policy import limits

_log = structlog.get_logger(__name__)


class Pauses:
    """Whoever calls anything here holds the sandbox's lock."""

    def __init__(
        self,
        lives: lives.Lives,
        store: store.Store,
        node: node.Node,
        clock: clock.Clock,
        settings: limits.Limits,
        audit: audit_trail.AuditLog,
        telemetry: metrics.Telemetry,
    ) -> None:
        self._lives = lives
        self._store = store
        self._node = node
        self._clock = clock
        self._limits = settings
        self._audit = audit
        self._telemetry = telemetry

    def check(self, runtime: str) -> None:
        """Raise UnsupportedError where sandboxes of this runtime cannot be paused."""
        if "pause" not in self._node.capabilities(runtime):
            raise errors.UnsupportedError(
                f"sandboxes of the runtime '{runtime}' cannot be paused on this host; `glovebox doctor` says why"
            )

    async def pause(self, life: lives.Life, reason: str) -> None:
        """Pause one that runs. Raises UnsupportedError, and what the node does; it runs on then."""
        self.check(life.box.runtime)
        try:
            await self._pause(life, reason)
        except Exception as error:
            await self._give_up(life, error)
            raise

    async def resume(self, life: lives.Life, timeout_s: int, reason: str, **changes: bool) -> None:
        """Resume one that is paused, for `timeout_s` from now. It stays paused when this raises.

        Raises InvalidRequestError, QuotaExceededError, and what the node does.
        """
        limits.check_timeout(timeout_s, self._limits)
        keys = await self._store.list_keys()
        own = next((key.max_sandboxes for key in keys if key.key_id == life.box.key_id), None)
        active, _ = self._lives.by_place()
        quota.check_running(active, life.box.key_id, own, self._limits)
        life.waking = True  # without a wait since the check, so that two never get the last place
        try:
            await self._resume(life, timeout_s, reason, changes)
        except Exception as error:
            await self._give_up(life, error)
            raise
        finally:
            life.waking = False

    async def _pause(self, life: lives.Life, reason: str) -> None:
        started = self._clock.monotonic()
        await self._lives.advance(life, lifecycle.Event.PAUSE)
        life.ended.set()
        await self._node.pause(life.box.sandbox_id)
        self._note("sandbox.pause", life, reason, started)
        # From here on its end is the moment of its pause.
        await self._lives.advance(life, lifecycle.Event.PAUSED, timeout_s=0)
        self._telemetry.paused(reason)
        _log.info("sandbox paused", sandbox_id=life.box.sandbox_id, reason=reason)

    async def _resume(self, life: lives.Life, timeout_s: int, reason: str, changes: Mapping[str, bool]) -> None:
        started = self._clock.monotonic()
        await self._lives.advance(life, lifecycle.Event.RESUME, timeout_s=timeout_s, **changes)
        await self._node.resume(life.box.sandbox_id)
        self._note("sandbox.resume", life, reason, started)
        self._open(life)
        await self._lives.advance(life, lifecycle.Event.RESUMED, timeout_s=timeout_s)
        self._telemetry.resumed(reason)
        _log.info("sandbox resumed", sandbox_id=life.box.sandbox_id, reason=reason)

    async def _give_up(self, life: lives.Life, error: Exception) -> None:
        _log.warning("sandbox not paused or resumed", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])
        try:
            await self.undo(life)
        except Exception as worse:
            _log.error("sandbox left half-way", sandbox_id=life.box.sandbox_id, error=repr(worse)[:500])

    async def undo(self, life: lives.Life) -> None:
        """Bring one that was left half-way back to where it came from. May be called again after it failed."""
        if life.box.state is lifecycle.State.PAUSING:
            await self._node.resume(life.box.sandbox_id)
            self._open(life)
            await self._lives.advance(life, lifecycle.Event.RESUMED)
        elif life.box.state is lifecycle.State.RESUMING:
            await self._node.pause(life.box.sandbox_id)
            await self._lives.advance(life, lifecycle.Event.PAUSED, timeout_s=0)

    def _open(self, life: lives.Life) -> None:
        """A new time of running, whose connections have an end of their own."""
        life.ended = asyncio.Event()
        life.activity.last = self._clock.monotonic()

    def _note(self, action: str, life: lives.Life, reason: str, started: float) -> None:
        self._audit.record(
            audit_trail.Record(
                action,
                sandbox_id=life.box.sandbox_id,
                user_id=life.box.key_id,
                duration_ms=(self._clock.monotonic() - started) * 1000,
                detail={"reason": reason},
            )
        )
