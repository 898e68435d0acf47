"""The control plane's bodies, in and out: the names are the wire's. Requests are strict on types, lenient on unknown fields."""

import datetime as dt
from typing import Annotated, Any, Literal

import pydantic

MAX_INT = 2**31 - 1
StringMap = dict[str, str]
Seconds = Annotated[int, pydantic.Field(ge=0, le=MAX_INT)]


class Asked(pydantic.BaseModel):
    """A request's body."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore")


class AutoResume(Asked):
    enabled: bool = False


class EgressRules(Asked):
    """What of a sandbox's network settings PUT may change."""

    allowOut: list[str] | None = None
    denyOut: list[str] | None = None
    egressProxy: dict[str, Any] | None = None
    rules: dict[str, Any] | None = None
    dnsServers: list[str] | None = None
    allow_internet_access: bool | None = None


class Network(EgressRules):
    allowPublicTraffic: bool | None = None
    maskRequestHost: str | None = None
    httpsPorts: list[int] | None = None


class VolumeMount(Asked):
    name: str
    path: str


class NewSandbox(Asked):
    """POST /sandboxes and /v2/sandboxes."""

    templateID: Annotated[str, pydantic.Field(min_length=1, max_length=256)]
    timeout: Seconds | None = None
    autoPause: bool | None = None
    autoPauseMemory: bool | None = None
    autoResume: AutoResume | None = None
    secure: bool | None = None
    allow_internet_access: bool | None = None
    network: Network | None = None
    metadata: StringMap | None = None
    envVars: StringMap | None = None
    mcp: dict[str, Any] | None = None
    iam: dict[str, Any] | None = None
    volumeMounts: list[VolumeMount] | None = None


class Connect(Asked):
    """POST /sandboxes/{id}/connect: the old one must say for how long."""

    timeout: Seconds
    memory: bool | None = None


class ConnectV2(Asked):
    timeout: Seconds | None = None
    memory: bool | None = None


class Resume(ConnectV2):
    """POST /sandboxes/{id}/resume."""

    autoPause: bool | None = None


class Pause(Asked):
    """POST /sandboxes/{id}/pause."""

    memory: bool | None = None
    requireHealthyGuest: bool | None = None


class Timeout(Asked):
    timeout: Seconds


class Refresh(Asked):
    duration: Annotated[int, pydantic.Field(ge=0, le=3600)] | None = None


class NewKey(Asked):
    """POST /api-keys. All but the name is ours."""

    name: Annotated[str, pydantic.Field(min_length=1, max_length=128)]
    tenant: Annotated[str, pydantic.Field(min_length=1, max_length=128)] | None = None
    expiresAt: pydantic.AwareDatetime | None = None
    maxSandboxes: Seconds | None = None
    admin: bool = False


class Query(pydantic.BaseModel):
    """A query string: all text, read as what the field is."""

    model_config = pydantic.ConfigDict(extra="ignore")


class ListQuery(Query):
    metadata: str | None = None


def _rfc3339(text: object) -> object:
    """A time in text. A '+' that a client forgot to escape has become a blank; a bare number is no time here."""
    if not isinstance(text, str) or "T" not in text:
        raise ValueError("a time as RFC 3339 writes it is expected")
    return text.replace(" ", "+")


class ListQueryV2(ListQuery):
    state: str | None = None
    limit: Annotated[int, pydantic.Field(ge=1, le=100)] = 100
    nextToken: str | None = None
    order: Literal["asc", "desc"] = "desc"
    startedAfter: Annotated[dt.datetime, pydantic.BeforeValidator(_rfc3339)] | None = None
    template: str | None = None


class MetricsQuery(Query):
    start: Annotated[int, pydantic.Field(ge=0)] | None = None
    end: Annotated[int, pydantic.Field(ge=0)] | None = None


class ManyMetricsQuery(Query):
    sandbox_ids: Annotated[str, pydantic.Field(min_length=1)]


class LogsQuery(Query):
    start: Annotated[int, pydantic.Field(ge=0)] | None = None
    limit: Annotated[int, pydantic.Field(ge=0, le=MAX_INT)] = 1000


