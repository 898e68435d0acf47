import asyncio
import contextlib
import dataclasses
import datetime as dt

import pytest

from glovebox import errors
from glovebox_server.contract import store as contract_store
from glovebox_server.model import lifecycle
from tests.support import manager_fakes as fakes

KEY, OTHER, REQUEST = fakes.KEY, fakes.OTHER, fakes.REQUEST


async def test_created_sandbox_runs_and_is_stored(world, server):
    box = await server.create(REQUEST, KEY)
    assert (box.state, box.tenant, box.alias, box.boundary) == ("running", "t1", "base", "fake walls")
    assert await world.store.get_sandbox(box.sandbox_id) == box
    assert server.live(box.sandbox_id) == box
    assert await server.get(box.sandbox_id, KEY.tenant) == box
    assert [entry.sandbox_id for entry in server.live_all()] == [box.sandbox_id]
    assert await server.count_running(KEY.tenant) == 1
    assert await server.count_running(OTHER.tenant) == 0
    assert not server.ended(box.sandbox_id).is_set()
    assert world.audit.actions() == ["sandbox.create"]


async def test_it_is_stored_once_it_runs_and_before_that_is_said(world, server, monkeypatch):
    told, put = [], world.store.put_sandbox

    async def watch(box):
        told.append((box.state, box.sandbox_id in world.instances, creating.done()))
        await put(box)

    monkeypatch.setattr(world.store, "put_sandbox", watch)
    creating = asyncio.create_task(server.create(REQUEST, KEY))
    await creating
    assert told == [(lifecycle.State.RUNNING, True, False)]


async def test_a_sandbox_that_cannot_be_stored_is_not_left(world, server, monkeypatch):
    async def full(box):
        raise OSError("no space left on device")

    monkeypatch.setattr(world.store, "put_sandbox", full)
    with pytest.raises(OSError, match="no space"):
        await server.create(REQUEST, KEY)
    assert world.instances == {}
    assert list(server.live_all()) == []


async def test_others_and_the_unknown_look_the_same(server):
    box = await server.create(REQUEST, KEY)
    for method in (server.get, server.kill, server.usage):
        with pytest.raises(errors.SandboxNotFoundError):
            await method(box.sandbox_id, OTHER.tenant)
        with pytest.raises(errors.SandboxNotFoundError):
            await method("i" + "0" * 19, KEY.tenant)
    assert await server.get(box.sandbox_id, None) == box
    assert (await server.usage(box.sandbox_id, KEY.tenant)).pids == 3


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"timeout_s": 0}, errors.InvalidRequestError, "Timeout must be greater than 0"),
        ({"timeout_s": 86401}, errors.InvalidRequestError, "Timeout cannot be greater than 24 hours"),
        ({"template": "nope"}, errors.TemplateNotFoundError, "nope"),
        ({"metadata": {"a": "x" * 20000}}, errors.InvalidRequestError, "metadata .* limit is 16384"),
        ({"metadata": {"a": "\0"}}, errors.InvalidRequestError, "metadata holds a NUL"),
        ({"env": {str(n): "" for n in range(300)}}, errors.InvalidRequestError, "environment .* limit is 256"),
        ({"env": {"A=B": ""}}, errors.InvalidRequestError, "A=B"),
        ({"env": {"A": "\ud800"}}, errors.InvalidRequestError, "Unicode"),
        ({"idempotency_key": "a b"}, errors.InvalidRequestError, "idempotency key"),
    ],
)
async def test_bad_requests_are_refused_and_leave_nothing(world, server, changes, error, message):
    with pytest.raises(error, match=message):
        await server.create(dataclasses.replace(REQUEST, **changes), KEY)
    assert world.node.calls == [("sweep", None)]  # that of the start
    assert await world.store.list_sandboxes() == []


async def test_a_failed_create_leaves_nothing_and_frees_its_place(world, server):
    world.node.fail["create"] = errors.CapacityError("no cgroup")
    with pytest.raises(errors.CapacityError, match="no cgroup"):
        await server.create(REQUEST, OTHER)
    assert world.instances == {}
    assert await world.store.list_sandboxes() == []
    assert world.audit.actions() == ["sandbox.end"]
    await server.create(REQUEST, OTHER)  # its quota is one


