"""Whether there is room for one more sandbox: for this key, and on this host. Pure."""

from collections.abc import Iterable

from glovebox import errors
from glovebox_server.contract import store
from glovebox_server.model import ids, sandbox
from glovebox_server.policy import limits


def check(
    active: Iterable[sandbox.Sandbox], paused: Iterable[sandbox.Sandbox], key: store.ApiKey, limits: limits.Limits
) -> None:
    """Raise QuotaExceededError or CapacityError when there is none for a new one.

    `active` are all that are neither killed nor paused, those being made, resumed or ended too: they still hold what they
    hold. `paused` ones do not count against how many may run at once; a key may hold so many more, and no more. That is
    asked here and not when one is paused: a pause that is refused would have to kill. The caller adds the new one before
    it waits for anything, so that two requests cannot both take the last place.
    """
    active, paused = list(active), list(paused)
    check_running(active, key.key_id, key.max_sandboxes, limits)
    held = sum(box.key_id == key.key_id for box in (*active, *paused))
    may_hold = _allowed(key.max_sandboxes, limits) + limits.max_paused_per_key
    if held >= may_hold:
        raise errors.QuotaExceededError(
            f"you hold {held} sandboxes, paused ones included, and the limit is {may_hold}: kill some"
        )
    on_host = len(active) + len(paused)
    if on_host >= limits.max_sandboxes:
        raise errors.CapacityError(f"the host is full: it has {on_host} sandboxes; try again later")


def check_running(
    active: Iterable[sandbox.Sandbox], key_id: ids.KeyId | None, max_sandboxes: int | None, limits: limits.Limits
) -> None:
    """Raise QuotaExceededError unless one more of this key may run; `max_sandboxes` is the key's own number."""
    allowed = _allowed(max_sandboxes, limits)
    if sum(box.key_id == key_id for box in active) >= allowed:
        raise errors.QuotaExceededError(f"you have reached the maximum number of concurrent E2B sandboxes ({allowed})")


def _allowed(max_sandboxes: int | None, limits: limits.Limits) -> int:
    return limits.max_sandboxes_per_key if max_sandboxes is None else max_sandboxes
