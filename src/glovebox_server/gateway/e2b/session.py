"""What a sandbox's fronts know of the sandbox a request is for: put into the ASGI scope by the traffic router."""

import dataclasses

from starlette import types

from glovebox_server.contract import guest
from glovebox_server.model import sandbox

_KEY = "glovebox.session"


@dataclasses.dataclass(frozen=True)
class Session:
    """One request's sandbox, running when the request came."""

    sandbox: sandbox.Sandbox
    guest: guest.Guest
    port: int


def put(scope: types.Scope, session: Session) -> None:
    """Note the session of a request."""
    scope[_KEY] = session


def of(scope: types.Scope) -> Session:
    """The session of a request."""
    session = scope[_KEY]
    assert isinstance(session, Session)
    return session
