"""What callers may ask for at most: timeouts, sizes, numbers. Pure: a request in, an error or nothing out."""

import dataclasses
from collections.abc import Mapping

from glovebox import errors


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits the manager holds callers to; the operator sets them (see config.py)."""

    max_sandboxes: int = 1000  # on this host at once, paused ones too: they hold their memory
    max_sandboxes_per_key: int = 500  # at once, for keys that have no number of their own; paused ones do not count
    max_paused_per_key: int = 100  # how many more than it may run a key may hold, paused ones counted
    keep_paused_hours: int | None = None  # how long a paused sandbox is kept. None: until it is killed
    default_timeout_s: int = 300
    max_timeout_hours: int = 24
    idle_timeout_s: int | None = None  # without any guest call for so long: killed. None: never
    max_metadata_entries: int = 64
    max_metadata_bytes: int = 16 * 1024  # keys and values together, in UTF-8
    max_env_entries: int = 256
    max_env_bytes: int = 64 * 1024
    keep_records_hours: int = 7 * 24  # how long killed sandboxes are remembered


def check_timeout(timeout_s: int, limits: Limits, *, zero_allowed: bool = False) -> None:
    """Raise InvalidRequestError unless a sandbox may live for `timeout_s` from now."""
    if timeout_s < 0 or (timeout_s == 0 and not zero_allowed):
        raise errors.InvalidRequestError("Timeout must be greater than 0")
    if timeout_s > limits.max_timeout_hours * 3600:
        raise errors.InvalidRequestError(f"Timeout cannot be greater than {limits.max_timeout_hours} hours")


def check_metadata(metadata: Mapping[str, str], limits: Limits) -> None:
    """Raise InvalidRequestError, naming the limit, when there is too much of it."""
    _check_size("metadata", metadata, limits.max_metadata_entries, limits.max_metadata_bytes)
    if any("\0" in name or "\0" in value for name, value in metadata.items()):
        raise errors.InvalidRequestError("metadata holds a NUL")  # databases do not search past one


def check_env(env: Mapping[str, str], limits: Limits) -> None:
    """Raise InvalidRequestError when there is too much of it, or when it holds what no environment can hold."""
    _check_size("environment", env, limits.max_env_entries, limits.max_env_bytes)
    for name, value in env.items():
        if not name or "=" in name or "\0" in name:
            raise errors.InvalidRequestError(f"environment variable name {name[:64]!r} is empty or holds '=' or NUL")
        if "\0" in value:
            raise errors.InvalidRequestError(f"the value of environment variable {name[:64]!r} holds a NUL")


def _check_size(what: str, items: Mapping[str, str], max_entries: int, max_bytes: int) -> None:
    if len(items) > max_entries:
        raise errors.InvalidRequestError(f"{what} has {len(items)} entries; the limit is {max_entries}")
    try:
        size = sum(len(key.encode()) + len(value.encode()) for key, value in items.items())
    except UnicodeEncodeError:  # a lone surrogate, as JSON can spell one
        raise errors.InvalidRequestError(f"{what} holds text that is not valid Unicode") from None
    if size > max_bytes:
        raise errors.InvalidRequestError(f"{what} has {size} bytes; the limit is {max_bytes}")
