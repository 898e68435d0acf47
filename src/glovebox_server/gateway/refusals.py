"""Failed authentications: each one counted, and told to the audit trail, as many as it can bear.

Whoever may knock may knock often: the trail takes a burst and then a few a minute, and each record says how many were
left out before it. The metrics count all of them.
"""

import time
from collections.abc import Callable

from starlette import types

from glovebox import errors
from glovebox_server import audit as audit_log
from glovebox_server import telemetry

_KEY = "glovebox.refusal"
_BURST = 100
_PER_SECOND = 1.0


def mark(scope: types.Scope, message: str) -> errors.AuthenticationError:
    """Note on the request that it did not say rightly who it is; the error to raise."""
    scope[_KEY] = message
    return errors.AuthenticationError(message)


class Refusals:
    """Where they are told. `now` is a clock that only goes forward."""

    def __init__(
        self, audit: audit_log.AuditLog, metrics: telemetry.Telemetry, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._audit, self._metrics, self._now = audit, metrics, now
        self._room, self._filled_at = float(_BURST), now()
        self._left_out = 0

    def note(self, scope: types.Scope, route: str, sandbox_id: str | None) -> None:
        """Called when a request is over; does something if it was marked."""
        if (reason := scope.get(_KEY)) is None:
            return
        self._metrics.unauthenticated("control" if sandbox_id is None else "sandbox")
        if not self._has_room():
            self._left_out += 1
            return
        client = scope.get("client")
        detail = {"route": route, "reason": str(reason), "client": client[0] if client else "unknown"}
        if self._left_out:
            detail["left_out_before"] = str(self._left_out)
        record = audit_log.Record(
            "auth.refused", sandbox_id=sandbox_id, security_events=("unauthenticated",), detail=detail
        )
        try:
            self._audit.record(record)
            self._left_out = 0
        except errors.CapacityError:
            # It was refused in any case; that the trail is full is told by whoever writes it.
            self._left_out += 1

    def _has_room(self) -> bool:
        now = self._now()
        self._room = min(float(_BURST), self._room + (now - self._filled_at) * _PER_SECOND)
        self._filled_at = now
        if self._room < 1:
            return False
        self._room -= 1
        return True
