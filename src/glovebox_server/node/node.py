"""The node that is this very process: it makes instances, holds them and their guests, sees them end, and ends them.

    create ──▶ making ──▶ held ──▶ ending ──▶ (nothing)          held: running or, between pause and resume, not
                 │ failed, cancelled, destroyed ▲   by destroy(); or by itself: the instance died, or its guest broke
                 └──────────────────────────────┘   the link's protocol, and then `on_ended` is told

Each step of one sandbox belongs to one task: `_make` until it is held, `_watch` while it is, `_end` from then on.
"""

import asyncio
import contextlib
import dataclasses
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, TypeVar

import structlog

from glovebox import errors
from glovebox_server.contract import guest as guest_contract
from glovebox_server.contract import node as node_contract
from glovebox_server.contract import runtime as runtime_contract
from glovebox_server.model import ids, resources, sandbox
from glovebox_server.model import template as template_model
from glovebox_server.node import guest

CREATE_TIMEOUT_S = 60.0
ADOPT_TIMEOUT_S = 30.0
HEALTHY_WITHIN_S = 5.0

_log = structlog.get_logger(__name__)
T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class _Held:
    """One instance, with what belongs to it here."""

    instance: runtime_contract.Instance
    guest: guest.LinkedGuest
    broken: asyncio.Future[str]
    watcher: asyncio.Task[None] | None = None

    @property
    def made(self) -> node_contract.Made:
        return node_contract.Made(self.instance.sandbox_id, self.instance.boundary, self.instance.record())


