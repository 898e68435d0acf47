"""Where a request goes: to the control plane, or to a port of a sandbox. Pure.

Two ways name a sandbox. The SDKs' routing headers are believed only where Host names no sandbox by design (an address,
`localhost`, `sandbox.<domain>`); everywhere else the Host's first label `<port>-<sandbox id>` decides, so that a page
of one sandbox cannot be made to speak to another by a header.
"""

import dataclasses
import ipaddress
import re

from glovebox import errors

ENVD_PORT = 49983
CODE_PORT = 49999

_LABEL = re.compile(r"(\d{1,5})-([a-z0-9]+(?:-[a-z0-9]+)?)")


@dataclasses.dataclass(frozen=True)
class Target:
    """A port of a sandbox; the id is not checked yet."""

    sandbox_id: str
    port: int


def target(host: str, sandbox_id: str | None, port: str | None) -> Target | None:
    """The sandbox a request is for; None: the control plane. Raises InvalidRequestError."""
    name = _name(host)
    if sandbox_id is not None and _is_shared(name):
        return Target(sandbox_id, _port(port if port is not None else str(ENVD_PORT)))
    if match := _LABEL.fullmatch(name.partition(".")[0]):
        return Target(match[2], _port(match[1]))
    return None


def _name(host: str) -> str:
    """Host without its port, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_shared(name: str) -> bool:
    if name == "localhost" or name.startswith("sandbox."):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 65536):
        raise errors.InvalidRequestError("the sandbox's port must be a number from 1 to 65535")
    return int(text)
