"""Pausing and resuming: what is stored when, who is told, what expires, what counts, and what becomes of failures."""

import asyncio
import dataclasses
import datetime as dt

import pytest

from glovebox import errors
from glovebox_server.model import lifecycle
from tests.support import manager_fakes as fakes

KEY, OTHER, REQUEST = fakes.KEY, fakes.OTHER, fakes.REQUEST
AUTO_PAUSE = dataclasses.replace(REQUEST, auto_pause=True)
AUTO_RESUME = dataclasses.replace(AUTO_PAUSE, auto_resume=True)
State = lifecycle.State


async def stored(world, box):
    return await world.store.get_sandbox(box.sandbox_id)


async def started(**settings):
    world = fakes.World(**settings)
    server = world.server()
    await server.start()
    return world, server


async def test_paused_and_resumed(world, server):
    box = await server.create(REQUEST, KEY)
    await world.clock.advance(10)
    await server.pause(box.sandbox_id, KEY.tenant)
    assert world.frozen == {box.sandbox_id}
    paused = await stored(world, box)
    assert (paused.state, paused.end_at) == (State.PAUSED, world.clock.now())
    assert await server.get(box.sandbox_id, KEY.tenant) == paused
    for use in (server.live, server.guest):
        with pytest.raises(errors.SandboxNotFoundError):
            use(box.sandbox_id)
    assert await server.count_running(KEY.tenant) == 0
    assert (await server.usage(box.sandbox_id, KEY.tenant)).pids == 3

    again, resumed = await server.connect(box.sandbox_id, KEY.tenant, 60)
    assert resumed
    assert world.frozen == set()
    assert (again.state, again.access_token) == (State.RUNNING, box.access_token)
    assert again.end_at == world.clock.now() + dt.timedelta(seconds=60)
    assert server.live(box.sandbox_id) == again == await stored(world, box)
    assert world.audit.actions() == ["sandbox.create", "sandbox.pause", "sandbox.resume"]
    assert world.audit.records[1].detail == {"reason": "requested"}
    assert [entry.message for entry in server.journal(box.sandbox_id)] == [
        "sandbox running", "sandbox pausing", "sandbox paused", "sandbox resuming", "sandbox running",
    ]  # fmt: skip
    text = world.telemetry.render()
    assert b'sandbox_paused_total{reason="requested"} 1.0' in text
    assert b'sandbox_resumed_total{reason="requested"} 1.0' in text
    await world.clock.advance(60)
    assert (await stored(world, box)).end_reason == "timeout"


async def test_stored_before_it_is_done_and_after(world, server, monkeypatch):
    box = await server.create(REQUEST, KEY)
    told, put = [], world.store.put_sandbox

    async def watch(box):
        told.append((box.state, bool(world.frozen)))
        await put(box)

    monkeypatch.setattr(world.store, "put_sandbox", watch)
    await server.pause(box.sandbox_id, KEY.tenant)
    await server.connect(box.sandbox_id, KEY.tenant, 60)
    assert told == [
        (State.PAUSING, False), (State.PAUSED, True), (State.RESUMING, True), (State.RUNNING, False),
    ]  # fmt: skip


async def test_connections_are_cut_before_it_is_frozen(world, server):
    box = await server.create(REQUEST, KEY)
    first = server.ended(box.sandbox_id)
    world.node.hold = asyncio.Event()
    pausing = asyncio.create_task(server.pause(box.sandbox_id, KEY.tenant))
    await asyncio.wait_for(first.wait(), 1)
    assert world.frozen == set()
    with pytest.raises(errors.SandboxNotFoundError):
        server.guest(box.sandbox_id)
    world.node.hold.set()
    await pausing
    await server.connect(box.sandbox_id, KEY.tenant, 60)
    assert not server.ended(box.sandbox_id).is_set()
    assert first.is_set()


