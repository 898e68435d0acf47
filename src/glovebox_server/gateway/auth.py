"""Who calls: API keys on the control plane, access tokens on a sandbox's own fronts."""

import hmac

from starlette import datastructures, requests, types

from glovebox import errors
from glovebox_server.contract import store
from glovebox_server.gateway import refusals
from glovebox_server.manager import keys

UNAUTHORIZED = "unauthorized access, please provide a valid access token or method signing if supported"
_MISSING_KEY = "Invalid API key, please provide it in the X-API-KEY header"


async def authenticate(request: requests.Request, known: keys.Keys) -> store.ApiKey:
    """The key of a request to the control plane. Raises AuthenticationError."""
    secret = request.headers.get("x-api-key")
    if not secret:
        raise refusals.mark(request.scope, _MISSING_KEY)
    try:
        return await known.authenticate(secret)
    except errors.AuthenticationError as error:
        refusals.mark(request.scope, str(error))
        raise


def require_admin(key: store.ApiKey) -> None:
    """Raises PermissionDeniedError unless the key may manage keys."""
    if not key.admin:
        raise errors.PermissionDeniedError("this needs an admin API key")


def check_token(scope: types.Scope, token: str) -> None:
    """Raises AuthenticationError unless X-Access-Token is the sandbox's own."""
    given = token_of(scope)
    if given is None or not same(given, token):
        raise refusals.mark(scope, UNAUTHORIZED)


def token_of(scope: types.Scope) -> str | None:
    """The X-Access-Token of a request."""
    return datastructures.Headers(scope=scope).get("x-access-token") or None


def same(given: str, token: str) -> bool:
    """Compare in a time that does not tell how much of it was right."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
