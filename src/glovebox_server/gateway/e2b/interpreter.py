"""The code interpreter's front (port 49999): /execute as newline-delimited JSON events, and the contexts."""

import asyncio
import codecs
import datetime as dt
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pydantic
from starlette import responses, types

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers, auth, presence, problems, validation
from glovebox_server.gateway.e2b import running, session

KEEPALIVE_S = 5.0
#: An unknown context is told by the status; a queue before us must not hold the headers back for longer than this.
_HEADERS_WITHIN_S = 1.0
_MAX_BODY_BYTES = 8 * 1024 * 1024
_MAX_ENV_LETTERS = 2 * 1024 * 1024
_MEMBERS = {
    "text/plain": "text",
    "text/html": "html",
    "text/markdown": "markdown",
    "image/svg+xml": "svg",
    "image/png": "png",
    "image/jpeg": "jpeg",
    "application/pdf": "pdf",
    "text/latex": "latex",
    "application/json": "json",
    "application/javascript": "javascript",
    "e2b/data": "data",
    "e2b/chart": "chart",
}


class _Execute(pydantic.BaseModel):
    code: str
    context_id: str | None = None
    language: str | None = None
    env_vars: dict[str, str] | None = None


class _NewContext(pydantic.BaseModel):
    language: str | None = None
    cwd: str | None = None


async def serve(scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
    """One request to the code interpreter of the session in `scope`."""
    current = session.of(scope)
    method, path = scope["method"], scope["path"]
    try:
        if (method, path) == ("POST", "/execute"):
            auth.check_token(scope, current.sandbox.access_token)
            await _execute(current.guest, scope, receive, send)
            return
        # The SDKs send no token with the contexts: they are open to whoever knows the id. A wrong one is wrong all the same.
        if auth.token_of(scope) is not None:
            auth.check_token(scope, current.sandbox.access_token)
        answer = await _contexts(current.guest, method, path, receive)
    except errors.SandboxGoneError:
        raise
    except errors.AuthenticationError as error:
        answer = answers.failure(401, str(error))
    except errors.GloveboxError as error:
        answer = responses.PlainTextResponse(answers.text(str(error)), problems.of(error).status)
    await answer(scope, receive, send)


async def _contexts(found: guest.Guest, method: str, path: str, receive: types.Receive) -> responses.Response:
    parts = path.strip("/").split("/")
    match method, parts:
        case (("GET" | "HEAD"), ["health"]):
            return answers.Json("OK")
        case "GET", ["contexts"]:
            return answers.Json([_context(context) for context in await found.list_contexts()])
        case "POST", ["contexts"]:
            asked = validation.parse(_NewContext, await answers.read(receive, _MAX_BODY_BYTES) or b"{}")
            language = asked.language.lower() if asked.language else None
            return answers.Json(_context(await found.create_context(language=language, cwd=asked.cwd or None)))
        case "DELETE", ["contexts", context_id]:
            await found.remove_context(context_id)
            return answers.Json(None)
        case "POST", ["contexts", context_id, "restart"]:
            await found.restart_context(context_id)
            return answers.Json(None)
    return responses.PlainTextResponse("Not Found", 404)


async def _execute(found: guest.Guest, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
    asked = validation.parse(_Execute, await answers.read(receive, _MAX_BODY_BYTES))
    if asked.context_id and asked.language:
        raise errors.InvalidRequestError("Only one of context_id or language can be provided")
    env = asked.env_vars or {}
    if sum(len(name) + len(value) + 9 for name, value in env.items()) > _MAX_ENV_LETTERS:
        raise errors.InvalidRequestError(f"env_vars: names and values exceed {_MAX_ENV_LETTERS} characters")
    events = found.execute(
        asked.code,
        context_id=asked.context_id or None,
        language=asked.language.lower() if asked.language else None,
        env=env,
    )
    async with presence.watched(receive), running.closing(events):
        first = asyncio.ensure_future(anext(events, None))
        try:
            await asyncio.wait((first,), timeout=_HEADERS_WITHIN_S)
            if first.done():
                first.result()  # a refusal is told by the status
            await _Lines(send).run(first, events)
        finally:
            if not first.done():
                first.cancel()
                await asyncio.wait((first,))


class _Lines:
    """The events of one execution, a line each."""

    def __init__(self, send: types.Send) -> None:
        self._send = send
        self._silence = presence.Silence(KEEPALIVE_S, self._keep_alive)
        # A character may be split over two chunks.
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {"stdout": decoder("replace"), "stderr": decoder("replace"), "pty": decoder("replace")}

    async def run(
        self, first: "asyncio.Future[guest.CodeEvent | None]", events: AsyncIterator[guest.CodeEvent]
    ) -> None:
        headers = [(b"content-type", b"application/x-ndjson"), (b"x-accel-buffering", b"no")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        async with self._silence:
            try:
                if (event := await first) is not None:
                    await self._event(event)
                    async for event in events:
                        await self._event(event)
            except errors.GuestError as error:
                await self._line(type="error", name="UnexpectedEndOfExecution", value=str(error), traceback="")
        await self._line(type="end_of_execution")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _event(self, event: guest.CodeEvent) -> None:
        self._silence.heard()
        match event:
            case guest.Output(stream, data):
                if text := self._decoders[stream].decode(data):
                    await self._output(stream, text)
            case guest.ExecutionStarted(count):
                await self._line(type="number_of_executions", execution_count=count)
            case guest.Result(data=bundle, is_main_result=main):
                await self._line(type="result", **result(bundle), is_main_result=main)
            case guest.ExecutionError(name, value, traceback):
                if name == "ContextDied":
                    name, value = "ContextRestarting", f"Context was restarted: {value}"
                await self._line(type="error", name=name, value=value, traceback=traceback)
            case guest.ExecutionEnded():
                for source, decoder in self._decoders.items():
                    if text := decoder.decode(b"", final=True):
                        await self._output(source, text)

    async def _output(self, stream: str, text: str) -> None:
        now = dt.datetime.now(dt.UTC).isoformat()
        await self._line(type="stderr" if stream == "stderr" else "stdout", text=text, timestamp=now)

    async def _keep_alive(self) -> None:
        await self._line(type="keepalive")

    async def _line(self, **event: Any) -> None:
        body = answers.dump(event) + b"\n"
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


def result(bundle: Mapping[str, Any]) -> dict[str, Any]:
    """A MIME bundle as a result event's members; what has no member of its own goes into `extra`."""
    members: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    for mime, value in bundle.items():
        if value is not None:
            if mime in _MEMBERS:
                members[_MEMBERS[mime]] = value
            else:
                extra[mime] = value
    if isinstance(text := members.get("text"), str):
        members["text"] = unquoted(text)
    return members | {"extra": extra}


def unquoted(text: str) -> str:
    """Without one pair of quotes around it: a string's repr is shown as the string."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _context(context: guest.Context) -> dict[str, str]:
    return {"id": context.context_id, "language": context.language, "cwd": context.cwd}
