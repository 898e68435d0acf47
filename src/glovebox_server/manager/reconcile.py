"""What a start makes of what an earlier server left: take back what lives, finish what was half-way, leave nothing else."""

import asyncio
import datetime as dt
import enum

import structlog

from glovebox_server.contract import node, store
from glovebox_server.manager import lives
from glovebox_server.model import ids, lifecycle, sandbox

_log = structlog.get_logger(__name__)

_AT_ONCE = 16
_PAUSED = (lifecycle.State.PAUSING, lifecycle.State.PAUSED)
_UNFINISHED = [state for state in lifecycle.State if state is not lifecycle.State.KILLED]


class Verdict(enum.StrEnum):
    """What to do with a sandbox that was found: take it back, or end it for this reason."""

    ADOPT = "adopt"
    TIMEOUT = "timeout"
    LOST = "lost"


def judge(box: sandbox.Sandbox, now: dt.datetime) -> Verdict:
    """Pure: from what the store says of it alone."""
    if box.instance is None or box.state is lifecycle.State.KILLING:
        return Verdict.LOST  # killing keeps the reason it has
    # One that its timeout pauses is taken back first, and paused when all is as it should be.
    if box.state not in _PAUSED and box.end_at <= now and not box.auto_pause:
        return Verdict.TIMEOUT
    return Verdict.ADOPT


async def reconcile(lives: lives.Lives, store: store.Store, node: node.Node, now: dt.datetime) -> list[ids.SandboxId]:
    """Make store, memory and node agree. Returns those that could not be ended; they are still in `lives`.

    A sweep that fails is raised: something of an earlier server is there that nobody would ever remove.
    """
    found = await store.list_sandboxes(states=_UNFINISHED)
    slots = asyncio.Semaphore(_AT_ONCE)

    async def settle(box: sandbox.Sandbox) -> bool:
        async with slots:
            return await _settle(lives, node, box, judge(box, now))

    settled = await asyncio.gather(*(settle(box) for box in found))
    # Last, so that nothing is left even of what no row speaks of, or of what `destroy` did not know.
    kept = (lifecycle.State.RUNNING, lifecycle.State.PAUSED)
    swept = await node.sweep([life.box.sandbox_id for life in lives if life.box.state in kept])
    left = [box.sandbox_id for box, done in zip(found, settled, strict=True) if not done]
    _log.info("sandboxes reconciled", found=len(found), swept=len(swept), unfinished=len(left))
    return left


async def _settle(lives: lives.Lives, node: node.Node, box: sandbox.Sandbox, verdict: Verdict) -> bool:
    # Known before it is adopted: the node may say at any moment after that that it has ended.
    life = lives.open(box)
    async with life.lock:
        try:
            if verdict is Verdict.ADOPT:
                if await _adopt(lives, node, life):
                    return True
                verdict = Verdict.LOST
            await lives.end(life, verdict.value)
            return True
        except Exception as error:  # one broken sandbox must not keep the server from starting
            _log.error("sandbox not reconciled", sandbox_id=box.sandbox_id, error=repr(error)[:500])
            return False


async def _adopt(lives: lives.Lives, node: node.Node, life: lives.Life) -> bool:
    """Take it back as the store says it is; what was half-way is finished: paused, or running again."""
    box = life.box
    try:
        made = await node.adopt(box.sandbox_id, box.runtime, box.instance or {}, paused=box.state in _PAUSED)
    except Exception as error:
        _log.error("sandbox not adopted", sandbox_id=box.sandbox_id, error=repr(error)[:500])
        return False
    if made is None:
        return False
    if box.state is lifecycle.State.PAUSING:
        await lives.advance(life, lifecycle.Event.PAUSED, timeout_s=0)
    elif box.state is lifecycle.State.RESUMING:
        await lives.advance(life, lifecycle.Event.RESUMED)
    if (made.boundary, dict(made.record)) != (box.boundary, dict(box.instance or {})):
        await lives.write(life, boundary=made.boundary, instance=made.record)
    life.journal.add("sandbox adopted")
    return True
