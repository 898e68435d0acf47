"""What the control plane shows of our things: values of the model as bodies of the wire."""

import datetime as dt
import json
import uuid
from collections.abc import Mapping

from glovebox_server.contract import store
from glovebox_server.gateway.e2b import models
from glovebox_server.manager import journal
from glovebox_server.model import lifecycle, resources, sandbox, template

#: The envd whose protocol we speak: the SDKs choose what to offer by it.
ENVD_VERSION = "0.6.13"

_SECRET_LETTERS = len("e2b_") + 40
_BUILDS = uuid.UUID("6f0d8b52-6f3c-4b1e-9a55-0c5d1d8f2a11")


def time(moment: dt.datetime) -> str:
    """RFC 3339, UTC."""
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def created(found: sandbox.Sandbox, domain: str | None) -> models.Sandbox:
    """A sandbox as create and connect tell it, with its token."""
    return models.Sandbox(
        templateID=found.template_id,
        sandboxID=found.sandbox_id,
        clientID=found.node,
        envdVersion=ENVD_VERSION,
        **_alias(found),
        envdAccessToken=found.access_token,
        trafficAccessToken=None,
        domain=domain,
    )


def listed(found: sandbox.Sandbox) -> models.ListedSandbox:
    """A sandbox in a list."""
    return models.ListedSandbox.model_validate(_listed(found))


def detail(found: sandbox.Sandbox, domain: str | None) -> models.SandboxDetail:
    """All about a sandbox."""
    return models.SandboxDetail.model_validate(
        _listed(found)
        | {
            "envdAccessToken": found.access_token,
            "allowInternetAccess": None,
            "domain": domain,
            "lifecycle": {"autoResume": found.auto_resume, "onTimeout": "pause" if found.auto_pause else "kill"},
            "runtime": found.runtime,
            "boundary": found.boundary,
        }
    )


def _listed(found: sandbox.Sandbox) -> dict[str, object]:
    return {
        "templateID": found.template_id,
        "sandboxID": found.sandbox_id,
        "clientID": found.node,
        "startedAt": time(found.started_at),
        "endAt": time(found.end_at),
        **_sizes(found.resources),
        "state": "paused" if found.state == lifecycle.State.PAUSED else "running",
        "envdVersion": ENVD_VERSION,
        "metadata": dict(found.metadata),
        **_alias(found),
    }


def _sizes(limits: resources.Resources) -> dict[str, int]:
    return {
        "cpuCount": max(1, round(limits.cpu_count)),
        "memoryMB": limits.memory_bytes // resources.MIB,
        "diskSizeMB": limits.disk_bytes // resources.MIB,
    }


def _alias(found: sandbox.Sandbox) -> dict[str, str]:
    return {} if found.alias is None else {"alias": found.alias}


def metric(
    found: sandbox.Sandbox, now: dt.datetime, usage: resources.Usage | None, seen: Mapping[str, float]
) -> models.Metric:
    """One sample: memory as measured from outside (where it can be), the rest as the guest tells it, within its limits."""
    limits = found.resources
    cpu_count = max(1, round(limits.cpu_count))
    return models.Metric(
        timestamp=time(now),
        timestampUnix=int(now.timestamp()),
        cpuCount=cpu_count,
        cpuUsedPct=round(_within(seen.get("cpu_used_pct", 0), 100.0 * cpu_count), 2),
        memUsed=usage.memory_bytes if usage else int(_within(seen.get("mem_used", 0), limits.memory_bytes)),
        memTotal=limits.memory_bytes,
        memCache=usage.memory_cache_bytes if usage else 0,
        diskUsed=int(_within(seen.get("disk_used", 0), limits.disk_bytes)),
        diskTotal=limits.disk_bytes,
    )


def _within(value: float, limit: float) -> float:
    return max(0.0, min(value, limit)) if value == value else 0.0


def entry(found: journal.JournalEntry) -> models.LogEntry:
    """A journal's entry."""
    return models.LogEntry(
        timestamp=time(found.timestamp), message=found.message, level=found.level, fields=dict(found.fields)
    )


def line(found: journal.JournalEntry) -> models.LogLine:
    """A journal's entry as the old interface has it: the line is JSON."""
    text = json.dumps({"level": found.level, "message": found.message, **found.fields})
    return models.LogLine(timestamp=time(found.timestamp), line=text)


def key(found: store.ApiKey) -> models.Key:
    """An API key, without its secret."""
    return models.Key.model_validate(_key(found))


def created_key(found: store.ApiKey, secret: str) -> models.CreatedKey:
    """A new API key: the only time its secret is told."""
    return models.CreatedKey.model_validate(_key(found) | {"key": secret})


def _key(found: store.ApiKey) -> dict[str, object]:
    return {
        "id": found.key_id,
        "name": found.name,
        "mask": {
            "prefix": "e2b_",
            "valueLength": _SECRET_LETTERS - len("e2b_"),
            "maskedValuePrefix": found.prefix.removeprefix("e2b_"),
            "maskedValueSuffix": "",
        },
        "createdAt": time(found.created_at),
        "createdBy": None,
        "lastUsed": None,
        "tenant": found.tenant,
        "admin": found.admin,
        "expiresAt": None if found.expires_at is None else time(found.expires_at),
        "revokedAt": None if found.revoked_at is None else time(found.revoked_at),
        "maxSandboxes": found.max_sandboxes,
    }


def template_detail(found: template.Template, since: dt.datetime) -> models.TemplateDetail:
    """A template with its one build."""
    told = a_template(found, since).model_dump()
    return models.TemplateDetail.model_validate(told | {"builds": [told | {"status": "ready"}]})


def a_template(found: template.Template, since: dt.datetime) -> models.Template:
    """A template that this server was started with."""
    return models.Template.model_validate(
        {
            "templateID": found.template_id,
            "buildID": str(uuid.uuid5(_BUILDS, found.template_id)),
            **_sizes(found.resources),
            "public": True,
            "aliases": list(found.names),
            "names": list(found.names),
            "createdAt": time(since),
            "updatedAt": time(since),
            "createdBy": None,
            "lastSpawnedAt": None,
            "spawnCount": 0,
            "buildCount": 1,
            "envdVersion": ENVD_VERSION,
            "buildStatus": "ready",
        }
    )