async def test_wrong_moments(world, server):
    box = await server.create(REQUEST, KEY)
    for call in (server.pause(box.sandbox_id, OTHER.tenant), server.resume(box.sandbox_id, OTHER.tenant, 5)):
        with pytest.raises(errors.SandboxNotFoundError):
            await call
    with pytest.raises(errors.ConflictError, match="already running"):
        await server.resume(box.sandbox_id, KEY.tenant, 5)
    await server.pause(box.sandbox_id, KEY.tenant)
    with pytest.raises(errors.ConflictError, match=f'Sandbox "{box.sandbox_id}" is already paused'):
        await server.pause(box.sandbox_id, KEY.tenant)
    for call in (server.set_timeout, server.extend):
        for timeout_s in (0, 5):
            with pytest.raises(errors.SandboxNotFoundError):
                await call(box.sandbox_id, KEY.tenant, timeout_s)
    for timeout_s in (0, 90000):
        with pytest.raises(errors.InvalidRequestError, match="Timeout"):
            await server.connect(box.sandbox_id, KEY.tenant, timeout_s)
    assert world.frozen == {box.sandbox_id}
    await server.kill(box.sandbox_id, KEY.tenant)
    assert world.instances == {}
    for call in (server.pause(box.sandbox_id, KEY.tenant), server.connect(box.sandbox_id, KEY.tenant, 5)):
        with pytest.raises(errors.SandboxNotFoundError):
            await call


async def test_resume_is_of_paused_ones_and_can_change_what_its_timeout_does(world, server):
    box = await server.create(REQUEST, KEY)
    await server.pause(box.sandbox_id, KEY.tenant)
    found = await server.resume(box.sandbox_id, KEY.tenant, 7, auto_pause=True)
    assert (found.state, found.auto_pause) == (State.RUNNING, True)
    await world.clock.advance(7)
    assert world.frozen == {box.sandbox_id}
    assert (await server.resume(box.sandbox_id, KEY.tenant, 7)).auto_pause


async def test_connect_waits_for_a_pause_and_then_resumes(world, server):
    box = await server.create(REQUEST, KEY)
    world.node.hold = asyncio.Event()
    pausing = asyncio.create_task(server.pause(box.sandbox_id, KEY.tenant))
    await fakes.settle()
    connecting = asyncio.create_task(server.connect(box.sandbox_id, KEY.tenant, 10))
    await fakes.settle()
    assert not connecting.done()
    world.node.hold.set()
    await pausing
    found, resumed = await connecting
    assert (found.state, resumed) == (State.RUNNING, True)


async def test_a_pause_goes_on_when_its_caller_leaves(world, server):
    box = await server.create(REQUEST, KEY)
    world.node.hold = asyncio.Event()
    pausing = asyncio.create_task(server.pause(box.sandbox_id, KEY.tenant))
    await fakes.settle()
    pausing.cancel()
    await asyncio.wait([pausing])
    world.node.hold.set()
    await fakes.settle()
    assert (await stored(world, box)).state == State.PAUSED


async def test_its_memory_is_still_counted(world, server):
    box = await server.create(REQUEST, KEY)
    await server.pause(box.sandbox_id, KEY.tenant)
    await world.clock.advance(15)
    assert b"sandbox_memory_usage_bytes 1000.0" in world.telemetry.render()


async def test_its_record_is_kept_from_its_end_and_not_from_its_pause():
    world, server = await started(keep_records_hours=1)
    box = await server.create(REQUEST, KEY)
    await server.pause(box.sandbox_id, KEY.tenant)
    await world.clock.advance(3 * 3600 + 1)
    await server.kill(box.sandbox_id, KEY.tenant)
    await world.store.forget_sandboxes(world.clock.now() - dt.timedelta(hours=1))
    assert (await stored(world, box)).state is State.KILLED
    await server.close(destroy=False)


