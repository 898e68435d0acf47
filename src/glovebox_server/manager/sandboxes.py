"""Decides the life of every sandbox: create, extend, pause, resume, kill, expire; quotas; what a restart finds."""

import asyncio
import contextlib
import dataclasses
import datetime as dt
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from glovebox import errors
from glovebox_server import audit as audit_trail
from glovebox_server import telemetry as metrics
from glovebox_server.contract import clock, guest, node, store
from glovebox_server.manager import (
    audited,
    housekeeping,
    idempotency,
    journal,
    lives,
    pauses,
    quota,
    reaper,
    reconcile,
    watcher,
)
from glovebox_server.model import ids, lifecycle, resources, sandbox, template
from glovebox_server.policy import limits

T = TypeVar("T")

_log = structlog.get_logger(__name__)

#: How long after its end one that cannot be paused may run on, while that is tried again. Then it is killed: what runs in a
#: sandbox must not be able to outlive its timeout.
_PAUSE_GRACE_S = 60.0
_SETTLED = (lifecycle.State.RUNNING, lifecycle.State.PAUSED)
_HALF_WAY = (lifecycle.State.PAUSING, lifecycle.State.RESUMING)


@dataclasses.dataclass(frozen=True)
class CreateRequest:
    """What a caller asks for."""

    template: str
    timeout_s: int
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    auto_pause: bool = False
    auto_resume: bool = False
    idempotency_key: str | None = None


