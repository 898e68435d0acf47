"""The local node over a runtime of the test: making, ending, and cleaning up on every way out."""

import asyncio
import pathlib
import socket

import pytest

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.contract import runtime as contract
from glovebox_server.model import ids, resources, sandbox, template
from glovebox_server.node import node
from tests.support import link_peer

TEMPLATE = template.Template(
    "base", ("base", "code"), (template.Layer(pathlib.Path("/"), "/"),), "python3", "/bin", runtime="scripted"
)


def spec(template_id="base"):
    return sandbox.SandboxSpec(ids.new_sandbox_id(), template_id, resources.Resources(), {"A": "b"}, "host")


class Instance:
    """One whose guest says what the test wants; `alive` is what a test looks at."""

    def __init__(self, sandbox_id, speak):
        self.sandbox_id = sandbox_id
        self.boundary = "none"
        self.alive = True
        self.destroys = 0
        self.refuses_to_die = False
        self.refuses_to_freeze = False
        self.frozen = False
        self.peers = []
        self.ended = asyncio.get_running_loop().create_future()
        self._speak = speak
        self._tasks = []

    def record(self):
        return {"name": "scripted"}

    async def open_link(self):
        host, inside = socket.socketpair()
        host.setblocking(False)
        inside.setblocking(False)
        peer = link_peer.Peer(inside)
        self.peers.append(peer)
        self._tasks.append(asyncio.create_task(self._speak(peer)))
        return host

    async def usage(self):
        return resources.Usage(1.0, 2, 3, 4, 5)

    async def pause(self):
        await asyncio.sleep(0)
        if self.refuses_to_freeze:
            raise errors.CapacityError("does not stand still")
        self.frozen = True

    async def resume(self):
        self.frozen = False

    async def wait(self):
        return await asyncio.shield(self.ended)

    async def destroy(self):
        self.destroys += 1
        await asyncio.sleep(0.01)
        if self.refuses_to_die:
            raise OSError("busy")
        self.alive = False
        if not self.ended.done():
            self.ended.set_result("killed")
        for task in self._tasks:
            task.cancel()
        for peer in self.peers:
            peer.sock.close()


async def obedient(peer):
    await peer.hello()
    while (frame := await peer.frame()) is not None:
        if frame.kind == wire.OPEN:
            message = wire.decode_message(frame.body)
            peer.configured = message if message["op"] == "sandbox.configure" else None
            await peer.ok(frame.channel)


async def silent(peer):
    await asyncio.Event().wait()


async def lying(peer):
    await peer.hello()
    await peer.send(wire.encode(99, wire.DATA, b"x"))
    await peer.at_end()


class Runtime:
    name = "scripted"
    capabilities = frozenset(("pause",))

    def __init__(self):
        self.instances = {}
        self.speak = obedient
        self.prepared = []
        self.closed = []
        self.swept_keeping = None

    async def probe(self):
        return contract.Probe("scripted", True, "none")

    async def prepare(self, template):
        self.prepared.append(template.template_id)

    async def create(self, spec, template):
        self.instances[spec.sandbox_id] = Instance(spec.sandbox_id, self.speak)
        return self.instances[spec.sandbox_id]

    async def adopt(self, sandbox_id, record):
        return self.instances.get(sandbox_id)

    async def sweep(self, keep):
        self.swept_keeping = set(keep)
        return []

    async def close(self, *, destroy):
        self.closed.append(destroy)


class World:
    def __init__(self):
        self.runtime = Runtime()
        self.ended = []
        self.node = self.new_node()

    def new_node(self, **options):
        return node.LocalNode("here", {"scripted": self.runtime}, {"base": TEMPLATE, "code": TEMPLATE}, **options)

    async def on_ended(self, sandbox_id, reason):
        self.ended.append((sandbox_id, reason))

    @property
    def instance(self):
        (instance,) = self.runtime.instances.values()
        return instance


async def until(condition):
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


@pytest.fixture
async def world():
    world = World()
    await world.node.start(world.on_ended)
    yield world
    await world.node.close(destroy=True)
    assert not any(instance.alive for instance in world.runtime.instances.values())


async def test_while_it_is_paused_nobody_can_reach_it(world):
    made = await world.node.create(spec(), "scripted")
    face = world.node.guest(made.sandbox_id)
    await world.node.pause(made.sandbox_id)
    assert world.instance.frozen
    links = len(world.instance.peers)
    with pytest.raises(errors.SandboxGoneError, match="is paused"):
        await face.remove("/x", user=None)
    assert len(world.instance.peers) == links  # a link to a frozen guest would wait, and be taken for its death
    await world.node.resume(made.sandbox_id)
    await face.remove("/x", user=None)
    assert len(world.instance.peers) == links + 1
    assert not world.instance.frozen