class LocalNode:
    """This machine (contract.node.Node). `templates` are found by every id and name they are given under."""

    def __init__(
        self,
        name: str,
        runtimes: Mapping[str, runtime_contract.Runtime],
        templates: Mapping[str, template_model.Template],
        *,
        default_user: str = "user",
        create_timeout_s: float = CREATE_TIMEOUT_S,
    ) -> None:
        self._name = name
        self._runtimes = dict(runtimes)
        self._templates = dict(templates)
        self._default_user = default_user
        self._create_timeout_s = create_timeout_s
        self._on_ended: node_contract.OnEnded | None = None
        self._prepared: set[tuple[str, str]] = set()
        self._making: dict[ids.SandboxId, asyncio.Task[node_contract.Made]] = {}
        self._held: dict[ids.SandboxId, _Held] = {}
        self._ending: dict[ids.SandboxId, asyncio.Task[None]] = {}
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def name(self) -> str:
        return self._name

    async def start(self, on_ended: node_contract.OnEnded) -> None:
        self._on_ended = on_ended
        for template in {template.template_id: template for template in self._templates.values()}.values():
            if template.runtime in self._runtimes:
                await self._prepare(template.runtime, template)

    async def probe(self) -> Sequence[runtime_contract.Probe]:
        return await asyncio.gather(*(runtime.probe() for runtime in self._runtimes.values()))

    def capabilities(self, runtime: str) -> frozenset[str]:
        return self._runtimes[runtime].capabilities if runtime in self._runtimes else frozenset()

    async def create(self, spec: sandbox.SandboxSpec, runtime: str) -> node_contract.Made:
        sandbox_id = spec.sandbox_id
        if sandbox_id in self._held or sandbox_id in self._making or sandbox_id in self._ending:
            raise errors.ConflictError(f"there is a sandbox {sandbox_id} on this node already")
        making = asyncio.create_task(self._make(spec, runtime))
        self._making[sandbox_id] = making
        try:
            # When the caller is cancelled, so is the task, and this returns only when all is cleaned up.
            return await making
        except asyncio.CancelledError:
            if _cancelled_from_outside():
                raise
            raise errors.SandboxGoneError(f"sandbox {sandbox_id} was destroyed while it was being made") from None
        finally:
            self._making.pop(sandbox_id, None)

    async def adopt(
        self, sandbox_id: ids.SandboxId, runtime: str, record: Mapping[str, Any], *, paused: bool = False
    ) -> node_contract.Made | None:
        if runtime not in self._runtimes:
            raise errors.UnsupportedError(f"this node has no runtime '{runtime}'")
        if sandbox_id in self._held:
            return self._held[sandbox_id].made
        instance = await self._runtimes[runtime].adopt(sandbox_id, record)
        if instance is None:
            return None
        held = self._new_held(instance)
        try:
            async with asyncio.timeout(ADOPT_TIMEOUT_S):
                await (_pause(held) if paused else _resume(held))
        except (errors.SandboxGoneError, TimeoutError) as error:
            await self._discard(held)
            _log.warning("sandbox not adopted", sandbox_id=sandbox_id, reason=str(error))
            return None
        except BaseException:
            held.guest.close()  # but the sandbox lives: it was not its fault
            raise
        return self._hold(held)

    async def sweep(self, keep: Sequence[ids.SandboxId]) -> Sequence[ids.SandboxId]:
        unwanted = [sandbox_id for sandbox_id in self._held if sandbox_id not in keep]
        for sandbox_id in unwanted:
            await self.destroy(sandbox_id)
        kept = {*keep, *self._making}
        for runtime in self._runtimes.values():
            unwanted += await runtime.sweep(kept)
        return unwanted

    async def check(self, sandbox_id: ids.SandboxId) -> None:
        try:
            async with asyncio.timeout(HEALTHY_WITHIN_S):
                await self._get(sandbox_id).guest.env()
        except TimeoutError as error:
            raise errors.CapacityError(
                f"the guest agent of sandbox {sandbox_id} did not answer within {HEALTHY_WITHIN_S:.0f} s"
            ) from error

    async def pause(self, sandbox_id: ids.SandboxId) -> None:
        await _pause(self._get(sandbox_id))

    async def resume(self, sandbox_id: ids.SandboxId) -> None:
        await _resume(self._get(sandbox_id))

    async def destroy(self, sandbox_id: ids.SandboxId) -> None:
        making = self._making.get(sandbox_id)
        if making is not None:
            making.cancel()
            await asyncio.wait([making])
        # It may have been finished in the very moment before.
        held = self._held.pop(sandbox_id, None)
        if held is not None:
            self._ending[sandbox_id] = asyncio.create_task(self._end(held))
        ending = self._ending.get(sandbox_id)
        if ending is not None:
            await asyncio.shield(ending)

    def guest(self, sandbox_id: ids.SandboxId) -> guest_contract.Guest:
        return self._get(sandbox_id).guest

    async def usage(self, sandbox_id: ids.SandboxId) -> resources.Usage:
        return await self._get(sandbox_id).instance.usage()

    async def close(self, *, destroy: bool) -> None:
        if destroy:
            await asyncio.gather(*(self.destroy(sandbox_id) for sandbox_id in {*self._making, *self._held}))
        for making in list(self._making.values()):
            making.cancel()
            await asyncio.wait([making])
        if self._ending:
            await asyncio.wait(list(self._ending.values()))
        for telling in list(self._telling):
            await _stop(telling)
        for held in self._held.values():
            held.guest.close()
            await _stop(held.watcher)
        self._held.clear()
        for runtime in self._runtimes.values():
            await runtime.close(destroy=destroy)

    # --- making ---

    async def _make(self, spec: sandbox.SandboxSpec, runtime: str) -> node_contract.Made:
        template = self._templates.get(spec.template_id)
        if template is None:
            raise errors.TemplateNotFoundError(spec.template_id)
        if runtime not in self._runtimes:
            raise errors.UnsupportedError(f"this node has no runtime '{runtime}'")
        try:
            async with asyncio.timeout(self._create_timeout_s):
                await self._prepare(runtime, template)
                instance = await self._runtimes[runtime].create(spec, template)
                held = self._new_held(instance)
                try:
                    # HELLO and this go out together, and one round trip answers both.
                    await held.guest.configure(self._env(spec), default_user=self._default_user)
                    return self._hold(held)
                except BaseException:
                    await self._discard(held)
                    raise
        except TimeoutError as error:
            raise errors.CapacityError(f"sandbox {spec.sandbox_id} was not ready in time") from error

    async def _prepare(self, runtime: str, template: template_model.Template) -> None:
        key = (runtime, template.template_id)
        if key not in self._prepared:
            await self._runtimes[runtime].prepare(template)
            self._prepared.add(key)

    def _env(self, spec: sandbox.SandboxSpec) -> dict[str, str]:
        return {
            **spec.env,
            "E2B_SANDBOX": "true",
            "E2B_SANDBOX_ID": spec.sandbox_id,
            "E2B_TEMPLATE_ID": spec.template_id,
        }

    def _new_held(self, instance: runtime_contract.Instance) -> _Held:
        broken: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        return _Held(instance, guest.LinkedGuest(instance.open_link, broken.set_result), broken)

    def _hold(self, held: _Held) -> node_contract.Made:
        self._held[held.instance.sandbox_id] = held
        held.watcher = asyncio.create_task(self._watch(held))
        return held.made

    # --- ending ---

    async def _watch(self, held: _Held) -> None:
        """Wait until the instance ends by itself; then clear up, and tell."""
        sandbox_id = held.instance.sandbox_id
        try:
            reason = await _first_of(held.instance.wait(), held.broken)
        except Exception:
            _log.exception("instance not watched", sandbox_id=sandbox_id)
            reason = "its runtime lost sight of it"
        if self._held.get(sandbox_id) is not held or held.watcher is None:
            return
        self._telling.add(held.watcher)
        held.watcher.add_done_callback(self._telling.discard)
        held.watcher = None  # this very task: it must live on, to tell
        try:
            await self.destroy(sandbox_id)
        except Exception:
            _log.exception("instance not cleared up", sandbox_id=sandbox_id)
        _log.info("sandbox ended by itself", sandbox_id=sandbox_id, reason=reason)
        if self._on_ended is not None:
            await self._on_ended(sandbox_id, reason)

    async def _end(self, held: _Held) -> None:
        """Destroy it. When that fails it is held again, so that another try can be made."""
        sandbox_id = held.instance.sandbox_id
        try:
            held.guest.close()
            await _stop(held.watcher)
            await held.instance.destroy()
        except BaseException:
            held.watcher = None
            self._held[sandbox_id] = held
            raise
        finally:
            del self._ending[sandbox_id]

    async def _discard(self, held: _Held) -> None:
        """Destroy what was never in use. When that fails it is held, for a destroy or a sweep to try again."""
        held.guest.close()
        try:
            await _finish(held.instance.destroy())
        except Exception:
            _log.exception("instance not cleared up", sandbox_id=held.instance.sandbox_id)
            self._held[held.instance.sandbox_id] = held

    def _get(self, sandbox_id: ids.SandboxId) -> _Held:
        held = self._held.get(sandbox_id)
        if held is None:
            raise errors.SandboxGoneError(f"sandbox {sandbox_id} is not on this node")
        return held


async def _pause(held: _Held) -> None:
    # The link goes first: whoever waits at it is told, and the silence of a frozen guest is nobody's reason to end it.
    held.guest.suspend()
    try:
        await held.instance.pause()
    except BaseException:
        held.guest.unsuspend()
        raise


async def _resume(held: _Held) -> None:
    await held.instance.resume()
    held.guest.unsuspend()
    await held.guest.ready()


async def _first_of(ends: Awaitable[str], broken: asyncio.Future[str]) -> str:
    """The reason of whichever comes first."""
    waiting = asyncio.ensure_future(ends)
    try:
        await asyncio.wait((waiting, broken), return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            return f"its guest agent broke the link's protocol: {broken.result()}"
        return waiting.result()
    finally:
        waiting.cancel()


async def _finish(cleaning: Awaitable[T]) -> T:
    """Await to the very end, however often the caller is cancelled meanwhile; then be cancelled."""
    task = asyncio.ensure_future(cleaning)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError
    return task.result()


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


def _cancelled_from_outside() -> bool:
    """Whether the running task itself was cancelled, and not only what it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
