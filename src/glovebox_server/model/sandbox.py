"""A sandbox as the manager knows it: what was asked, where it is in its life, until when."""

# The field `resources` would hide the module of that name while annotations are evaluated.
from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Mapping
from typing import Any

from glovebox_server.model import ids, lifecycle, resources


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """One sandbox. Immutable: a change is a new value, written to the store before anybody hears of it."""

    sandbox_id: ids.SandboxId
    tenant: ids.TenantId
    template_id: str
    alias: str | None
    state: lifecycle.State
    started_at: dt.datetime  # when it was created (UTC)
    end_at: dt.datetime  # when its timeout kills or pauses it; while it is paused: since when (UTC)
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    access_token: str = dataclasses.field(repr=False)
    auto_pause: bool = False  # its timeout pauses it, and does not kill it
    auto_resume: bool = False  # traffic to it, when it is paused, resumes it
    resources: resources.Resources = resources.Resources()
    runtime: str = "namespace"
    boundary: str = ""  # what really stands between it and the host, as the runtime says
    node: str = "local"
    end_reason: str | None = None  # why it ended: requested, timeout, idle, died, failed, lost, shutdown
    instance: Mapping[str, Any] | None = None  # the runtime's own record, by which it is found again
    key_id: ids.KeyId | None = None  # the API key that made it: whose quota it counts against
    idempotency_key: str | None = None  # the caller's, unique within the tenant for a day
    request_hash: str | None = None  # of the request that came with it, to tell a retry from another request


@dataclasses.dataclass(frozen=True)
class SandboxSpec:
    """What a node needs to know to make one."""

    sandbox_id: ids.SandboxId
    template_id: str
    resources: resources.Resources
    env: Mapping[str, str]
    hostname: str