async def test_one_that_cannot_be_frozen_is_usable(world):
    made = await world.node.create(spec(), "scripted")
    world.instance.refuses_to_freeze = True
    with pytest.raises(errors.CapacityError):
        await world.node.pause(made.sandbox_id)
    await world.node.guest(made.sandbox_id).remove("/x", user=None)


async def test_a_guest_that_does_not_answer_is_told_of(world, monkeypatch):
    monkeypatch.setattr(node, "HEALTHY_WITHIN_S", 0.05)
    made = await world.node.create(spec(), "scripted")
    world.instance._speak = silent
    world.node.guest(made.sandbox_id).suspend()  # loses its link; the next one is silent
    world.node.guest(made.sandbox_id).unsuspend()
    with pytest.raises(errors.CapacityError, match="did not answer within"):
        await world.node.check(made.sandbox_id)


async def test_a_paused_one_is_taken_back_without_asking_it(world):
    made = await world.node.create(spec(), "scripted")
    await world.node.pause(made.sandbox_id)
    later = world.new_node()
    await later.start(world.on_ended)
    links = len(world.instance.peers)
    assert await later.adopt(made.sandbox_id, "scripted", made.record, paused=True) == made
    assert world.instance.frozen
    assert len(world.instance.peers) == links
    await later.close(destroy=False)


def test_what_a_runtime_can(world):
    assert world.node.capabilities("scripted") == {"pause"}
    assert world.node.capabilities("unknown") == frozenset()


async def test_a_created_sandbox_is_configured_held_and_usable(world):
    asked = spec()
    made = await world.node.create(asked, "scripted")
    assert (made.sandbox_id, made.boundary, made.record) == (asked.sandbox_id, "none", {"name": "scripted"})
    assert world.instance.peers[0].configured == {
        "op": "sandbox.configure",
        "env": {"A": "b", "E2B_SANDBOX": "true", "E2B_SANDBOX_ID": asked.sandbox_id, "E2B_TEMPLATE_ID": "base"},
        "default_user": "user",
    }
    await world.node.guest(asked.sandbox_id).remove("/x", user=None)
    assert (await world.node.usage(asked.sandbox_id)).pids == 4
    assert world.runtime.prepared == ["base"]  # once, whatever its names
    assert [probe.runtime for probe in await world.node.probe()] == ["scripted"]


async def test_unknown_templates_runtimes_and_sandboxes(world):
    with pytest.raises(errors.TemplateNotFoundError):
        await world.node.create(spec("nothing"), "scripted")
    with pytest.raises(errors.UnsupportedError):
        await world.node.create(spec(), "microvm")
    with pytest.raises(errors.UnsupportedError):
        await world.node.adopt(ids.new_sandbox_id(), "microvm", {})
    with pytest.raises(errors.SandboxGoneError):
        world.node.guest(ids.new_sandbox_id())
    with pytest.raises(errors.SandboxGoneError):
        await world.node.usage(ids.new_sandbox_id())
    await world.node.destroy(ids.new_sandbox_id())
    assert world.runtime.instances == {}


