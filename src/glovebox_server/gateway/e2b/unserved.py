"""What the protocol has and this server does not serve yet: said plainly, never ignored."""

import ipaddress

from glovebox import errors
from glovebox_server.gateway.e2b import models

#: Method, path, and what is missing.
ROUTES: tuple[tuple[str, str, str], ...] = (
    ("POST", "/sandboxes/{sandboxID}/fork", "forking sandboxes"),
    ("POST", "/sandboxes/{sandboxID}/snapshots", "snapshots"),
    ("GET", "/snapshots", "snapshots"),
    ("POST", "/v3/templates", "building templates"),
    ("POST", "/v2/templates", "building templates"),
    ("POST", "/templates", "building templates"),
    ("POST", "/v2/templates/{templateID}/builds/{buildID}", "building templates"),
    ("GET", "/templates/{templateID}/builds/{buildID}/status", "building templates"),
    ("GET", "/templates/{templateID}/builds/{buildID}/logs", "building templates"),
    ("GET", "/templates/{templateID}/files/{hash}", "building templates"),
    ("POST", "/templates/tags", "template tags"),
    ("DELETE", "/templates/tags", "template tags"),
    ("GET", "/templates/{templateID}/tags", "template tags"),
    ("DELETE", "/templates/{templateID}", "deleting templates"),
    ("PATCH", "/v2/templates/{templateID}", "changing templates"),
    ("PATCH", "/templates/{templateID}", "changing templates"),
    ("GET", "/volumes", "volumes"),
    ("POST", "/volumes", "volumes"),
    ("GET", "/volumes/{volumeID}", "volumes"),
    ("DELETE", "/volumes/{volumeID}", "volumes"),
    ("GET", "/secrets", "secrets"),
    ("POST", "/secrets", "secrets"),
    ("GET", "/secrets/{secretID}", "secrets"),
    ("POST", "/secrets/{secretID}", "secrets"),
    ("DELETE", "/secrets/{secretID}", "secrets"),
)

_LOOPBACK_ONLY = "sandboxes have no network but their own loopback yet"


def check_sandbox(asked: models.NewSandbox) -> None:
    """Raise for what a new sandbox cannot have. `mcp` is the SDK's own business: it starts the gateway by a command."""
    if asked.autoPauseMemory is False:
        _check_without_memory(asked)
    if asked.volumeMounts:
        raise errors.UnsupportedError("volumeMounts: volumes are not served yet")
    if asked.iam and asked.iam.get("tokens"):
        raise errors.InvalidRequestError("iam: identity tokens are not served yet")
    if asked.network is not None:
        check_network(asked.network)


def _check_without_memory(asked: models.NewSandbox) -> None:
    if not asked.autoPause:
        raise errors.InvalidRequestError("autoPauseMemory: false needs autoPause")
    if asked.autoResume is not None and asked.autoResume.enabled:
        raise errors.InvalidRequestError("autoPauseMemory: false cannot be together with autoResume")
    raise errors.UnsupportedError("autoPauseMemory: false: a pause that keeps files only is not served yet")


def check_memory(asked: models.Pause | models.Connect | models.ConnectV2) -> None:
    """Raise for a pause without memory, or a resume that is to boot anew."""
    if asked.memory is False:
        raise errors.UnsupportedError(
            "memory: false: a pause keeps memory and processes; to keep, or start from, files only is not served yet"
        )


def check_network(asked: models.EgressRules) -> None:
    """Raise for network settings that cannot be kept. Denials can: everything is denied."""
    for cidr in asked.denyOut or ():
        _check_cidr(cidr)
    if isinstance(asked, models.Network) and asked.allowPublicTraffic is False:
        raise errors.UnsupportedError("network.allowPublicTraffic: false is not served yet")
    for name in ("allowOut", "egressProxy", "rules", "dnsServers", "maskRequestHost", "httpsPorts"):
        if getattr(asked, name, None):
            raise errors.InvalidRequestError(f"network.{name} is not served: {_LOOPBACK_ONLY}")


def check_network_update(asked: models.EgressRules) -> None:
    """The same for a running sandbox, where asking for the internet is no SDK's default."""
    if asked.allow_internet_access:
        raise errors.InvalidRequestError(f"allow_internet_access is not served: {_LOOPBACK_ONLY}")
    check_network(asked)


def _check_cidr(text: str) -> None:
    try:
        ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        raise errors.InvalidRequestError(f"invalid denied CIDR {text[:64]}") from None
