"""What is noted of one sandbox's doings: in the audit trail, the metrics and the journal. Used by audited.py."""

from collections.abc import Sequence
from types import TracebackType

from glovebox import errors
from glovebox_server import audit as audit_trail
from glovebox_server import telemetry as metrics
from glovebox_server.contract import clock, guest
from glovebox_server.manager import journal as journals
from glovebox_server.manager import lives
from glovebox_server.model import sandbox

_SECURITY_CODES = frozenset(("permission_denied", "unauthenticated"))


class Watcher:
    """Notes what happens to one sandbox, in all three places."""

    def __init__(
        self,
        box: sandbox.Sandbox,
        clock: clock.Clock,
        audit: audit_trail.AuditLog,
        telemetry: metrics.Telemetry,
        journal: journals.Journal,
        activity: lives.Activity,
    ) -> None:
        self.clock = clock
        self.journal = journal
        self.telemetry = telemetry
        self._box = box
        self._audit = audit
        self._activity = activity
        self._broke_protocol = False

    def record(
        self,
        action: str,
        *,
        code_hash: str | None = None,
        started: float | None = None,
        exit_code: int | None = None,
        security_events: Sequence[str] = (),
        **detail: object,
    ) -> None:
        """Into the audit trail. CapacityError when it is full and cannot be written."""
        self._audit.record(
            audit_trail.Record(
                action,
                sandbox_id=self._box.sandbox_id,
                user_id=self._box.key_id,
                code_hash=code_hash,
                duration_ms=None if started is None else (self.clock.monotonic() - started) * 1000,
                exit_code=exit_code,
                security_events=security_events,
                detail={name: str(value) for name, value in detail.items() if value is not None},
            )
        )

    def open(self) -> None:
        """A call begins."""
        self._activity.calls += 1

    def close(self, action: str, error: BaseException | None) -> None:
        """A call is over, for whatever reason."""
        self._activity.calls -= 1
        self._activity.last = self.clock.monotonic()
        if isinstance(error, errors.GuestError):
            self._refused(action, error)
        elif isinstance(error, errors.GuestProtocolError) and not self._broke_protocol:
            self._broke_protocol = True  # every open call is told of the one breach
            self.telemetry.escape_attempt("protocol")
            self.journal.add("guest agent broke the protocol", level="error")
            self.record("guest.protocol_broken", security_events=("protocol",))

    def _refused(self, action: str, error: errors.GuestError) -> None:
        self.telemetry.refused(error.code)
        self.journal.add("request refused", level="warn", action=action, code=error.code, said=str(error))
        if error.code in _SECURITY_CODES:
            self.record("guest.refused", security_events=(error.code,), request=action, message=str(error))


class Call:
    """One call, open from `with` to its end. A class, because a generator would cost more than the call."""

    __slots__ = ("_action", "_watcher")

    def __init__(self, watcher: Watcher, action: str) -> None:
        self._watcher = watcher
        self._action = action

    def __enter__(self) -> None:
        self._watcher.open()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._watcher.close(self._action, error)


class Execution:
    """What is noted of one run of code."""

    def __init__(self, watcher: Watcher, code_hash: str) -> None:
        self._watcher = watcher
        self._code_hash = code_hash
        self._started = watcher.clock.monotonic()
        self._error: str | None = "interrupted"  # until it ends by itself
        self._raised: str | None = None

    def begin(self, language: str | None, context_id: str | None) -> None:
        """Before the guest hears of it."""
        self._watcher.record("code.execute", code_hash=self._code_hash, language=language, context_id=context_id)
        self._watcher.journal.add("code started", code_hash=self._code_hash[:12])

    def note(self, event: guest.CodeEvent) -> None:
        """It said something."""
        if isinstance(event, guest.Output):
            self._watcher.journal.output("code", event.stream, event.data)
        elif isinstance(event, guest.ExecutionError):
            self._raised = event.name
        elif isinstance(event, guest.ExecutionEnded):
            self._error = self._raised

    def end(self) -> None:
        """It is over, or nobody listens any more (which interrupts it)."""
        seconds = self._watcher.clock.monotonic() - self._started
        self._watcher.telemetry.executed("code", seconds)
        self._watcher.journal.add(
            "code ended",
            level="info" if self._error is None else "warn",
            code_hash=self._code_hash[:12],
            error=self._error,
            seconds=f"{seconds:.3f}",
        )
        self._watcher.record("code.end", code_hash=self._code_hash, started=self._started, error=self._error)
