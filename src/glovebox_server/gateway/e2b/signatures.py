"""Signed file URLs: a path, an operation and a user, vouched for by a hash with the sandbox's access token in it."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from glovebox import errors

OPERATIONS = {"GET": "read", "HEAD": "read", "POST": "write"}


def sign(path: str, operation: str, user: str, token: str, expiration: str | None = None) -> str:
    """The signature of a file URL; `expiration` is the query's own text, in unix seconds."""
    text = f"{path}:{operation}:{user}:{token}"
    if expiration is not None:
        text += f":{expiration}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()
    return "v1_" + base64.b64encode(digest).decode().rstrip("=")


def check(query: Mapping[str, str], method: str, token: str, now: float) -> None:
    """Raise AuthenticationError unless the query is signed with this token, for this method, and not expired."""
    if not query.get("signature"):
        raise errors.AuthenticationError("missing signature query parameter")
    if not matches(query, method, token):
        raise errors.AuthenticationError("invalid signature")
    if (expiration := query.get("signature_expiration")) is not None and _seconds(expiration) < int(now):
        raise errors.AuthenticationError("signature is already expired")


def matches(query: Mapping[str, str], method: str, token: str) -> bool:
    """Whether this token signed the query. Expired or not is for `check`."""
    expected = sign(
        query.get("path", ""),
        OPERATIONS.get(method, ""),
        query.get("username", ""),
        token,
        query.get("signature_expiration"),
    )
    return hmac.compare_digest(expected.encode(), query["signature"].encode("utf-8", "replace"))


def _seconds(text: str) -> int:
    try:
        return int(text[:20])
    except ValueError:
        raise errors.AuthenticationError("invalid signature") from None


def basic_user(authorization: str | None) -> str | None:
    """The user's name in `Authorization: Basic base64("<name>:")`; None when there is none."""
    scheme, _, value = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        name = base64.b64decode(value.strip(), validate=True).decode("utf-8").partition(":")[0]
    except (binascii.Error, UnicodeDecodeError):
        raise errors.AuthenticationError("the Authorization header is not Basic credentials") from None
    return name or None
