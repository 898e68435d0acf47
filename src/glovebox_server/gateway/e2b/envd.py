"""envd's front (port 49983): Connect services, /files, /health, /metrics and /envs of one sandbox."""

import time

from starlette import datastructures, responses, types

from glovebox import errors
from glovebox_server.gateway import answers, auth, problems, refusals
from glovebox_server.gateway.e2b import connect, files, filesystem, process, session, signatures

METHODS: dict[str, connect.Method] = process.METHODS | filesystem.METHODS
_MIB = 1024 * 1024


async def serve(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
    """One request to envd of the session in `scope`."""
    current = session.of(scope)
    try:
        if (method := METHODS.get(scope["path"])) is not None:
            await _call(method, current, scope, receive, send)
        else:
            answer = await _route(current, scope, receive, send)
            if answer is not None:
                await answer(scope, receive, send)
    except errors.SandboxGoneError:
        raise
    except errors.GloveboxError as error:
        status = 406 if isinstance(error, files.NotAcceptableError) else problems.of(error).status
        await answers.failure(status, answers.text(str(error)))(scope, receive, send)


async def _call(
    method: connect.Method,
    current: session.Session,
    scope: types.Scope,
    receive: types.Receive,
    send: types.Send,
) -> None:
    if scope["method"] != "POST":
        await responses.Response(status_code=405, headers={"Allow": "POST"})(scope, receive, send)
        return
    auth.check_token(scope, current.sandbox.access_token)
    user = signatures.basic_user(datastructures.Headers(scope=scope).get("authorization"))
    await connect.serve(method, current.guest, user, scope, receive, send)


async def _route(
    current: session.Session, scope: types.Scope, receive: types.Receive, send: types.Send
) -> responses.Response | None:
    """Everything but the Connect services; None when the answer has been sent already."""
    method, path = scope["method"], scope["path"]
    if path == "/files" and method in signatures.OPERATIONS:
        return await _files(current, scope, receive, send)
    match method, path:
        case (("GET" | "HEAD"), "/health"):
            return responses.Response(status_code=204)
        case "GET", "/metrics":
            auth.check_token(scope, current.sandbox.access_token)
            return answers.Json(await _metrics(current))
        case "GET", "/envs":
            auth.check_token(scope, current.sandbox.access_token)
            return answers.Json(dict(await current.guest.env()))
    # Among them /init, /freeze and the like, which are between envd and its own host only.
    return answers.failure(404, "Not Found")


async def _metrics(current: session.Session) -> dict[str, float]:
    metrics = dict(await current.guest.metrics())
    return metrics | {
        "mem_total_mib": metrics.get("mem_total", 0) // _MIB,
        "mem_used_mib": metrics.get("mem_used", 0) // _MIB,
    }


async def _files(
    current: session.Session, scope: types.Scope, receive: types.Receive, send: types.Send
) -> responses.Response | None:
    query = datastructures.QueryParams(scope["query_string"])
    token = current.sandbox.access_token
    if (given := auth.token_of(scope)) is not None:
        if not auth.same(given, token):
            raise refusals.mark(scope, auth.UNAUTHORIZED)
    else:
        try:
            signatures.check(query, scope["method"], token, time.time())
        except errors.AuthenticationError as error:
            refusals.mark(scope, str(error))
            raise
    target = files.Target.of(query)
    try:
        if scope["method"] == "POST":
            return answers.Json(await files.upload(current.guest, target, scope, receive))
        await files.download(current.guest, target, scope, receive, send)
    except errors.GuestError as error:
        if error.code != "unauthenticated":
            raise
        raise errors.AuthenticationError(
            f"error looking up user '{target.user}': {answers.text(str(error))}"
        ) from error
    return None
