"""Identifiers: how they look, how they are made, how they are checked."""

import re
import secrets
import string
from typing import NewType

from glovebox import errors

SandboxId = NewType("SandboxId", str)
KeyId = NewType("KeyId", str)
TenantId = NewType("TenantId", str)

# The E2B proxies split the host name `<port>-<sandbox id>.<domain>` at the first `-`: an id has none.
_ALPHABET = string.ascii_lowercase + string.digits
_SANDBOX_ID = re.compile(r"i[a-z0-9]{19}")


def new_sandbox_id() -> SandboxId:
    """A fresh id: `i` and 19 lower-case letters and digits (98 bits)."""
    return SandboxId("i" + "".join(secrets.choice(_ALPHABET) for _ in range(19)))


def parse_sandbox_id(text: str) -> SandboxId:
    """`text` as a sandbox id, without the legacy `-<client id>` suffix; SandboxNotFoundError when it can't be one.

    The check stands between untrusted text and every path and name that is built from an id.
    """
    head = text.partition("-")[0]
    if not _SANDBOX_ID.fullmatch(head):
        raise errors.SandboxNotFoundError(text[:64])
    return SandboxId(head)


def new_access_token() -> str:
    """A sandbox's access token: 256 bits, URL-safe."""
    return secrets.token_urlsafe(32)
