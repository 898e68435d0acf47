"""The server dies between any two steps; the next one must find its way. Then the same at random, for long."""

import asyncio

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st

from glovebox import errors
from glovebox_server.model import lifecycle
from tests.support import manager_fakes as fakes

KEY, REQUEST = fakes.KEY, fakes.REQUEST


async def assert_consistent(world, server):
    """Memory, store and host say the same, and nothing is half-way."""
    stored = await world.store.list_sandboxes()
    settled = (lifecycle.State.RUNNING, lifecycle.State.PAUSED, lifecycle.State.KILLED)
    running, paused, killed = ({box.sandbox_id for box in stored if box.state is state} for state in settled)
    assert len(stored) == len(running | paused | killed)
    assert running == set(world.instances) - world.frozen == {box.sandbox_id for box in server.live_all()}
    assert paused == world.frozen


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize("steps", range(1, 12))
async def test_killed_at_any_step(steps, after_effect):
    world = fakes.World()
    mortal = fakes.Mortal(steps, after_effect=after_effect)
    told = set()  # what callers believe to run
    server = world.server(mortal)
    try:
        await server.start()
        for _ in range(2):
            told.add((await server.create(REQUEST, KEY)).sandbox_id)
        kept, killed = sorted(told)
        await server.set_timeout(kept, None, 600)
        told.discard(killed)
        await server.kill(killed, None)
        assert steps > 9, "the scenario has more steps than that"
    except fakes.Crash:
        pass
    mortal.dead = True
    server._reaper._loop.cancel() if server._reaper._loop else None  # the process is gone, and its tasks with it
    await server._housekeeping.close()

    later = world.server()
    await later.start()
    await assert_consistent(world, later)
    assert told <= set(world.instances)
    await world.clock.advance(600)
    assert world.instances == {}
    await assert_consistent(world, later)
    await later.close(destroy=False)


@pytest.mark.parametrize("after_effect", [False, True])
@pytest.mark.parametrize("steps", range(1, 17))
async def test_killed_at_any_step_of_a_pause(steps, after_effect):
    world = fakes.World()
    mortal = fakes.Mortal(steps, after_effect=after_effect)
    server = world.server(mortal)
    was_made = False  # as its caller was told
    try:
        await server.start()
        box = await server.create(REQUEST, KEY)
        was_made = True
        for _ in range(2):
            await server.pause(box.sandbox_id, None)
            await server.connect(box.sandbox_id, None, 500)
        assert steps > 15, "the scenario has more steps than that"
    except fakes.Crash:
        pass
    mortal.dead = True
    server._reaper._loop.cancel() if server._reaper._loop else None
    await server._housekeeping.close()

    later = world.server()
    await later.start()
    await assert_consistent(world, later)
    if was_made:
        await later.connect(box.sandbox_id, KEY.tenant, 5)
        assert later.live(box.sandbox_id)
    await world.clock.advance(500)
    await assert_consistent(world, later)
    assert world.instances == {}
    await later.close(destroy=False)


async def test_restart_adopts_what_lives_and_ends_the_rest(world, server):
    kept, lost, expired = [(await server.create(REQUEST, KEY)).sandbox_id for _ in range(3)]
    await server.set_timeout(expired, None, 10)
    await server.close(destroy=False)
    assert world.node.closed is False
    del world.instances[lost]
    world.instances["i" + "x" * 19] = {}  # of which no row speaks
    world.clock.elapsed += 20

    later = world.server()
    await later.start()
    assert set(world.instances) == {kept}
    assert (await world.store.get_sandbox(lost)).end_reason == "lost"
    assert (await world.store.get_sandbox(expired)).end_reason == "timeout"
    assert later.journal(kept)[-1].message == "sandbox adopted"
    await world.clock.advance(280)
    assert world.instances == {}
    await later.close(destroy=False)


async def test_adopted_at_once_but_not_all_at_once(world, server):
    ids = {(await server.create(REQUEST, KEY)).sandbox_id for _ in range(50)}
    await server.close(destroy=False)
    later = world.server()
    open_now, most = 0, 0
    adopt = world.node.adopt

    async def counted(*args, **options):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            return await adopt(*args, **options)
        finally:
            open_now -= 1

    world.node.adopt = counted
    await later.start()
    assert set(world.instances) == ids
    assert 1 < most <= 16
    await later.close(destroy=True)


async def test_a_broken_adoption_is_a_loss_not_a_stop(world, server):
    box = await server.create(REQUEST, KEY)
    await server.close(destroy=False)
    later = world.server()
    world.node.fail["adopt"] = OSError("no such cgroup")
    await later.start()
    assert world.instances == {}
    assert (await world.store.get_sandbox(box.sandbox_id)).end_reason == "lost"
    await later.close(destroy=False)


async def test_what_cannot_be_ended_at_start_is_ended_later(world, server):
    box = await server.create(REQUEST, KEY)
    await server.close(destroy=False)
    world.clock.elapsed += 1000
    later = world.server()
    world.node.fail["destroy"] = OSError("busy")
    await later.start()
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killing"
    await world.clock.advance(1)
    assert (await world.store.get_sandbox(box.sandbox_id)).state == "killed"
    await later.close(destroy=False)