async def test_two_creates_for_the_last_place(world, server):
    results = await asyncio.gather(*(server.create(REQUEST, OTHER) for _ in range(5)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, errors.QuotaExceededError)]
    assert len(refused) == 4
    assert str(refused[0]) == "you have reached the maximum number of concurrent E2B sandboxes (1)"
    assert len(world.instances) == 1


async def test_host_maximum():
    world = fakes.World(max_sandboxes=2)
    server = world.server()
    await server.start()
    results = await asyncio.gather(*(server.create(REQUEST, KEY) for _ in range(3)), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["CapacityError", "Sandbox", "Sandbox"]
    await server.close(destroy=True)
    assert world.instances == {}
    assert world.node.closed is True


async def test_expires_exactly_at_its_end(world, server):
    box = await server.create(REQUEST, KEY)
    await world.clock.advance(299.999)
    assert server.live(box.sandbox_id)
    await world.clock.advance(0.001)
    with pytest.raises(errors.SandboxNotFoundError):
        server.live(box.sandbox_id)
    assert world.instances == {}
    assert (await world.store.get_sandbox(box.sandbox_id)).end_reason == "timeout"


async def test_a_step_of_the_wall_clock_ends_nobody(world, server):
    box = await server.create(REQUEST, KEY)
    world.clock.step = dt.timedelta(days=3)
    await world.clock.advance(200)
    assert server.live(box.sandbox_id)
    await world.clock.advance(100)
    assert world.instances == {}


async def test_connect_only_extends(world, server):
    box = await server.create(REQUEST, KEY)
    same, resumed = await server.connect(box.sandbox_id, KEY.tenant, 10)
    assert (same.end_at, resumed) == (box.end_at, False)
    later, resumed = await server.connect(box.sandbox_id, KEY.tenant, 1000)
    assert not resumed
    assert later.end_at == world.clock.now() + dt.timedelta(seconds=1000)
    assert later.access_token == box.access_token
    await world.clock.advance(999)
    assert server.live(box.sandbox_id)
    await world.clock.advance(1)
    assert world.instances == {}


async def test_the_longer_of_two_connects_at_once_holds(world, server):
    box = await server.create(REQUEST, KEY)
    await asyncio.gather(*(server.connect(box.sandbox_id, KEY.tenant, timeout_s) for timeout_s in (1000, 500)))
    assert server.live(box.sandbox_id).end_at == world.clock.now() + dt.timedelta(seconds=1000)


async def test_set_timeout_shortens_and_zero_ends_now(world, server):
    first, second = await server.create(REQUEST, KEY), await server.create(REQUEST, KEY)
    await server.set_timeout(first.sandbox_id, KEY.tenant, 5)
    await world.clock.advance(5)
    assert set(world.instances) == {second.sandbox_id}
    await server.set_timeout(second.sandbox_id, KEY.tenant, 0)
    assert world.instances == {}
    with pytest.raises(errors.InvalidRequestError, match="24 hours"):
        await server.set_timeout(second.sandbox_id, KEY.tenant, 90000)
    with pytest.raises(errors.SandboxNotFoundError):
        await server.set_timeout(second.sandbox_id, KEY.tenant, 5)


async def test_kill_tells_connections_first_and_happens_once(world, server):
    box = await server.create(REQUEST, KEY)
    ended = server.ended(box.sandbox_id)
    world.node.hold = asyncio.Event()
    killing = asyncio.create_task(server.kill(box.sandbox_id, KEY.tenant))
    await asyncio.wait_for(ended.wait(), 1)
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killing"
    assert server.ended(box.sandbox_id).is_set()
    with pytest.raises(errors.SandboxNotFoundError):
        await server.kill(box.sandbox_id, KEY.tenant)
    with pytest.raises(errors.SandboxNotFoundError):
        server.guest(box.sandbox_id)
    world.node.hold.set()
    await killing
    found = await world.store.get_sandbox(box.sandbox_id)
    assert (found.state, found.end_reason) == ("killed", "requested")
    assert server.ended(box.sandbox_id).is_set()
    assert world.audit.records[-1].resource_usage["cpu_seconds"] == 1.5


async def test_kill_goes_on_when_its_caller_leaves(world, server):
    box = await server.create(REQUEST, KEY)
    world.node.hold = asyncio.Event()
    killing = asyncio.create_task(server.kill(box.sandbox_id, KEY.tenant))
    await fakes.settle()
    killing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await killing
    world.node.hold.set()
    await fakes.settle()
    assert world.instances == {}
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killed"


async def test_create_whose_caller_leaves_is_undone(world, server):
    world.node.hold = asyncio.Event()
    creating = asyncio.create_task(server.create(REQUEST, KEY))
    await fakes.settle()
    creating.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await creating
    world.node.hold.set()
    await fakes.settle()
    assert world.instances == {}
    assert [box.state for box in await world.store.list_sandboxes()] == ["killed"]


async def test_failed_destroy_is_tried_again(world, server):
    box = await server.create(REQUEST, KEY)
    world.node.fail["destroy"] = OSError("busy")
    with pytest.raises(OSError, match="busy"):
        await server.kill(box.sandbox_id, KEY.tenant)
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killing"
    await world.clock.advance(1)
    found = await world.store.get_sandbox(box.sandbox_id)
    assert (found.state, found.end_reason) == ("killed", "requested")
    assert world.instances == {}


async def test_reaper_tries_again_after_an_error(world, server):
    await server.create(REQUEST, KEY)
    world.node.fail["destroy"] = OSError("busy")
    await world.clock.advance(300)
    assert len(world.instances) == 1
    await world.clock.advance(1)
    assert world.instances == {}


async def test_ends_even_when_the_store_is_broken(world, server, monkeypatch):
    box = await server.create(REQUEST, KEY)

    async def full(sandbox):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(world.store, "put_sandbox", full)
        with pytest.raises(OSError, match="no space"):
            await server.kill(box.sandbox_id, KEY.tenant)
        assert world.instances == {}
        with pytest.raises(OSError, match="no space"):
            await server.create(REQUEST, KEY)
        assert world.instances == {}
    await world.clock.advance(1)
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killed"


async def test_death_of_an_instance(world, server):
    box = await server.create(REQUEST, KEY)
    await world.node.die(box.sandbox_id, "out of memory\x1b[31m")
    await fakes.settle()
    found = await world.store.get_sandbox(box.sandbox_id)
    assert (found.state, found.end_reason) == ("killed", "died")
    [entry] = [entry for entry in server.journal(box.sandbox_id) if entry.message == "sandbox ends"]
    assert entry.fields["detail"] == "out of memory\\x1b[31m"
    with pytest.raises(errors.SandboxNotFoundError):
        server.journal("i" + "0" * 19)


async def test_death_while_it_is_created_is_not_lost(world, server):
    create = world.node.create

    async def stillborn(spec, runtime):
        made = await create(spec, runtime)
        await world.node.die(spec.sandbox_id)
        return made

    world.node.create = stillborn
    box = await server.create(REQUEST, KEY)
    await fakes.settle()
    assert (await world.store.get_sandbox(box.sandbox_id)).end_reason == "died"
    with pytest.raises(errors.SandboxNotFoundError):
        server.live(box.sandbox_id)


async def test_idle_sandboxes_end_and_busy_ones_do_not():
    world = fakes.World(idle_timeout_s=60)
    server = world.server()
    await server.start()
    idle, busy = await server.create(REQUEST, KEY), await server.create(REQUEST, KEY)
    events = None
    world.node.guests[busy.sandbox_id] = guest = fakes.FakeGuest()
    guest.hold.clear()
    guest.events = [object()]
    events = server.guest(busy.sandbox_id).watch("/", recursive=False, include_entry=False, user=None)
    await anext(events)
    await world.clock.advance(30)
    await server.guest(idle.sandbox_id).stat("/", user=None)
    await world.clock.advance(59)
    assert len(world.instances) == 2
    await world.clock.advance(1)
    assert set(world.instances) == {busy.sandbox_id}
    assert (await world.store.get_sandbox(idle.sandbox_id)).end_reason == "idle"
    await events.aclose()
    await world.clock.advance(60)
    assert world.instances == {}
    await server.close(destroy=False)


async def test_list_shows_what_the_tenant_can_see(world, server):
    first = await server.create(REQUEST, KEY)
    await world.clock.advance(1)
    second = await server.create(dataclasses.replace(REQUEST, metadata={"n": "2"}), KEY)
    await server.create(REQUEST, OTHER)
    killed = await server.create(REQUEST, KEY)
    await server.kill(killed.sandbox_id, KEY.tenant)

    async def found(tenant=KEY.tenant, **filters):
        return [box.sandbox_id for box in await server.list(tenant, **filters)]

    assert await found() == [second.sandbox_id, first.sandbox_id]
    assert len(await found(None)) == 3
    assert await found(metadata={"n": "2"}) == [second.sandbox_id]
    assert await found(template="code-interpreter-v1") == [second.sandbox_id, first.sandbox_id]
    assert await found(template="nope") == []
    assert await found(states=[lifecycle.State.PAUSED]) == []
    assert await found(states=[lifecycle.State.KILLED]) == []
    page = contract_store.Page(limit=1, after=(second.started_at, second.sandbox_id))
    assert await found(page=page) == [first.sandbox_id]


class TestIdempotency:
    ASKED = dataclasses.replace(REQUEST, idempotency_key="retry-1")

    async def test_same_request_gets_the_same_sandbox(self, world, server):
        first, second = await asyncio.gather(server.create(self.ASKED, KEY), server.create(self.ASKED, KEY))
        assert first == second
        assert await server.create(self.ASKED, KEY) == first
        assert len(world.instances) == 1

    async def test_other_request_conflicts_and_other_tenants_do_not(self, world, server):
        first = await server.create(self.ASKED, KEY)
        with pytest.raises(errors.ConflictError, match="different request"):
            await server.create(dataclasses.replace(self.ASKED, timeout_s=17), KEY)
        assert (await server.create(self.ASKED, OTHER)).sandbox_id != first.sandbox_id

    async def test_survives_a_restart_and_lasts_a_day(self, world, server):
        asked = dataclasses.replace(self.ASKED, timeout_s=86400)
        first = await server.create(asked, KEY)
        await server.close(destroy=False)
        later = world.server()
        await later.start()
        assert (await later.create(asked, KEY)).sandbox_id == first.sandbox_id
        await world.clock.advance(86401)
        assert (await later.create(asked, KEY)).sandbox_id != first.sandbox_id
        await later.close(destroy=True)

    async def test_a_failure_is_not_remembered(self, world, server):
        world.node.fail["create"] = errors.CapacityError("full")
        with pytest.raises(errors.CapacityError):
            await server.create(self.ASKED, KEY)
        assert (await server.create(self.ASKED, KEY)).state == "running"

    async def test_goes_on_when_its_caller_leaves(self, world, server):
        world.node.hold = asyncio.Event()
        creating = asyncio.create_task(server.create(self.ASKED, KEY))
        await fakes.settle()
        creating.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await creating
        again = asyncio.create_task(server.create(self.ASKED, KEY))
        world.node.hold.set()
        assert (await again).state == "running"
        assert len(world.instances) == 1


async def test_closed_server_makes_nothing(world, server):
    await server.close(destroy=False)
    with pytest.raises(errors.CapacityError, match="stopping"):
        await server.create(REQUEST, KEY)


async def test_metrics_follow(world, server):
    box = await server.create(REQUEST, KEY)
    assert b'sandboxes{state="running"} 1.0' in world.telemetry.render()
    assert b'sandbox_startup_time_seconds_count{runtime="namespace"} 1.0' in world.telemetry.render()
    await world.clock.advance(15)
    assert b"sandbox_memory_usage_bytes 1000.0" in world.telemetry.render()
    await server.kill(box.sandbox_id, None)
    text = world.telemetry.render()
    assert b'sandboxes{state="running"} 0.0' in text
    assert b'sandbox_ended_total{reason="requested"} 1.0' in text
    assert b"sandbox_cpu_usage_seconds_total 1.5" in text
