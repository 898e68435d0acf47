"""What goes to a sandbox: finds (or wakes) it, hands the request to the front for its port, cuts it when the sandbox ends.

A request whose answer has begun when its sandbox ends or is paused is left without an end, so that the server closes the
connection in the middle: the SDKs then ask /health, hear that the sandbox was not found, and say so. A clean end would look
like success.
"""

import asyncio
import contextlib
from collections.abc import Iterator

from starlette import types
from starlette.middleware import cors

from glovebox import errors
from glovebox_server.gateway import answers, forward, routing
from glovebox_server.gateway.e2b import envd, interpreter, session
from glovebox_server.manager import sandboxes
from glovebox_server.model import ids

_ENDED_WITHIN_S = 5.0
#: Of envd. Who asks whether a sandbox runs must not make it run; the rest is between envd and its own host, and not served.
_WAKES_NOBODY = frozenset(("/health", "/init", "/freeze", "/unfreeze", "/collapse", "/fsfreeze", "/fsthaw", "/upgrade"))


class Traffic:
    """The way to all sandboxes."""

    def __init__(self, known: sandboxes.Sandboxes) -> None:
        self._sandboxes = known
        self._cuts = Cuts(known)
        self._fronts = {routing.ENVD_PORT: _open(envd.serve), routing.CODE_PORT: _open(interpreter.serve)}

    async def __call__(
        self, target: routing.Target, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        started = False

        async def noting(message: types.Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            sandbox_id = ids.parse_sandbox_id(target.sandbox_id)
            found = await self._sandboxes.reach(sandbox_id, wake=_wakes(target, scope))
            current = session.Session(found, self._sandboxes.guest(sandbox_id), target.port)
            with self._cuts.within(sandbox_id):
                await self._serve(current, scope, receive, noting)
        except (errors.SandboxGoneError, errors.SandboxNotFoundError) as error:
            await self._settle(error, target)
            if not started:
                await not_found(target.sandbox_id)(scope, receive, send)
        except errors.GloveboxError as error:
            # After the answer has begun nothing can be said any more but that it is broken.
            if not started:
                await answers.problem(error)(scope, receive, send)
        except answers.CutError:
            pass

    async def _serve(
        self, current: session.Session, scope: types.Scope, receive: types.Receive, send: types.Send
    ) -> None:
        if (front := self._fronts.get(current.port)) is not None:
            session.put(scope, current)
            await front(scope, receive, send)
        else:
            found = current.sandbox
            await forward.forward(
                current.guest, found.sandbox_id, current.port, found.access_token, scope, receive, send
            )

    async def _settle(self, error: errors.GloveboxError, target: routing.Target) -> None:
        """A lost link is noticed here before the manager has drawn its conclusion; /health must agree with the cut."""
        if isinstance(error, errors.SandboxGoneError):
            ended = self._sandboxes.ended(ids.parse_sandbox_id(target.sandbox_id))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(ended.wait(), _ENDED_WITHIN_S)

    def close(self) -> None:
        self._cuts.close()


class Cuts:
    """The requests in flight: cancelled when their sandbox ends or is paused. One watcher per sandbox, not per request."""

    def __init__(self, known: sandboxes.Sandboxes) -> None:
        self._sandboxes = known
        # By the event that ends them: a sandbox that is resumed has another one than before its pause.
        self._tasks: dict[asyncio.Event, set[asyncio.Task[object]]] = {}
        self._watchers: dict[asyncio.Event, asyncio.Task[None]] = {}
        self._cut: set[asyncio.Task[object]] = set()

    @contextlib.contextmanager
    def within(self, sandbox_id: ids.SandboxId) -> Iterator[None]:
        """The sandbox's end, or its pause, ends the block, with SandboxGoneError."""
        task = asyncio.current_task()
        assert task is not None
        ended = self._sandboxes.ended(sandbox_id)
        tasks = self._tasks.setdefault(ended, set())
        tasks.add(task)
        if ended not in self._watchers:
            self._watchers[ended] = asyncio.create_task(self._watch(ended))
        try:
            yield
        except asyncio.CancelledError:
            if task in self._cut and task.uncancel() == 0:
                raise errors.SandboxGoneError(f"sandbox {sandbox_id} ended") from None
            raise
        finally:
            tasks.discard(task)
            self._cut.discard(task)

    async def _watch(self, ended: asyncio.Event) -> None:
        try:
            await ended.wait()
        finally:
            del self._watchers[ended]
            tasks = self._tasks.pop(ended, set())
        for task in tasks:
            self._cut.add(task)
            task.cancel()

    def close(self) -> None:
        for watcher in list(self._watchers.values()):
            watcher.cancel()


def _wakes(target: routing.Target, scope: types.Scope) -> bool:
    """Whether a request is traffic that a paused sandbox may be resumed for."""
    return target.port != routing.ENVD_PORT or scope["path"] not in _WAKES_NOBODY


def _open(front: types.ASGIApp) -> types.ASGIApp:
    """With CORS for every origin, as the reference: tokens, not cookies, say who calls."""
    return cors.CORSMiddleware(
        front, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=["*"], max_age=7200
    )


def not_found(sandbox_id: str) -> answers.Json:
    """The 502 for a sandbox that is not, or no longer, there: clients look at its very words."""
    head = sandbox_id[:64].partition("-")[0]
    return answers.Json({"sandboxId": head, "message": "The sandbox was not found", "code": 502}, 502)