class Sandboxes:
    """All sandboxes of this server. One per process; every method belongs to the event loop's thread."""

    def __init__(
        self,
        store: store.Store,
        node: node.Node,
        clock: clock.Clock,
        settings: limits.Limits,
        audit: audit_trail.AuditLog,
        telemetry: metrics.Telemetry,
        templates: Mapping[str, template.Template],  # by every name and id
    ) -> None:
        self._store = store
        self._node = node
        self._clock = clock
        self._limits = settings
        self._audit = audit
        self._telemetry = telemetry
        self._templates = templates
        self._lives = lives.Lives(store, node, clock, audit, telemetry)
        self._pauses = pauses.Pauses(self._lives, store, node, clock, settings, audit, telemetry)
        self._once = idempotency.Once(store, clock)
        self._reaper = reaper.Reaper(clock, self._due)
        keep = dt.timedelta(hours=settings.keep_records_hours)
        self._housekeeping = housekeeping.Housekeeping(self._lives, store, clock, telemetry, keep)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False

    async def start(self) -> None:
        """Start the node, take back what an earlier server left, and start killing what is due."""
        await self._node.start(self._on_ended)
        for sandbox_id in await reconcile.reconcile(self._lives, self._store, self._node, self._clock.now()):
            self._reaper.retry(sandbox_id)
        for life in self._lives:
            if life.box.state in _SETTLED:
                self._schedule(life)
        self._reaper.start()
        self._housekeeping.start()

    async def create(self, request: CreateRequest, key: store.ApiKey) -> sandbox.Sandbox:
        """Make one, ready for use.

        Raises InvalidRequestError, UnsupportedError, TemplateNotFoundError, QuotaExceededError, CapacityError,
        ConflictError (the idempotency key was used for something else).
        """
        self._check(request)
        if request.idempotency_key is None:
            return await self._create_unless_left(request, key)
        digest = idempotency.request_hash(
            request.template,
            request.timeout_s,
            dict(request.metadata),
            dict(request.env),
            request.auto_pause,
            request.auto_resume,
        )
        box = await self._once.run(
            key.tenant,
            request.idempotency_key,
            digest,
            lambda: self._create(self._admit(request, key, digest), request),
        )
        life = self._lives.get(box.sandbox_id)
        return box if life is None else life.box

    async def get(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None) -> sandbox.Sandbox:
        """One that the tenant can see (None: an admin, sees all); else SandboxNotFoundError."""
        return self._visible(sandbox_id, tenant).box

    async def list(
        self,
        tenant: ids.TenantId | None,
        *,
        states: Sequence[lifecycle.State] | None = None,
        started_after: dt.datetime | None = None,
        template: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page: store.Page | None = None,
    ) -> Sequence[sandbox.Sandbox]:
        """Those the tenant can see and that match all that is given. `template` is an id or a name."""
        template_id = template
        if template is not None and template in self._templates:
            template_id = self._templates[template].template_id
        return await self._store.list_sandboxes(
            tenant=tenant,
            states=sorted(lifecycle.VISIBLE if states is None else lifecycle.VISIBLE.intersection(states)),
            started_after=started_after,
            template_id=template_id,
            metadata=dict(metadata or {}),
            page=page,
        )

    async def count_running(self, tenant: ids.TenantId | None) -> int:
        """How many run now."""
        return sum(tenant is None or box.tenant == tenant for box in self.live_all())

    async def connect(
        self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None, timeout_s: int
    ) -> tuple[sandbox.Sandbox, bool]:
        """See that it runs, for `timeout_s` from now at least; True when it was paused and had to be resumed.

        The end of one that runs is only ever moved away. One that is being paused is waited for. QuotaExceededError when
        it cannot be resumed because too many run.
        """
        limits.check_timeout(timeout_s, self._limits, zero_allowed=True)
        life = self._visible(sandbox_id, tenant)
        if life.box.state is lifecycle.State.RUNNING and self._clock.monotonic() + timeout_s <= life.deadline:
            return life.box, False
        resumed = await self._finished(self._connect(life, timeout_s))
        return life.box, resumed

    async def extend(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None, timeout_s: int) -> None:
        """Let one that runs live for `timeout_s` from now at least. SandboxNotFoundError when it is paused."""
        limits.check_timeout(timeout_s, self._limits, zero_allowed=True)
        life = self._visible(sandbox_id, tenant)
        await self._finished(self._move_end(life, timeout_s, only_later=True))

    async def set_timeout(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None, timeout_s: int) -> None:
        """Let it end `timeout_s` from now, sooner or later than before; 0 ends (or pauses) it before this returns.

        SandboxNotFoundError when it is paused: its timeout is set when it is resumed.
        """
        limits.check_timeout(timeout_s, self._limits, zero_allowed=True)
        life = self._visible(sandbox_id, tenant)
        if timeout_s == 0:
            await self._finished(self._expire_now(life))
        else:
            await self._finished(self._move_end(life, timeout_s, only_later=False))

    async def pause(
        self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None, *, require_healthy: bool = False
    ) -> None:
        """Stop it where it stands, memory and processes kept, and cut its connections. ConflictError when it is paused.

        With `require_healthy` it is refused (CapacityError) while its guest agent does not answer. UnsupportedError when
        this host cannot.
        """
        life = self._visible(sandbox_id, tenant)
        await self._finished(self._pause(life, require_healthy=require_healthy))

    async def resume(
        self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None, timeout_s: int, *, auto_pause: bool | None = None
    ) -> sandbox.Sandbox:
        """Let one go on that is paused, for `timeout_s` from now. ConflictError when it runs; else as `connect`."""
        life = self._visible(sandbox_id, tenant)
        await self._finished(self._resume(life, timeout_s, auto_pause))
        return life.box

    async def kill(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None) -> None:
        """End it; nothing is left of it when this returns. SandboxNotFoundError when unknown or already ended."""
        life = self._visible(sandbox_id, tenant)
        await self._finished(self._end(life, "requested"))

    def live(self, sandbox_id: ids.SandboxId) -> sandbox.Sandbox:
        """One that runs now, from memory (for the data plane); else SandboxNotFoundError."""
        return self._running(sandbox_id).box

    async def reach(self, sandbox_id: ids.SandboxId, *, wake: bool) -> sandbox.Sandbox:
        """As `live`; but with `wake` a paused one that traffic is to resume (`auto_resume`) is resumed first."""
        life = self._lives.get(sandbox_id)
        asleep = (*_HALF_WAY, lifecycle.State.PAUSED)
        if wake and life is not None and life.box.auto_resume and life.box.state in asleep:
            await self._finished(self._wake(life))
        return self.live(sandbox_id)

    def live_all(self) -> Iterable[sandbox.Sandbox]:
        """All that run now, from memory."""
        return [life.box for life in self._lives if life.box.state is lifecycle.State.RUNNING]

    def ended(self, sandbox_id: ids.SandboxId) -> asyncio.Event:
        """Set as soon as the sandbox begins to end or to be paused (set already for an unknown one): time to cut its
        connections. Once it is resumed there is another one."""
        life = self._lives.get(sandbox_id)
        if life is not None:
            return life.ended
        event = asyncio.Event()
        event.set()
        return event

    def guest(self, sandbox_id: ids.SandboxId) -> guest.Guest:
        """Its guest agent's face, audited. SandboxNotFoundError when it does not run."""
        life = self._running(sandbox_id)
        if life.guest_face is None:
            notes = watcher.Watcher(life.box, self._clock, self._audit, self._telemetry, life.journal, life.activity)
            life.guest_face = audited.AuditedGuest(self._node.guest(sandbox_id), notes)
        return life.guest_face

    async def usage(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None) -> resources.Usage:
        """What it uses now, measured from outside."""
        return await self._node.usage(self._visible(sandbox_id, tenant).box.sandbox_id)

    def journal(self, sandbox_id: ids.SandboxId) -> Sequence[journal.JournalEntry]:
        """What happened to it lately, oldest first; for a while after its end too. The caller checks whose it is."""
        found = self._lives.journal(sandbox_id)
        if found is None:
            raise errors.SandboxNotFoundError(sandbox_id)
        return found.entries()

    async def close(self, *, destroy: bool) -> None:
        """Stop deciding. With `destroy` every sandbox ends; else they go on, for the next server."""
        self._closing = True
        await self._once.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reaper.close()
        await self._housekeeping.close()
        if destroy:
            for outcome in await asyncio.gather(
                *(self._end(life, "shutdown") for life in self._lives), return_exceptions=True
            ):
                if isinstance(outcome, Exception):
                    _log.error("sandbox not ended at shutdown", error=repr(outcome)[:500])
        await self._node.close(destroy=destroy)

    # Creating

    def _check(self, request: CreateRequest) -> None:
        limits.check_timeout(request.timeout_s, self._limits)
        limits.check_metadata(request.metadata, self._limits)
        limits.check_env(request.env, self._limits)
        if request.template not in self._templates:
            raise errors.TemplateNotFoundError(request.template)
        if request.auto_pause:
            self._pauses.check(self._templates[request.template].runtime)

    def _admit(self, request: CreateRequest, key: store.ApiKey, request_hash: str | None) -> lives.Life:
        """Take its place. Waits for nothing, so that two requests never get the last one."""
        if self._closing:
            raise errors.CapacityError("the server is stopping")
        quota.check(*self._lives.by_place(), key, self._limits)
        chosen = self._templates[request.template]
        now = self._clock.now()
        box = sandbox.Sandbox(
            sandbox_id=ids.new_sandbox_id(),
            tenant=key.tenant,
            template_id=chosen.template_id,
            alias=chosen.names[0] if chosen.names else None,
            state=lifecycle.State.CREATING,
            started_at=now,
            end_at=now + dt.timedelta(seconds=request.timeout_s),
            metadata=dict(request.metadata),
            env=dict(request.env),
            access_token=ids.new_access_token(),
            auto_pause=request.auto_pause,
            auto_resume=request.auto_resume,
            resources=chosen.resources,
            runtime=chosen.runtime,
            node=self._node.name,
            key_id=key.key_id,
            idempotency_key=request.idempotency_key,
            request_hash=request_hash,
        )
        return self._lives.open(box)

    async def _create_unless_left(self, request: CreateRequest, key: store.ApiKey) -> sandbox.Sandbox:
        life = self._admit(request, key, None)
        try:
            return await self._finished(self._create(life, request))
        except asyncio.CancelledError:
            # The caller is gone, and nobody else will ever know its id.
            self._spawn(self._end(life, "requested"))
            raise

    async def _create(self, life: lives.Life, request: CreateRequest) -> sandbox.Sandbox:
        started = self._clock.monotonic()
        async with life.lock:
            try:
                await self._make(life, request)
                self._audit.record(
                    audit_trail.Record(
                        "sandbox.create",
                        sandbox_id=life.box.sandbox_id,
                        user_id=life.box.key_id,
                        duration_ms=(self._clock.monotonic() - started) * 1000,
                        detail={"template": life.box.template_id, "boundary": life.box.boundary},
                    )
                )
            except BaseException as error:
                life.journal.add("sandbox failed", level="error")
                _log.warning("sandbox failed", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])
                with contextlib.suppress(Exception):  # it is logged, and will be tried again
                    await self._end_or_retry(life, "failed")
                raise
        self._telemetry.started(life.box.runtime, self._clock.monotonic() - started)
        self._schedule(life)
        return life.box

    async def _make(self, life: lives.Life, request: CreateRequest) -> None:
        box = life.box
        spec = sandbox.SandboxSpec(
            sandbox_id=box.sandbox_id,
            template_id=box.template_id,
            resources=box.resources,
            env=box.env,
            hostname=box.sandbox_id,
        )
        # Nothing of it is stored yet. Should the server die now, the next one's sweep ends what no row speaks of.
        made = await self._node.create(spec, box.runtime)
        await self._lives.advance(
            life,
            lifecycle.Event.STARTED,
            timeout_s=request.timeout_s,  # it counts from when the caller can use it
            boundary=made.boundary,
            instance=made.record,
        )

    # Ending

    async def _end(self, life: lives.Life, reason: str, detail: str | None = None) -> None:
        async with life.lock:
            await self._end_or_retry(life, reason, detail)

    async def _end_or_retry(self, life: lives.Life, reason: str, detail: str | None = None) -> None:
        try:
            await self._lives.end(life, reason, detail)
        except Exception as error:
            _log.error("sandbox not ended", sandbox_id=life.box.sandbox_id, error=repr(error)[:500])
            self._reaper.retry(life.box.sandbox_id)
            raise
        self._reaper.cancel(life.box.sandbox_id)

    async def _on_ended(self, sandbox_id: ids.SandboxId, reason: str) -> None:
        """The node's word that an instance has died. The node is not kept waiting: it may hold what ending needs."""
        life = self._lives.get(sandbox_id)
        # A node that lets go of its instances may take that for their end; the next server will see for itself.
        if life is not None and not self._closing:
            self._spawn(self._end(life, "died", reason))

    async def _due(self, sandbox_id: ids.SandboxId) -> None:
        """The reaper's call: it is time to look at this sandbox."""
        life = self._lives.get(sandbox_id)
        if life is None:
            return
        async with life.lock:
            try:
                await self._pauses.undo(life)  # when that failed before
            except Exception:
                if not self._is_overdue(life):
                    raise
                await self._lives.end(life, "failed")
            due = self._next_look(life)
            if life.box.state in _SETTLED and (due is None or due > self._clock.monotonic()):
                self._schedule(life)
                return
            expired = life.deadline <= self._clock.monotonic()
            reason = "timeout" if expired else "idle"
            if life.box.state is lifecycle.State.CREATING:
                reason = "failed"
            await self._expire(life, reason)

    async def _expire(self, life: lives.Life, reason: str) -> None:
        if life.box.state is lifecycle.State.RUNNING and life.box.auto_pause:
            try:
                await self._pauses.pause(life, reason)
                self._schedule(life)
                return
            except Exception:
                if not self._is_overdue(life):
                    raise
        await self._lives.end(life, reason)
        self._reaper.cancel(life.box.sandbox_id)

    async def _expire_now(self, life: lives.Life) -> None:
        async with self._changing(life):
            _check_runs(life)
            if life.box.auto_pause:
                await self._pauses.pause(life, "timeout")
            else:
                await self._end_or_retry(life, "timeout")

    def _is_overdue(self, life: lives.Life) -> bool:
        return self._clock.monotonic() >= life.deadline + _PAUSE_GRACE_S

    def _schedule(self, life: lives.Life) -> None:
        due = self._next_look(life)
        if due is None:
            self._reaper.cancel(life.box.sandbox_id)
        else:
            self._reaper.schedule(life.box.sandbox_id, due)

    def _next_look(self, life: lives.Life) -> float | None:
        """When it is to be killed, or paused, as things stand; None: never."""
        if life.box.state is lifecycle.State.PAUSED:
            keep_hours = self._limits.keep_paused_hours
            return None if keep_hours is None else life.deadline + keep_hours * 3600
        idle_s = self._limits.idle_timeout_s
        if idle_s is None:
            return life.deadline
        since = self._clock.monotonic() if life.activity.calls else life.activity.last
        return min(life.deadline, since + idle_s)

    async def _move_end(self, life: lives.Life, timeout_s: int, *, only_later: bool) -> None:
        async with self._changing(life):
            await self._move_end_of(life, timeout_s, only_later=only_later)

    async def _move_end_of(self, life: lives.Life, timeout_s: int, *, only_later: bool) -> None:
        _check_runs(life)  # it may have ended while we waited
        if not only_later or self._clock.monotonic() + timeout_s > life.deadline:
            await self._lives.write(life, timeout_s=timeout_s)

    # Pausing and resuming

    async def _pause(self, life: lives.Life, *, require_healthy: bool) -> None:
        async with self._changing(life):
            if life.box.state is lifecycle.State.PAUSED:
                raise errors.ConflictError(f'Sandbox "{life.box.sandbox_id}" is already paused')
            _check_runs(life)
            if require_healthy:
                await self._node.check(life.box.sandbox_id)
            await self._pauses.pause(life, "requested")

    async def _resume(self, life: lives.Life, timeout_s: int, auto_pause: bool | None) -> None:
        async with self._changing(life):
            if life.box.state is not lifecycle.State.PAUSED:
                _check_runs(life)
                raise errors.ConflictError(f'Sandbox "{life.box.sandbox_id}" is already running')
            changes = {} if auto_pause is None else {"auto_pause": auto_pause}
            await self._resume_paused(life, timeout_s, "requested", **changes)

    async def _connect(self, life: lives.Life, timeout_s: int) -> bool:
        async with self._changing(life):
            if life.box.state is lifecycle.State.PAUSED:
                await self._resume_paused(life, timeout_s, "requested")
                return True
            await self._move_end_of(life, timeout_s, only_later=True)
            return False

    async def _wake(self, life: lives.Life) -> None:
        async with self._changing(life):
            if life.box.state is lifecycle.State.PAUSED:  # of many requests at once the first one resumes it
                await self._resume_paused(life, self._limits.default_timeout_s, "traffic")

    async def _resume_paused(self, life: lives.Life, timeout_s: int, reason: str, **changes: bool) -> None:
        if self._closing:
            raise errors.CapacityError("the server is stopping")
        await self._pauses.resume(life, timeout_s, reason, **changes)

    @contextlib.asynccontextmanager
    async def _changing(self, life: lives.Life) -> AsyncIterator[None]:
        """Within: its lock, and it is not half-way. Whatever comes of it, the reaper knows afterwards when to look at it."""
        async with life.lock:
            try:
                await self._pauses.undo(life)  # where that failed before
                yield
            finally:
                if life.box.state in _SETTLED:
                    self._schedule(life)
                elif life.box.state in _HALF_WAY:
                    self._reaper.retry(life.box.sandbox_id)

    # Finding

    def _visible(self, sandbox_id: ids.SandboxId, tenant: ids.TenantId | None) -> lives.Life:
        life = self._lives.get(sandbox_id)
        if life is None or life.box.state not in lifecycle.VISIBLE or tenant not in (None, life.box.tenant):
            raise errors.SandboxNotFoundError(sandbox_id)
        return life

    def _running(self, sandbox_id: ids.SandboxId) -> lives.Life:
        life = self._lives.get(sandbox_id)
        if life is None or life.box.state is not lifecycle.State.RUNNING:
            raise errors.SandboxNotFoundError(sandbox_id)
        return life

    # Tasks

    async def _finished(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to the end, even when the caller stops waiting: half a change is worse than one nobody sees."""
        return await asyncio.shield(self._spawn(work))

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        with contextlib.suppress(asyncio.CancelledError):
            error = task.exception()
            if error is not None and not isinstance(error, errors.GloveboxError):
                _log.error("sandbox task failed", error=repr(error)[:500])


def _check_runs(life: lives.Life) -> None:
    if life.box.state is not lifecycle.State.RUNNING:
        raise errors.SandboxNotFoundError(life.box.sandbox_id)