class Host(stateful.RuleBasedStateMachine):
    """Callers, time, deaths, failures and restarts in any order."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = fakes.World(max_sandboxes_per_key=5)
        # By age, and not by their ids, which are random: a draw must mean the same one each time.
        self.ends = {}  # what must run, until when
        self.paused = {}
        self.auto_pause = {}
        self.run(self.boot())

    def run(self, work):
        async def bounded():
            result = await work
            await fakes.settle()
            return result

        return self.loop.run_until_complete(asyncio.wait_for(bounded(), 5))

    async def boot(self):
        self.server = self.world.server()
        await self.server.start()

    @stateful.rule(timeout_s=st.integers(1, 100))
    def create(self, timeout_s):
        request = fakes.sandboxes.CreateRequest("base", timeout_s, {}, {}, auto_pause=timeout_s % 2 == 0)
        try:
            box = self.run(self.server.create(request, KEY))
        except errors.QuotaExceededError:
            assert len(self.ends) == 5
        else:
            self.ends[box.sandbox_id] = self.world.clock.elapsed + timeout_s
            self.auto_pause[box.sandbox_id] = box.auto_pause

    @stateful.rule(error=st.sampled_from([errors.CapacityError("full"), OSError("broken")]))
    def create_fails(self, error):
        if len(self.ends) < 5:
            self.world.node.fail["create"] = error
            with pytest.raises(type(error)):
                self.run(self.server.create(REQUEST, KEY))

    @stateful.precondition(lambda self: self.ends or self.paused)
    @stateful.rule(data=st.data())
    def kill(self, data):
        sandbox_id = data.draw(st.sampled_from([*self.ends, *self.paused]))
        self.run(self.server.kill(sandbox_id, KEY.tenant))
        self.forget(sandbox_id)

    @stateful.precondition(lambda self: self.ends or self.paused)
    @stateful.rule(data=st.data())
    def die(self, data):
        sandbox_id = data.draw(st.sampled_from([*self.ends, *self.paused]))
        self.run(self.world.node.die(sandbox_id))
        self.forget(sandbox_id)

    def forget(self, sandbox_id):
        self.ends.pop(sandbox_id, None)
        self.paused.pop(sandbox_id, None)

    @stateful.precondition(lambda self: self.ends)
    @stateful.rule(data=st.data(), fails=st.booleans())
    def pause(self, data, fails):
        sandbox_id = data.draw(st.sampled_from(list(self.ends)))
        if fails:
            self.world.node.fail["pause"] = OSError("broken")
            with pytest.raises(OSError, match="broken"):
                self.run(self.server.pause(sandbox_id, KEY.tenant))
        else:
            self.run(self.server.pause(sandbox_id, KEY.tenant))
            del self.ends[sandbox_id]
            self.paused[sandbox_id] = True

    @stateful.precondition(lambda self: self.paused)
    @stateful.rule(data=st.data(), timeout_s=st.integers(1, 100), fails=st.booleans())
    def resume(self, data, timeout_s, fails):
        sandbox_id = data.draw(st.sampled_from(list(self.paused)))
        if len(self.ends) == 5:
            with pytest.raises(errors.QuotaExceededError):
                self.run(self.server.connect(sandbox_id, KEY.tenant, timeout_s))
        elif fails:
            self.world.node.fail["resume"] = OSError("broken")
            with pytest.raises(OSError, match="broken"):
                self.run(self.server.connect(sandbox_id, KEY.tenant, timeout_s))
        else:
            self.run(self.server.connect(sandbox_id, KEY.tenant, timeout_s))
            self.paused.pop(sandbox_id, None)
            self.ends[sandbox_id] = self.world.clock.elapsed + timeout_s

    @stateful.precondition(lambda self: self.ends or self.paused)
    @stateful.rule(data=st.data())
    def all_at_once(self, data):
        """Pause, kill and connect of one sandbox at the same time: one of them is last, and nothing is half-way."""
        sandbox_id = data.draw(st.sampled_from([*self.ends, *self.paused]))
        calls = [
            self.server.pause(sandbox_id, KEY.tenant),
            self.server.connect(sandbox_id, KEY.tenant, 50),
            self.server.kill(sandbox_id, KEY.tenant),
            self.server.pause(sandbox_id, KEY.tenant),
        ]
        order = data.draw(st.permutations(calls))

        async def rush():
            return await asyncio.gather(*order, return_exceptions=True)

        for outcome in self.run(rush()):
            assert not isinstance(outcome, BaseException) or isinstance(outcome, errors.GloveboxError)
        self.forget(sandbox_id)

    @stateful.precondition(lambda self: self.ends)
    @stateful.rule(data=st.data(), timeout_s=st.integers(0, 100), connect=st.booleans())
    def move_end(self, data, timeout_s, connect):
        sandbox_id = data.draw(st.sampled_from(list(self.ends)))
        end = self.world.clock.elapsed + timeout_s
        if connect:
            self.run(self.server.connect(sandbox_id, KEY.tenant, timeout_s))
            end = max(end, self.ends[sandbox_id])
        else:
            self.run(self.server.set_timeout(sandbox_id, KEY.tenant, timeout_s))
        self.ends[sandbox_id] = end
        self.expire()

    @stateful.rule(seconds=st.integers(1, 60))
    def pass_time(self, seconds):
        self.run(self.world.clock.advance(seconds))
        self.expire()

    @stateful.rule(destroy=st.booleans(), seconds=st.integers(0, 30))
    def restart(self, destroy, seconds):
        self.run(self.server.close(destroy=destroy))
        if destroy:
            self.ends.clear()
            self.paused.clear()
        self.world.clock.elapsed += seconds
        self.run(self.boot())
        self.expire()

    def expire(self):
        for sandbox_id in [key for key, end in self.ends.items() if end <= self.world.clock.elapsed]:
            del self.ends[sandbox_id]
            if self.auto_pause[sandbox_id]:
                self.paused[sandbox_id] = True

    @stateful.invariant()
    def consistent(self):
        self.run(assert_consistent(self.world, self.server))
        assert self.world.frozen == set(self.paused)
        assert set(self.world.instances) == {*self.ends, *self.paused}

    def teardown(self):
        self.run(self.server.close(destroy=True))
        self.loop.close()


Host.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestHost = Host.TestCase