class LogsQueryV2(Query):
    cursor: Annotated[int, pydantic.Field(ge=0)] | None = None
    limit: Annotated[int, pydantic.Field(ge=0, le=1000)] = 1000
    direction: Literal["forward", "backward"] = "forward"
    level: Literal["debug", "info", "warn", "error"] | None = None
    search: Annotated[str, pydantic.Field(max_length=256)] | None = None


class Error(pydantic.BaseModel):
    """Every error's body."""

    code: int
    message: str
    error_code: str | None = None


class Sandbox(pydantic.BaseModel):
    """The answer to create and connect."""

    templateID: str
    sandboxID: str
    clientID: str
    envdVersion: str
    alias: str | None = None
    envdAccessToken: str | None = None
    trafficAccessToken: str | None = None
    domain: str | None = None


class ListedSandbox(pydantic.BaseModel):
    """One of a list of sandboxes."""

    templateID: str
    sandboxID: str
    clientID: str
    startedAt: str
    endAt: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    state: Literal["running", "paused"]
    envdVersion: str
    alias: str | None = None
    metadata: StringMap = {}


class Lifecycle(pydantic.BaseModel):
    autoResume: bool
    onTimeout: Literal["kill", "pause"]


class SandboxDetail(ListedSandbox):
    """All about one sandbox. `runtime` and `boundary` are ours: what stands between it and the host."""

    envdAccessToken: str | None = None
    allowInternetAccess: bool | None = None
    domain: str | None = None
    lifecycle: Lifecycle
    runtime: str
    boundary: str


class Metric(pydantic.BaseModel):
    """What a sandbox uses, at one moment."""

    timestamp: str
    timestampUnix: int
    cpuCount: int
    cpuUsedPct: float
    memUsed: int
    memTotal: int
    memCache: int
    diskUsed: int
    diskTotal: int


class ManyMetrics(pydantic.BaseModel):
    sandboxes: dict[str, Metric]


class LogLine(pydantic.BaseModel):
    timestamp: str
    line: str


class LogEntry(pydantic.BaseModel):
    timestamp: str
    message: str
    level: Literal["debug", "info", "warn", "error"]
    fields: StringMap


class Logs(pydantic.BaseModel):
    logs: list[LogLine]
    logEntries: list[LogEntry]


class LogsV2(pydantic.BaseModel):
    logs: list[LogEntry]


class Mask(pydantic.BaseModel):
    """How a key looks to people."""

    prefix: str
    valueLength: int
    maskedValuePrefix: str
    maskedValueSuffix: str


class Key(pydantic.BaseModel):
    """An API key, without its secret."""

    id: str
    name: str
    mask: Mask
    createdAt: str
    createdBy: None = None
    lastUsed: None = None
    tenant: str
    admin: bool
    expiresAt: str | None = None
    revokedAt: str | None = None
    maxSandboxes: int | None = None


class CreatedKey(Key):
    key: str


class Template(pydantic.BaseModel):
    templateID: str
    buildID: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    public: bool
    aliases: list[str]
    names: list[str]
    createdAt: str
    updatedAt: str
    createdBy: None = None
    lastSpawnedAt: None = None
    spawnCount: int
    buildCount: int
    envdVersion: str
    buildStatus: Literal["ready"]


class Build(pydantic.BaseModel):
    """How a template was made: ours have one build, which is done."""

    buildID: str
    status: Literal["ready"]
    createdAt: str
    updatedAt: str
    cpuCount: int
    memoryMB: int
    diskSizeMB: int
    envdVersion: str


class TemplateDetail(pydantic.BaseModel):
    """One template with its builds."""

    templateID: str
    public: bool
    aliases: list[str]
    names: list[str]
    createdAt: str
    updatedAt: str
    lastSpawnedAt: None = None
    spawnCount: int
    builds: list[Build]


class Alias(pydantic.BaseModel):
    templateID: str
    public: bool


SandboxList = pydantic.RootModel[list[ListedSandbox]]
MetricList = pydantic.RootModel[list[Metric]]
KeyList = pydantic.RootModel[list[Key]]
TemplateList = pydantic.RootModel[list[Template]]