class TestTime:
    async def test_a_paused_one_is_kept(self, world, server):
        box = await server.create(REQUEST, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        await world.clock.advance(24 * 3600)
        assert world.frozen == {box.sandbox_id}

    async def test_for_as_long_as_the_operator_says(self):
        world, server = await started(keep_paused_hours=2)
        box = await server.create(REQUEST, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        await world.clock.advance(7199)
        await server.close(destroy=False)
        later = world.server()  # which counts on from the pause, not from its own start
        await later.start()
        assert world.frozen == {box.sandbox_id}
        await world.clock.advance(1)
        assert world.instances == {}
        assert (await stored(world, box)).end_reason == "timeout"
        await later.close(destroy=False)

    async def test_its_timeout_pauses_it(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)
        await world.clock.advance(299.999)
        assert server.live(box.sandbox_id)
        await world.clock.advance(0.001)
        assert world.frozen == {box.sandbox_id}
        assert (await stored(world, box)).state == State.PAUSED
        assert world.audit.records[-1].detail == {"reason": "timeout"}
        await server.connect(box.sandbox_id, KEY.tenant, 5)
        await world.clock.advance(5)
        assert world.frozen == {box.sandbox_id}

    async def test_a_timeout_of_zero_pauses_at_once(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)
        await server.set_timeout(box.sandbox_id, KEY.tenant, 0)
        assert world.frozen == {box.sandbox_id}

    async def test_idling_pauses_and_starts_anew_with_a_resume(self):
        world, server = await started(idle_timeout_s=60)
        box = await server.create(AUTO_PAUSE, KEY)
        await world.clock.advance(60)
        assert world.frozen == {box.sandbox_id}
        await world.clock.advance(100)
        await server.connect(box.sandbox_id, KEY.tenant, 300)
        await world.clock.advance(59)
        assert server.live(box.sandbox_id)
        await world.clock.advance(1)
        assert world.frozen == {box.sandbox_id}
        await server.close(destroy=True)
        assert world.instances == {}

    async def test_one_that_cannot_be_paused_is_tried_again_and_then_killed(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)

        async def broken(sandbox_id):
            raise errors.CapacityError("does not stand still")

        world.node.pause = broken
        await world.clock.advance(359)
        assert server.live(box.sandbox_id)  # not frozen, and not lost either
        await world.clock.advance(60)
        assert world.instances == {}
        assert (await stored(world, box)).end_reason == "timeout"

    async def test_one_that_can_be_paused_at_the_second_try_is(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)
        world.node.fail["pause"] = OSError("busy")
        await world.clock.advance(300)
        assert server.live(box.sandbox_id)
        await world.clock.advance(1)
        assert world.frozen == {box.sandbox_id}


class TestTraffic:
    async def test_wakes_who_wants_it(self, world, server):
        box = await server.create(AUTO_RESUME, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        with pytest.raises(errors.SandboxNotFoundError):
            await server.reach(box.sandbox_id, wake=False)
        found = await asyncio.gather(*(server.reach(box.sandbox_id, wake=True) for _ in range(5)))
        assert {one.state for one in found} == {State.RUNNING}
        assert [call for call in world.node.calls if call[0] == "resume"] == [("resume", box.sandbox_id)]
        assert found[0].end_at == world.clock.now() + dt.timedelta(seconds=300)
        assert b'sandbox_resumed_total{reason="traffic"} 1.0' in world.telemetry.render()

    async def test_and_nobody_else(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)
        assert (await server.reach(box.sandbox_id, wake=True)).state is State.RUNNING
        await server.pause(box.sandbox_id, KEY.tenant)
        for sandbox_id in (box.sandbox_id, "i" + "0" * 19):
            with pytest.raises(errors.SandboxNotFoundError):
                await server.reach(sandbox_id, wake=True)
        assert world.frozen == {box.sandbox_id}


class TestQuota:
    async def test_paused_ones_make_room_and_need_it_again(self, world, server):
        await world.store.put_key(OTHER, "hash")
        first = await server.create(REQUEST, OTHER)  # whose quota is one
        await server.pause(first.sandbox_id, OTHER.tenant)
        second = await server.create(REQUEST, OTHER)
        with pytest.raises(errors.QuotaExceededError, match=r"concurrent E2B sandboxes \(1\)"):
            await server.connect(first.sandbox_id, OTHER.tenant, 60)
        assert world.frozen == {first.sandbox_id}
        await server.kill(second.sandbox_id, OTHER.tenant)
        await server.connect(first.sandbox_id, OTHER.tenant, 60)

    async def test_the_last_place_goes_to_one(self, world, server):
        await world.store.put_key(OTHER, "hash")
        boxes = []
        for _ in range(3):
            boxes.append(await server.create(REQUEST, OTHER))
            await server.pause(boxes[-1].sandbox_id, OTHER.tenant)
        results = await asyncio.gather(
            *(server.connect(box.sandbox_id, OTHER.tenant, 60) for box in boxes),
            server.create(REQUEST, OTHER),
            return_exceptions=True,
        )
        assert len([one for one in results if isinstance(one, errors.QuotaExceededError)]) == 3
        assert len(world.instances) - len(world.frozen) == 1

    async def test_a_key_holds_so_many_and_no_more(self):
        world, server = await started(max_paused_per_key=2)
        for _ in range(3):
            box = await server.create(REQUEST, OTHER)
            await server.pause(box.sandbox_id, OTHER.tenant)
        with pytest.raises(errors.QuotaExceededError, match="hold 3 sandboxes, paused ones included, .* limit is 3"):
            await server.create(REQUEST, OTHER)
        await server.create(REQUEST, KEY)
        await server.kill(box.sandbox_id, OTHER.tenant)
        await server.create(REQUEST, OTHER)
        await server.close(destroy=True)

    async def test_paused_ones_fill_the_host(self):
        world, server = await started(max_sandboxes=1)
        box = await server.create(REQUEST, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        with pytest.raises(errors.CapacityError, match="it has 1 sandboxes"):
            await server.create(REQUEST, KEY)
        await server.close(destroy=True)


class TestFailures:
    async def test_a_host_that_cannot_says_so(self, world, server):
        world.node.able = frozenset()
        box = await server.create(REQUEST, KEY)
        with pytest.raises(errors.UnsupportedError, match="cannot be paused on this host"):
            await server.pause(box.sandbox_id, KEY.tenant)
        assert server.live(box.sandbox_id)
        assert not server.ended(box.sandbox_id).is_set()
        with pytest.raises(errors.UnsupportedError, match="cannot be paused on this host"):
            await server.create(AUTO_PAUSE, KEY)
        assert len(world.instances) == 1

    async def test_one_that_must_be_healthy_is_asked_first(self, world, server):
        box = await server.create(REQUEST, KEY)
        world.node.fail["check"] = errors.CapacityError("does not answer")
        with pytest.raises(errors.CapacityError):
            await server.pause(box.sandbox_id, KEY.tenant, require_healthy=True)
        assert not server.ended(box.sandbox_id).is_set()
        assert server.live(box.sandbox_id)
        await server.pause(box.sandbox_id, KEY.tenant, require_healthy=True)
        assert world.frozen == {box.sandbox_id}

    async def test_a_failed_pause_is_undone(self, world, server):
        box = await server.create(REQUEST, KEY)
        world.node.fail["pause"] = OSError("no")
        with pytest.raises(OSError, match="no"):
            await server.pause(box.sandbox_id, KEY.tenant)
        found = await stored(world, box)
        assert (found.state, found.end_at) == (State.RUNNING, box.end_at)
        assert not server.ended(box.sandbox_id).is_set()
        await world.clock.advance(300)
        assert world.instances == {}

    async def test_a_failed_resume_is_undone(self, world, server):
        box = await server.create(REQUEST, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        world.node.fail["resume"] = OSError("no")
        with pytest.raises(OSError, match="no"):
            await server.connect(box.sandbox_id, KEY.tenant, 60)
        assert (await stored(world, box)).state is State.PAUSED
        assert world.frozen == {box.sandbox_id}
        await world.clock.advance(3600)  # the timeout it was to run with is nobody's
        assert world.frozen == {box.sandbox_id}
        await server.connect(box.sandbox_id, KEY.tenant, 60)

    async def test_what_cannot_be_undone_is_tried_again(self, world, server):
        box = await server.create(REQUEST, KEY)
        world.node.fail |= {"pause": OSError("no"), "resume": OSError("neither")}
        with pytest.raises(OSError, match="no"):
            await server.pause(box.sandbox_id, KEY.tenant)
        assert (await stored(world, box)).state is State.PAUSING
        await world.clock.advance(1)
        assert server.live(box.sandbox_id).end_at == box.end_at
        await world.clock.advance(299)
        assert world.instances == {}

    async def test_whoever_uses_it_tries_as_well(self, world, server):
        box = await server.create(REQUEST, KEY)
        world.node.fail |= {"pause": OSError("no"), "resume": OSError("neither")}
        with pytest.raises(OSError, match="no"):
            await server.pause(box.sandbox_id, KEY.tenant)
        await server.connect(box.sandbox_id, KEY.tenant, 400)
        await world.clock.advance(399)
        assert server.live(box.sandbox_id)
        await world.clock.advance(1)
        assert world.instances == {}

    async def test_what_can_never_be_undone_is_killed(self, world, server):
        box = await server.create(REQUEST, KEY)

        async def broken(sandbox_id):
            raise OSError("no")

        world.node.pause = world.node.resume = broken
        with pytest.raises(OSError, match="no"):
            await server.pause(box.sandbox_id, KEY.tenant)
        await world.clock.advance(500)
        assert world.instances == {}
        assert (await stored(world, box)).end_reason == "failed"

    async def test_half_way_it_can_be_killed(self, world, server):
        box = await server.create(REQUEST, KEY)
        world.node.fail |= {"pause": OSError("no"), "resume": OSError("neither")}
        with pytest.raises(OSError, match="no"):
            await server.pause(box.sandbox_id, KEY.tenant)
        await server.kill(box.sandbox_id, KEY.tenant)
        assert world.instances == {}
        assert (await stored(world, box)).end_reason == "requested"

    async def test_what_cannot_be_audited_is_not_done(self, world, server, monkeypatch):
        box = await server.create(REQUEST, KEY)

        def full(record):
            raise errors.CapacityError("the audit trail is full")

        with monkeypatch.context() as patch:
            patch.setattr(world.audit, "record", full)
            with pytest.raises(errors.CapacityError):
                await server.pause(box.sandbox_id, KEY.tenant)
        assert server.live(box.sandbox_id)
        assert world.frozen == set()

    async def test_death_of_a_paused_one_is_told(self, world, server):
        box = await server.create(REQUEST, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        await world.node.die(box.sandbox_id)
        await fakes.settle()
        assert (await stored(world, box)).end_reason == "died"

    async def test_a_stopping_server_wakes_nobody(self, world, server):
        box = await server.create(AUTO_RESUME, KEY)
        await server.pause(box.sandbox_id, KEY.tenant)
        await server.close(destroy=False)
        with pytest.raises(errors.CapacityError, match="stopping"):
            await server.reach(box.sandbox_id, wake=True)
        assert world.frozen == {box.sandbox_id}


class TestRestart:
    @pytest.mark.parametrize(
        ("state", "frozen", "after"),
        [
            (State.PAUSED, True, State.PAUSED),
            (State.PAUSED, False, State.PAUSED),  # thawed by whoever: what is told holds
            (State.PAUSING, True, State.PAUSED),
            (State.PAUSING, False, State.PAUSED),
            (State.RESUMING, True, State.RUNNING),
            (State.RESUMING, False, State.RUNNING),
            (State.RUNNING, True, State.RUNNING),
        ],
    )
    async def test_what_was_wanted_is_finished(self, world, server, state, frozen, after):
        box = await server.create(REQUEST, KEY)
        await server.close(destroy=False)
        await world.store.put_sandbox(dataclasses.replace(box, state=state))
        world.instances[box.sandbox_id] = {**box.instance, **({"frozen": True} if frozen else {})}
        later = world.server()
        await later.start()
        assert (await stored(world, box)).state is after
        assert bool(world.frozen) == (after is State.PAUSED)
        await later.connect(box.sandbox_id, KEY.tenant, 1000)
        assert later.live(box.sandbox_id)
        await later.close(destroy=True)
        assert world.instances == {}

    async def test_one_that_fell_due_meanwhile_is_paused(self, world, server):
        box = await server.create(AUTO_PAUSE, KEY)
        await server.close(destroy=False)
        world.clock.elapsed += 100_000
        later = world.server()
        await later.start()
        await fakes.settle()
        assert world.frozen == {box.sandbox_id}
        await later.close(destroy=False)
