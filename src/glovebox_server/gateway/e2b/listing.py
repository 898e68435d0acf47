"""Listing sandboxes: the filter's triple encoding, and the tokens that say where a page ends. Pure."""

import base64
import binascii
import datetime as dt
import urllib.parse
from collections.abc import Sequence

from glovebox import errors
from glovebox_server.contract import store
from glovebox_server.gateway.e2b import models
from glovebox_server.model import lifecycle, sandbox

_STATES = {
    "running": (lifecycle.State.RUNNING, lifecycle.State.PAUSING, lifecycle.State.RESUMING),
    "paused": (lifecycle.State.PAUSED,),
}
_MAX_PAIRS = 64


def metadata(text: str | None) -> dict[str, str] | None:
    """The filter `metadata`: percent-encoded keys and values, in a query string that is itself a query's value."""
    if not text:
        return None
    try:
        pairs = urllib.parse.parse_qsl(text, keep_blank_values=True, strict_parsing=True, max_num_fields=_MAX_PAIRS)
    except ValueError as error:
        raise errors.InvalidRequestError(f"metadata: not key=value pairs, or more than {_MAX_PAIRS}") from error
    return {urllib.parse.unquote(key): urllib.parse.unquote(value) for key, value in pairs}


def states(text: str | None) -> list[lifecycle.State]:
    """The filter `state`: a comma list."""
    found: list[lifecycle.State] = []
    for name in (text or "running,paused").split(","):
        if name not in _STATES:
            raise errors.InvalidRequestError(f"state: '{name[:64]}' is not running or paused")
        found += _STATES[name]
    return found


def template(text: str | None) -> str | None:
    """The filter `template`: an id or a name, without a tag."""
    if text and ":" in text:
        raise errors.InvalidRequestError("template: a tag cannot be filtered by")
    return text or None


def moment(given: dt.datetime | None) -> dt.datetime | None:
    """A time, which is UTC when it does not say."""
    return given.replace(tzinfo=dt.UTC) if given is not None and given.tzinfo is None else given


def page(query: models.ListQueryV2) -> store.Page:
    """Which page: one more than is asked for, to see whether there is a next one."""
    after = None
    descending = query.order == "desc"
    if query.nextToken:
        started_at, sandbox_id, was_descending = _read_token(query.nextToken)
        if was_descending != descending:
            raise errors.InvalidRequestError("Invalid next token")
        after = (started_at, sandbox_id)
    return store.Page(limit=query.limit + 1, descending=descending, after=after)


def cut(found: Sequence[sandbox.Sandbox], query: models.ListQueryV2) -> tuple[Sequence[sandbox.Sandbox], str | None]:
    """The page, and the token of the next one."""
    if len(found) <= query.limit:
        return found, None
    last = found[query.limit - 1]
    text = f"{last.started_at.isoformat()}__{last.sandbox_id}" + ("" if query.order == "desc" else "__asc")
    return found[: query.limit], base64.urlsafe_b64encode(text.encode()).decode()


def _read_token(token: str) -> tuple[dt.datetime, str, bool]:
    try:
        text = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii")
        started_at, sandbox_id, *rest = text.split("__")
        when = dt.datetime.fromisoformat(started_at)
    except (binascii.Error, UnicodeError, ValueError) as error:
        raise errors.InvalidRequestError("Invalid next token") from error
    if when.tzinfo is None or rest not in ([], ["asc"]):
        raise errors.InvalidRequestError("Invalid next token")
    return when, sandbox_id, not rest
