"""The control plane: sandboxes made, listed, kept, watched and ended; keys; templates."""

import datetime as dt
import re
from collections.abc import Mapping, Sequence

from starlette import responses

from glovebox import errors
from glovebox_server import audit as audit_log
from glovebox_server import config
from glovebox_server.gateway import presence
from glovebox_server.gateway.e2b import api, listing, models, unserved, views
from glovebox_server.manager import journal, keys, sandboxes
from glovebox_server.model import ids, lifecycle, sandbox, template

_V1_DEFAULT_TIMEOUT_S, _REFRESH_S, _MAX_BATCH = 15, 15, 100  # the first also of /resume
_IDEMPOTENCY_KEY = re.compile(r"[a-z0-9-]{1,255}")
_LEVELS = ("debug", "info", "warn", "error")
_BUSY = (404, 409, 429, 501, 503)


class Control:
    """The handlers of the control plane's routes."""

    def __init__(
        self,
        known: sandboxes.Sandboxes,
        keys: keys.Keys,
        settings: config.Settings,
        audit: audit_log.AuditLog,
        templates: Mapping[str, template.Template],
    ) -> None:
        self._sandboxes, self._keys, self._settings, self._audit = known, keys, settings, audit
        self._templates = templates
        self._since = dt.datetime.now(dt.UTC)

    # Sandboxes.

    async def create(self, call: api.Call) -> responses.Response:
        return await self._create(call, _V1_DEFAULT_TIMEOUT_S)

    async def create_v2(self, call: api.Call) -> responses.Response:
        return await self._create(call, self._settings.limits.default_timeout_s)

    async def _create(self, call: api.Call, default_timeout_s: int) -> responses.Response:
        asked: models.NewSandbox = call.body
        unserved.check_sandbox(asked)
        request = sandboxes.CreateRequest(
            template=asked.templateID,
            timeout_s=default_timeout_s if asked.timeout is None else asked.timeout,
            metadata=asked.metadata or {},
            env=asked.envVars or {},
            auto_pause=bool(asked.autoPause),
            auto_resume=asked.autoResume is not None and asked.autoResume.enabled,
            idempotency_key=_idempotency_key(call.headers.get("idempotency-key")),
        )
        async with presence.watched(call.receive):  # nobody else will ever know its id
            made = await self._sandboxes.create(request, call.key)
        return api.show(views.created(made, self._settings.domain), 201)

    async def list_v1(self, call: api.Call) -> responses.Response:
        found = await self._sandboxes.list(
            call.tenant, states=listing.states("running"), metadata=listing.metadata(call.query.metadata)
        )
        return api.show(models.SandboxList([views.listed(one) for one in found]))

    async def list_v2(self, call: api.Call) -> responses.Response:
        query: models.ListQueryV2 = call.query
        found = await self._sandboxes.list(
            call.tenant,
            states=listing.states(query.state),
            started_after=listing.moment(query.startedAfter),
            template=listing.template(query.template),
            metadata=listing.metadata(query.metadata),
            page=listing.page(query),
        )
        shown, token = listing.cut(found, query)
        headers = {"X-Total-Running": str(await self._sandboxes.count_running(call.tenant))}
        if token is not None:
            headers["X-Next-Token"] = token
        return api.show(models.SandboxList([views.listed(one) for one in shown]), headers=headers)

    async def get(self, call: api.Call) -> responses.Response:
        return api.show(views.detail(await self._visible(call), self._settings.domain))

    async def kill(self, call: api.Call) -> responses.Response:
        await self._sandboxes.kill(call.sandbox_id, call.tenant)
        return _nothing()

    async def connect(self, call: api.Call) -> responses.Response:
        asked: models.Connect | models.ConnectV2 = call.body
        if (await self._visible(call)).state is not lifecycle.State.RUNNING:
            unserved.check_memory(asked)  # what runs is not booted anew, whatever is asked
        timeout_s = self._settings.limits.default_timeout_s if asked.timeout is None else asked.timeout
        found, resumed = await self._sandboxes.connect(call.sandbox_id, call.tenant, timeout_s)
        return api.show(views.created(found, self._settings.domain), 201 if resumed else 200)

    async def pause(self, call: api.Call) -> responses.Response:
        asked: models.Pause = call.body
        unserved.check_memory(asked)
        strict = bool(asked.requireHealthyGuest)
        await self._sandboxes.pause(call.sandbox_id, call.tenant, require_healthy=strict)
        return _nothing()

    async def resume(self, call: api.Call) -> responses.Response:
        asked: models.Resume = call.body
        unserved.check_memory(asked)
        timeout_s = _V1_DEFAULT_TIMEOUT_S if asked.timeout is None else asked.timeout
        found = await self._sandboxes.resume(call.sandbox_id, call.tenant, timeout_s, auto_pause=asked.autoPause)
        return api.show(views.created(found, self._settings.domain), 201)

    async def set_timeout(self, call: api.Call) -> responses.Response:
        await self._sandboxes.set_timeout(call.sandbox_id, call.tenant, call.body.timeout)
        return _nothing()

    async def refresh(self, call: api.Call) -> responses.Response:
        duration_s = call.body.duration or _REFRESH_S
        await self._sandboxes.extend(call.sandbox_id, call.tenant, duration_s)
        return _nothing()

    async def network(self, call: api.Call) -> responses.Response:
        await self._visible(call)
        unserved.check_network_update(call.body)
        return _nothing()

    async def _visible(self, call: api.Call) -> sandbox.Sandbox:
        return await self._sandboxes.get(call.sandbox_id, call.tenant)

    # What they use, and what happened to them.

    async def metrics(self, call: api.Call) -> responses.Response:
        query: models.MetricsQuery = call.query
        sample = await self._sample(await self._visible(call))
        samples = [] if sample is None else [sample]
        start, end = query.start or 0, query.end or _now_s()
        return api.show(models.MetricList([one for one in samples if start <= one.timestampUnix <= end]))

    async def many_metrics(self, call: api.Call) -> responses.Response:
        wanted = [text for text in call.query.sandbox_ids.split(",") if text]
        if not 0 < len(wanted) <= _MAX_BATCH:
            raise errors.InvalidRequestError(f"sandbox_ids: 1 to {_MAX_BATCH} ids, separated by commas")
        found: dict[str, models.Metric] = {}
        for text in wanted:
            # One that is gone, or somebody else's, has no metrics: that is no reason to refuse the others.
            try:
                one = await self._sandboxes.get(ids.parse_sandbox_id(text), call.tenant)
                sample = await self._sample(one)
            except (errors.SandboxNotFoundError, errors.SandboxGoneError):
                continue
            if sample is not None:
                found[text] = sample
        return api.show(models.ManyMetrics(sandboxes=found))

    async def _sample(self, found: sandbox.Sandbox) -> models.Metric | None:
        if found.state != lifecycle.State.RUNNING:
            return None
        try:
            usage = await self._sandboxes.usage(found.sandbox_id, None)
        except errors.UnsupportedError:
            usage = None  # this host gives us nothing to measure it with
        try:
            seen = await self._sandboxes.guest(found.sandbox_id).metrics()
        except errors.GuestError:
            seen = {}
        return views.metric(found, dt.datetime.now(dt.UTC), usage, seen)

    async def logs(self, call: api.Call) -> responses.Response:
        query: models.LogsQuery = call.query
        entries = await self._journal(call)
        shown = [one for one in entries if _ms(one) >= (query.start or 0)][: query.limit]
        return api.show(
            models.Logs(logs=[views.line(one) for one in shown], logEntries=[views.entry(one) for one in shown])
        )

    async def logs_v2(self, call: api.Call) -> responses.Response:
        query: models.LogsQueryV2 = call.query
        entries = list(await self._journal(call))
        if query.direction == "backward":
            entries.reverse()
            shown = [one for one in entries if query.cursor is None or _ms(one) <= query.cursor]
        else:
            shown = [one for one in entries if _ms(one) >= (query.cursor or 0)]
        if query.level is not None:
            shown = [one for one in shown if _LEVELS.index(one.level) >= _LEVELS.index(query.level)]
        if query.search:
            shown = [one for one in shown if query.search in one.message]
        return api.show(models.LogsV2(logs=[views.entry(one) for one in shown[: query.limit]]))

    async def _journal(self, call: api.Call) -> Sequence[journal.JournalEntry]:
        return self._sandboxes.journal((await self._visible(call)).sandbox_id)

    # Keys (admins only) and templates.

    async def list_keys(self, call: api.Call) -> responses.Response:
        return api.show(models.KeyList([views.key(one) for one in await self._keys.list()]))

    async def create_key(self, call: api.Call) -> responses.Response:
        asked: models.NewKey = call.body
        key, secret = await self._keys.create(
            asked.name,
            tenant=asked.tenant,
            expires_at=asked.expiresAt,
            max_sandboxes=asked.maxSandboxes,
            admin=asked.admin,
        )
        self._note("key.created", call, key.key_id)
        return api.show(views.created_key(key, secret), 201)

    async def revoke_key(self, call: api.Call) -> responses.Response:
        key_id = ids.KeyId(call.params["apiKeyID"])
        await self._keys.revoke(key_id)
        self._note("key.revoked", call, key_id)
        return _nothing()

    def _note(self, action: str, call: api.Call, key_id: ids.KeyId) -> None:
        self._audit.record(audit_log.Record(action=action, user_id=call.key.key_id, detail={"key_id": key_id}))

    async def list_templates(self, call: api.Call) -> responses.Response:
        known = {one.template_id: one for one in self._templates.values()}
        return api.show(models.TemplateList([views.a_template(one, self._since) for one in known.values()]))

    async def one_template(self, call: api.Call) -> responses.Response:
        found = self._template(call.params["templateID"])
        return api.show(views.template_detail(found, self._since))

    async def alias(self, call: api.Call) -> responses.Response:
        found = self._template(call.params["alias"])
        return api.show(models.Alias(templateID=found.template_id, public=True))

    def _template(self, name: str) -> template.Template:
        """By its id or one of its names."""
        found = self._templates.get(name.lower())
        if found is None:
            raise errors.TemplateNotFoundError(name[:128])
        return found

    def routes(self) -> list[api.Route]:
        """The table of everything that is served, and of what is not yet."""
        one = "/sandboxes/{sandboxID}"
        route = api.Route
        return [
            route("POST", "/sandboxes", "Create a sandbox (first generation)", self.create, 201,
                  models.Sandbox, models.NewSandbox, errors=_BUSY),
            route("POST", "/v2/sandboxes", "Create a sandbox", self.create_v2, 201,
                  models.Sandbox, models.NewSandbox, errors=_BUSY),
            route("GET", "/sandboxes", "List running sandboxes (first generation)", self.list_v1, 200,
                  models.SandboxList, query=models.ListQuery),
            route("GET", "/v2/sandboxes", "List sandboxes, page by page", self.list_v2, 200,
                  models.SandboxList, query=models.ListQueryV2),
            route("GET", "/sandboxes/metrics", "What several sandboxes use", self.many_metrics, 200,
                  models.ManyMetrics, query=models.ManyMetricsQuery),
            route("GET", one, "One sandbox", self.get, 200, models.SandboxDetail, errors=(404,)),
            route("DELETE", one, "Kill a sandbox", self.kill, 204, errors=(404,)),
            route("POST", one + "/connect", "Keep a sandbox alive, or resume it (first generation)", self.connect, 200,
                  models.Sandbox, models.Connect, errors=_BUSY, also=201),
            route("POST", "/v2" + one + "/connect", "Keep a sandbox alive, or resume it", self.connect, 200,
                  models.Sandbox, models.ConnectV2, True, errors=_BUSY, also=201),
            route("POST", one + "/pause", "Pause a sandbox", self.pause, 204,
                  None, models.Pause, True, errors=(404, 409, 501, 503)),
            route("POST", one + "/resume", "Resume a paused sandbox (legacy)", self.resume, 201,
                  models.Sandbox, models.Resume, True, errors=_BUSY),
            route("POST", one + "/timeout", "Set when a sandbox ends", self.set_timeout, 204,
                  None, models.Timeout, errors=(404, 409)),
            route("POST", one + "/refreshes", "Keep a sandbox alive (legacy)", self.refresh, 204,
                  None, models.Refresh, True, errors=(404, 409)),
            route("PUT", one + "/network", "Replace a sandbox's egress rules", self.network, 204,
                  None, models.EgressRules, errors=(404, 409, 501)),
            route("GET", one + "/metrics", "What a sandbox uses", self.metrics, 200,
                  models.MetricList, query=models.MetricsQuery, errors=(404,)),
            route("GET", one + "/logs", "What happened to a sandbox (first generation)", self.logs, 200,
                  models.Logs, query=models.LogsQuery, errors=(404,)),
            route("GET", "/v2" + one + "/logs", "What happened to a sandbox", self.logs_v2, 200,
                  models.LogsV2, query=models.LogsQueryV2, errors=(404,)),
            route("GET", "/api-keys", "List API keys", self.list_keys, 200, models.KeyList, admin=True),
            route("POST", "/api-keys", "Create an API key", self.create_key, 201,
                  models.CreatedKey, models.NewKey, admin=True),
            route("DELETE", "/api-keys/{apiKeyID}", "Revoke an API key", self.revoke_key, 204,
                  errors=(404,), admin=True),
            route("GET", "/templates", "List templates", self.list_templates, 200, models.TemplateList),
            route("GET", "/templates/{templateID}", "One template", self.one_template, 200,
                  models.TemplateDetail, errors=(404,)),
            route("GET", "/templates/aliases/{alias}", "Find a template by a name", self.alias, 200,
                  models.Alias, errors=(404,)),
            *(route(method, path, f"Not served yet: {what}", _refusal(what), 501)
              for method, path, what in unserved.ROUTES),
        ]  # fmt: skip


def _refusal(what: str) -> api.Handler:
    async def refuse(call: api.Call) -> responses.Response:
        raise errors.UnsupportedError(f"{what} is not served by this server yet")

    return refuse


def _now_s() -> int:
    # A second's slack for rounding.
    return int(dt.datetime.now(dt.UTC).timestamp()) + 1


def _nothing() -> responses.Response:
    return responses.Response(status_code=204)


def _ms(entry: journal.JournalEntry) -> int:
    return int(entry.timestamp.timestamp() * 1000)


def _idempotency_key(given: str | None) -> str | None:
    if given is not None and not _IDEMPOTENCY_KEY.fullmatch(given):
        raise errors.InvalidRequestError("Idempotency-Key must be 1 to 255 of a-z, 0-9 and '-'")
    return given
