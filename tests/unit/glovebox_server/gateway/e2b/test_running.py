"""A process's deadline is kept whatever its client does, and at whatever moment."""

import asyncio
import contextlib

import pytest

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway.e2b import running
from tests.support import server

_SOON_S = 0.05


class Guest:
    """One process, which starts and ends when the test says so."""

    def __init__(self):
        self.may_start, self.end = asyncio.Event(), asyncio.Event()
        self.killed = []
        self.closed = False

    async def events(self):
        try:
            await self.may_start.wait()
            yield guest.Started(7)
            await self.end.wait()
            yield guest.Exited(0, True, "exit status 0")
        finally:
            self.closed = True

    async def signal_process(self, pid, signal):
        self.killed.append((pid, signal))
        if pid != 7:
            raise errors.GuestError("not_found", "no such process")


@pytest.fixture
def one():
    return Guest()


async def follow(one, timeout_s, heard=None):
    async def listen(event):
        if heard is not None:
            heard.append(event)

    await running.follow(one, one.events(), timeout_s, listen)


async def left(task):
    """The client of this request goes away."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_all_events_are_told(one):
    heard = []
    one.may_start.set()
    one.end.set()
    await follow(one, None, heard)
    assert heard == [guest.Started(7), guest.Exited(0, True, "exit status 0")]
    assert one.closed


async def test_the_deadline_kills_before_it_is_told(one):
    one.may_start.set()
    with pytest.raises(TimeoutError):
        await follow(one, _SOON_S)
    assert one.killed == [(7, 9)]
    assert one.closed


async def test_the_deadline_of_a_client_that_left_kills(one):
    heard = []
    one.may_start.set()
    task = asyncio.create_task(follow(one, 0.3, heard))
    await server.until(lambda: heard)
    await left(task)
    assert one.killed == []
    await server.until(lambda: one.killed == [(7, 9)])


async def test_an_end_before_the_deadline_is_the_end(one):
    heard = []
    one.may_start.set()
    task = asyncio.create_task(follow(one, 3600, heard))
    await server.until(lambda: heard)
    await left(task)
    assert running._following
    one.end.set()
    await server.until(lambda: one.closed and not running._following)
    assert heard == [guest.Started(7)]
    assert one.killed == []


@pytest.mark.parametrize("leaves", [True, False])
async def test_a_deadline_before_the_start_kills_once_the_pid_is_known(one, leaves, monkeypatch):
    monkeypatch.setattr(running, "_KILLED_WITHIN_S", 0.01)
    task = asyncio.create_task(follow(one, _SOON_S))
    if leaves:
        await asyncio.sleep(0)
        await left(task)
        await asyncio.sleep(2 * _SOON_S)  # the deadline is to pass: there is no condition to wait for
    else:
        with pytest.raises(TimeoutError):
            await task
    assert one.killed == []
    one.may_start.set()
    await server.until(lambda: one.killed == [(7, 9)])


async def test_without_a_deadline_leaving_only_unsubscribes(one):
    heard = []
    one.may_start.set()
    task = asyncio.create_task(follow(one, None, heard))
    await server.until(lambda: heard)
    await left(task)
    assert one.closed
    assert not running._following
    assert one.killed == []


async def test_refusals_are_passed_on(one):
    async def refused():
        raise errors.GuestError("invalid_argument", "no")
        yield

    async def listen(event):
        raise AssertionError(event)

    with pytest.raises(errors.GuestError):
        await running.follow(one, refused(), 1, listen)
