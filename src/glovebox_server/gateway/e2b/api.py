"""The control plane's routes as values: one table that the router, the checks and the OpenAPI page are all made from."""

import dataclasses
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import pydantic
from starlette import datastructures, requests, responses, types

from glovebox import errors
from glovebox_server.contract import store
from glovebox_server.gateway import answers, auth, validation
from glovebox_server.manager import keys
from glovebox_server.model import ids

MAX_BODY_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True)
class Call:
    """One request, checked: who, where, what. `body` and `query` are of the route's models."""

    key: store.ApiKey
    params: Mapping[str, str]
    query: Any
    body: Any
    headers: datastructures.Headers
    receive: types.Receive

    @property
    def tenant(self) -> ids.TenantId | None:
        """Whose things may be seen; None: everybody's."""
        return None if self.key.admin else self.key.tenant

    @property
    def sandbox_id(self) -> ids.SandboxId:
        """The path's sandbox. Raises SandboxNotFoundError."""
        return ids.parse_sandbox_id(self.params["sandboxID"])


Handler = Callable[[Call], Awaitable[responses.Response]]


@dataclasses.dataclass(frozen=True)
class Route:
    """One operation. `errors` are the statuses besides 400, 401, 403 and 500 that it may answer with; `also` is another
    success than `success`.
    """

    method: str
    path: str
    summary: str
    handle: Handler
    success: int = 200
    answer: type[pydantic.BaseModel] | None = None
    body: type[pydantic.BaseModel] | None = None
    body_optional: bool = False
    query: type[pydantic.BaseModel] | None = None
    errors: tuple[int, ...] = ()
    admin: bool = False
    also: int | None = None


class Router:
    """Finds the route by the raw path: a segment may hold an escaped `/` or `:`."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self.routes = routes
        self._by_length: dict[int, list[tuple[list[str], Route]]] = {}
        for route in routes:
            segments = route.path.strip("/").split("/")
            self._by_length.setdefault(len(segments), []).append((segments, route))

    def find(self, method: str, raw_path: str) -> tuple[Route | None, dict[str, str], list[str]]:
        """The route and its parameters; or the methods that this path does have."""
        segments = [urllib.parse.unquote(segment) for segment in raw_path.strip("/").split("/")]
        allowed: list[str] = []
        # A literal segment is more to the point than a parameter, for every method: /sandboxes/metrics is no sandbox.
        found = [
            (sum(part.startswith("{") for part in pattern), route, params)
            for pattern, route in self._by_length.get(len(segments), ())
            if (params := _match(pattern, segments)) is not None
        ]
        fewest = min((count for count, _, _ in found), default=0)
        for count, route, params in found:
            if count == fewest:
                if route.method == method:
                    return route, params, []
                allowed.append(route.method)
        return None, {}, allowed


def _match(pattern: list[str], segments: list[str]) -> dict[str, str] | None:
    params: dict[str, str] = {}
    for part, segment in zip(pattern, segments, strict=True):
        if part.startswith("{"):
            if not segment:
                return None
            params[part[1:-1]] = segment
        elif part != segment:
            return None
    return params


async def answer(router: Router, known: keys.Keys, request: requests.Request) -> tuple[str, responses.Response]:
    """The route's pattern (for the metrics) and the answer. Errors become answers here."""
    raw: bytes = request.scope.get("raw_path") or request.scope["path"].encode()
    route, params, allowed = router.find(request.method, raw.partition(b"?")[0].decode("latin-1"))
    if route is None:
        if allowed:
            failed = answers.failure(405, f"{request.method} is not served here")
            failed.headers["Allow"] = ", ".join(sorted(set(allowed)))
            return "not allowed", failed
        return "unknown", answers.failure(404, "there is no such route")
    try:
        return route.path, await _run(route, params, known, request)
    except errors.SandboxGoneError:
        gone = errors.SandboxNotFoundError(params.get("sandboxID", "")[:64])
        return route.path, answers.problem(gone)
    except errors.GloveboxError as error:
        return route.path, answers.problem(error, _headers(error))


async def _run(
    route: Route, params: Mapping[str, str], known: keys.Keys, request: requests.Request
) -> responses.Response:
    key = await auth.authenticate(request, known)
    if route.admin:
        auth.require_admin(key)
    query = None if route.query is None else _query(route.query, request.query_params)
    body = None
    if route.body is not None:
        given = await answers.read(request.receive, MAX_BODY_BYTES)
        body = validation.parse(route.body, given or (b"{}" if route.body_optional else b""))
    return await route.handle(Call(key, params, query, body, request.headers, request.receive))


def _query(model: type[pydantic.BaseModel], given: datastructures.QueryParams) -> pydantic.BaseModel:
    return validation.checked(lambda: model.model_validate(dict(given)))


def _headers(error: errors.GloveboxError) -> dict[str, str] | None:
    """How a client that retries should: later when it is about load, not at all when it is about a quota."""
    if isinstance(error, errors.CapacityError):
        return {"Retry-After": "1", "Should-Retry": "true"}
    if isinstance(error, errors.QuotaExceededError):
        return {"Retry-After": "5", "Should-Retry": "false"}
    return None


def show(found: pydantic.BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> responses.Response:
    """A model as an answer; what was not set is left out."""
    body = found.model_dump_json(exclude_unset=True)
    return responses.Response(body, status, headers, media_type="application/json")
