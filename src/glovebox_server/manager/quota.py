"""Whether there is room for one more sandbox: for this key, and on this host. Pure."""

from collections.abc import Iterable

from glovebox import errors
from glovebox_server.contract import store
from glovebox_server.model import sandbox
from glovebox_server.policy import limits


def check(existing: Iterable[sandbox.Sandbox], key: store.ApiKey, limits: limits.Limits) -> None:
    """Raise QuotaExceededError or CapacityError when there is none.

    `existing` are all that are not killed, those being made or ended too: they still hold what they hold. The caller
    adds the new one before it waits for anything, so that two requests cannot both take the last place.
    """
    boxes = list(existing)
    allowed = limits.max_sandboxes_per_key if key.max_sandboxes is None else key.max_sandboxes
    if sum(box.key_id == key.key_id for box in boxes) >= allowed:
        raise errors.QuotaExceededError(f"you have reached the maximum number of concurrent E2B sandboxes ({allowed})")
    if len(boxes) >= limits.max_sandboxes:
        raise errors.CapacityError(f"the host is full: it has {len(boxes)} sandboxes; try again later")