async def test_one_id_is_created_once(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    with pytest.raises(errors.ConflictError):
        await world.node.create(asked, "scripted")
    assert world.instance.alive


async def test_a_guest_that_lies_at_once_leaves_nothing(world):
    world.runtime.speak = lying
    asked = spec()
    with pytest.raises(errors.GuestProtocolError):
        await world.node.create(asked, "scripted")
    assert not world.instance.alive
    with pytest.raises(errors.SandboxGoneError):
        world.node.guest(asked.sandbox_id)
    assert world.ended == []


async def test_a_guest_that_is_silent_leaves_nothing(world):
    world.runtime.speak = silent
    with pytest.raises(errors.CapacityError):
        await world.new_node(create_timeout_s=0.05).create(spec(), "scripted")
    assert not world.instance.alive


async def test_a_cancelled_create_leaves_nothing(world):
    world.runtime.speak = silent
    creating = asyncio.create_task(world.node.create(spec(), "scripted"))
    await until(lambda: world.runtime.instances)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert not world.instance.alive


async def test_a_create_cancelled_again_and_again_leaves_nothing(world):
    world.runtime.speak = silent
    creating = asyncio.create_task(world.node.create(spec(), "scripted"))
    await until(lambda: world.runtime.instances and world.instance.peers)
    while not creating.done():
        creating.cancel()
        await asyncio.sleep(0.001)
    assert creating.cancelled()
    assert not world.instance.alive


async def test_a_failed_create_whose_cleanup_fails_can_be_destroyed_later(world):
    world.runtime.speak = silent
    asked = spec()
    creating = asyncio.create_task(world.node.create(asked, "scripted"))
    await until(lambda: world.runtime.instances and world.instance.peers)
    world.instance.refuses_to_die = True
    creating.cancel()
    await asyncio.wait([creating])
    assert creating.cancelled()
    assert world.instance.alive
    world.instance.refuses_to_die = False
    await world.node.destroy(asked.sandbox_id)
    assert not world.instance.alive


async def test_destroy_during_create(world):
    world.runtime.speak = silent
    asked = spec()
    creating = asyncio.create_task(world.node.create(asked, "scripted"))
    await until(lambda: world.runtime.instances)
    await world.node.destroy(asked.sandbox_id)
    assert not world.instance.alive
    with pytest.raises(errors.SandboxGoneError):
        await creating


async def test_destroy_twice_and_side_by_side(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    await asyncio.gather(*(world.node.destroy(asked.sandbox_id) for _ in range(3)))
    await world.node.destroy(asked.sandbox_id)
    assert world.instance.destroys == 1
    assert world.ended == []


async def test_destroy_goes_on_when_its_caller_is_cancelled(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    destroying = asyncio.create_task(world.node.destroy(asked.sandbox_id))
    await until(lambda: world.instance.destroys)
    destroying.cancel()
    await asyncio.wait([destroying])
    await until(lambda: not world.instance.alive)


async def test_a_destroy_that_fails_can_be_tried_again(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    world.instance.refuses_to_die = True
    with pytest.raises(OSError, match="busy"):
        await world.node.destroy(asked.sandbox_id)
    world.instance.refuses_to_die = False
    await world.node.destroy(asked.sandbox_id)
    assert not world.instance.alive


async def test_an_instance_that_dies_is_cleared_up_and_told(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    world.instance.ended.set_result("killed by signal 9")
    await until(lambda: world.ended)
    assert world.ended == [(asked.sandbox_id, "killed by signal 9")]
    assert not world.instance.alive
    with pytest.raises(errors.SandboxGoneError):
        world.node.guest(asked.sandbox_id)


async def test_a_guest_that_lies_later_is_destroyed_and_told(world):
    asked = spec()
    other = await world.node.create(spec(), "scripted")
    await world.node.create(asked, "scripted")
    instance = world.runtime.instances[asked.sandbox_id]
    await instance.peers[0].send(wire.encode(99, wire.DATA, b"x"))
    await until(lambda: world.ended)
    assert world.ended[0][0] == asked.sandbox_id
    assert "protocol" in world.ended[0][1]
    assert not instance.alive
    await world.node.guest(other.sandbox_id).remove("/x", user=None)


async def test_an_instance_that_cannot_be_watched_is_ended(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    world.instance.ended.set_exception(OSError("no such pidfd"))
    await until(lambda: world.ended)
    assert not world.instance.alive


async def test_adoption_and_a_server_that_goes_away(world):
    asked = spec()
    await world.node.create(asked, "scripted")
    await world.node.close(destroy=False)
    assert world.instance.alive
    assert world.runtime.closed == [False]
    later = world.new_node()
    await later.start(world.on_ended)
    made = await later.adopt(asked.sandbox_id, "scripted", {"name": "scripted"})
    assert made is not None
    assert await later.adopt(asked.sandbox_id, "scripted", {}) == made
    await later.guest(asked.sandbox_id).remove("/x", user=None)
    assert await later.adopt(ids.new_sandbox_id(), "scripted", {}) is None
    await later.close(destroy=True)
    assert not world.instance.alive


async def test_an_adopted_guest_that_lies_is_ended(world):
    asked = spec()
    await world.runtime.create(asked, TEMPLATE)
    world.instance._speak = lambda peer: peer.send(wire.encode(1, wire.DATA, b"x"))
    assert await world.node.adopt(asked.sandbox_id, "scripted", {}) is None
    assert not world.instance.alive


async def test_a_cancelled_adoption_does_not_kill(world):
    asked = spec()
    await world.runtime.create(asked, TEMPLATE)
    world.instance._speak = silent
    adopting = asyncio.create_task(world.node.adopt(asked.sandbox_id, "scripted", {}))
    await until(lambda: world.instance.peers)
    adopting.cancel()
    await asyncio.wait([adopting])
    assert world.instance.alive
    await world.instance.destroy()


async def test_sweep_ends_what_is_not_kept(world):
    kept, unwanted = spec(), spec()
    await world.node.create(kept, "scripted")
    await world.node.create(unwanted, "scripted")
    assert await world.node.sweep([kept.sandbox_id]) == [unwanted.sandbox_id]
    assert world.runtime.instances[kept.sandbox_id].alive
    assert not world.runtime.instances[unwanted.sandbox_id].alive
    assert world.runtime.swept_keeping == {kept.sandbox_id}


async def test_close_ends_a_create_under_way(world):
    world.runtime.speak = silent
    creating = asyncio.create_task(world.node.create(spec(), "scripted"))
    await until(lambda: world.runtime.instances)
    await world.node.close(destroy=False)
    with pytest.raises(errors.SandboxGoneError):
        await creating
    assert not world.instance.alive
