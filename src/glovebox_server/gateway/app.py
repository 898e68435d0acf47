"""The gateway's ASGI application: to the control plane or to a sandbox, with an id, a measure and a log line per request.

`build` makes it of what it knows: the manager's faces. This is where a request's work ends: whatever was raised becomes
an answer without a trace in it, or, once the answer has begun, a connection that is cut.
"""

import secrets
import time
from collections.abc import Mapping

import structlog
from starlette import datastructures, requests, responses, types

from glovebox import errors
from glovebox_server import audit as audit_log
from glovebox_server import config, telemetry
from glovebox_server.gateway import answers, refusals, routing, traffic
from glovebox_server.gateway.e2b import api, control, envd, openapi, signatures
from glovebox_server.manager import keys as manager_keys
from glovebox_server.manager import sandboxes as manager_sandboxes
from glovebox_server.model import template

_log = structlog.get_logger(__name__)
_LEFT = 499  # how nginx notes a client that did not wait for its answer


def build(
    sandboxes: manager_sandboxes.Sandboxes,
    keys: manager_keys.Keys,
    settings: config.Settings,
    telemetry: telemetry.Telemetry,
    audit: audit_log.AuditLog,
    templates: Mapping[str, template.Template] | None = None,
) -> "Gateway":
    """The application. `templates` are the ones the manager has, by every name and id, for those who list them."""
    routes = control.Control(sandboxes, keys, settings, audit, templates or {}).routes()
    return Gateway(sandboxes, keys, telemetry, refusals.Refusals(audit, telemetry), routes)


class _Note:
    """What is known of a request when it is over."""

    def __init__(self) -> None:
        self.request_id = secrets.token_hex(8)
        self.route = "unknown"
        self.status = 0
        self.sandbox_id: str | None = None
        self.began = time.perf_counter()
        self.head_s = 0.0


class Gateway:
    """The application object."""

    def __init__(
        self,
        sandboxes: manager_sandboxes.Sandboxes,
        keys: manager_keys.Keys,
        metrics: telemetry.Telemetry,
        refused: refusals.Refusals,
        routes: list[api.Route],
    ) -> None:
        self._sandboxes, self._keys, self._metrics, self._refused = sandboxes, keys, metrics, refused
        self._traffic = traffic.Traffic(sandboxes)
        self._router = api.Router(routes)
        self._page = answers.dump(openapi.page(routes))

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            # A WebSocket begins as HTTP here, too (upgrade.py): server.py makes no scopes of ASGI's own kind for it.
            assert scope["type"] == "http"
            await self._http(scope, receive, send)

    async def _live(self, receive: types.Receive, send: types.Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._traffic.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _http(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        note = _Note()

        async def noting(message: types.Message) -> None:
            if message["type"] == "http.response.start":
                note.status = message["status"]
                note.head_s = time.perf_counter() - note.began
                headers = [*message.get("headers", ()), (b"x-request-id", note.request_id.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._route(note, scope, receive, noting)
        except requests.ClientDisconnect:
            note.status = note.status or _LEFT
        except Exception:
            _log.exception("request failed", request_id=note.request_id, route=note.route)
            if not note.status:
                message = f"internal error; its id is {note.request_id}"
                await answers.failure(500, message)(scope, receive, noting)
        finally:
            self._done(note, scope)

    async def _route(self, note: _Note, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        try:
            target = self._target(scope)
        except errors.GloveboxError as error:
            await answers.problem(error)(scope, receive, send)
            return
        if target is None:
            note.route, answer = await self._control(requests.Request(scope, receive))
            await answer(scope, receive, send)
            return
        note.sandbox_id = target.sandbox_id
        note.route = _route_of(target, scope["path"])
        await self._traffic(target, scope, receive, send)

    def _target(self, scope: types.Scope) -> routing.Target | None:
        headers = datastructures.Headers(scope=scope)
        found = routing.target(headers.get("host", ""), headers.get("e2b-sandbox-id"), headers.get("e2b-sandbox-port"))
        if found is None and scope["path"] == "/files":
            return self._signed(scope)
        return found

    def _signed(self, scope: types.Scope) -> routing.Target | None:
        """A signed file URL that was made for one URL for all: its signature tells whose it is."""
        query = datastructures.QueryParams(scope["query_string"])
        if "signature" not in query:
            return None
        found = next(
            (one for one in self._sandboxes.live_all() if signatures.matches(query, scope["method"], one.access_token)),
            None,
        )
        if found is None:
            raise refusals.mark(scope, "invalid signature")
        return routing.Target(found.sandbox_id, routing.ENVD_PORT)

    async def _control(self, request: requests.Request) -> tuple[str, responses.Response]:
        if request.method in ("GET", "HEAD"):
            match request.url.path:
                case "/health":
                    return "/health", responses.Response(status_code=204)
                case "/openapi.json":
                    return "/openapi.json", responses.Response(self._page, media_type="application/json")
                case "/metrics":
                    text = "text/plain; version=0.0.4"
                    return "/metrics", responses.Response(self._metrics.render(), media_type=text)
        return await api.answer(self._router, self._keys, request)

    def _done(self, note: _Note, scope: types.Scope) -> None:
        seconds = time.perf_counter() - note.began
        self._metrics.request(scope["method"], note.route, note.status, note.head_s or seconds)
        self._refused.note(scope, note.route, None if note.sandbox_id is None else note.sandbox_id[:32])
        # The data plane is busy, and audited where it matters: its requests are for those who look closely.
        log = _log.debug if note.sandbox_id is not None else _log.info
        log(
            "request answered",
            request_id=note.request_id,
            method=scope["method"],
            route=note.route,
            status=note.status,
            sandbox_id=None if note.sandbox_id is None else note.sandbox_id[:32],
            duration_ms=round(seconds * 1000, 2),
        )


def _route_of(target: routing.Target, path: str) -> str:
    """A name for the metrics: few, and never a caller's own words."""
    if target.port == routing.ENVD_PORT:
        known = path in envd.METHODS or path in ("/files", "/health", "/metrics", "/envs")
        return f"envd {path}" if known else "envd other"
    if target.port == routing.CODE_PORT:
        return f"code {path}" if path in ("/execute", "/contexts", "/health") else "code other"
    return "port"
