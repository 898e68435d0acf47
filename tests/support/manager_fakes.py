"""A clock the test owns, a node without a kernel, and servers that can be killed at any step: for tests of the manager."""

import asyncio
import datetime as dt
import heapq
import itertools

from glovebox import errors
from glovebox_server import telemetry
from glovebox_server.contract import guest, node
from glovebox_server.contract import store as contract_store
from glovebox_server.manager import sandboxes
from glovebox_server.model import ids, resources, template
from glovebox_server.policy import limits
from glovebox_server.store import memory

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
TEMPLATE = template.Template("tpl1", ("base", "code-interpreter-v1"), (), "/usr/bin/python3", "/usr/bin")
TEMPLATES = dict.fromkeys((TEMPLATE.template_id, *TEMPLATE.names), TEMPLATE)
KEY = contract_store.ApiKey(ids.KeyId("key_1"), ids.TenantId("t1"), "k", "e2b_123456", START, None, None, None)
OTHER = contract_store.ApiKey(ids.KeyId("key_2"), ids.TenantId("t2"), "k", "e2b_123456", START, None, None, 1)
REQUEST = sandboxes.CreateRequest("base", 300, {"a": "b"}, {"X": "1"})


async def settle():
    """Let everything run that can run without time passing."""
    for _ in range(200):
        await asyncio.sleep(0)


class FakeClock:
    def __init__(self):
        self.elapsed = 0.0
        self.step = dt.timedelta()  # of the wall clock alone
        self._sleepers = []
        self._numbers = itertools.count()

    def now(self):
        return START + dt.timedelta(seconds=self.elapsed) + self.step

    def monotonic(self):
        return self.elapsed

    async def sleep(self, seconds):
        done = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.elapsed + seconds, next(self._numbers), done))
        await done

    async def advance(self, seconds):
        """Pass time, waking each sleeper at its moment."""
        await settle()
        end = self.elapsed + seconds
        while self._sleepers and self._sleepers[0][0] <= end:
            due, _, done = heapq.heappop(self._sleepers)
            self.elapsed = max(self.elapsed, due)
            if not done.done():
                done.set_result(None)
                await settle()
        self.elapsed = end
        await settle()


def made_of(instance):
    """An instance's record, as it was when it was made."""
    return {key: value for key, value in instance.items() if key != "frozen"}


class FakeNode:
    """`instances` are the host's: another FakeNode with the same set is the next server's view of the same host."""

    name = "local"

    def __init__(self, instances=None):
        self.instances = instances if instances is not None else {}
        self.able = frozenset(("pause",))
        self.calls = []
        self.fail = {}  # method name -> exception, raised once
        self.hold = None  # an event that create and destroy wait for
        self.on_ended = None
        self.guests = {}
        self.closed = None

    def _enter(self, method, sandbox_id):
        self.calls.append((method, sandbox_id))
        if method in self.fail:
            raise self.fail.pop(method)

    async def start(self, on_ended):
        self.on_ended = on_ended

    def capabilities(self, runtime):
        return self.able

    async def create(self, spec, runtime):
        self._enter("create", spec.sandbox_id)
        if self.hold:
            await self.hold.wait()
        record = {"pid": len(self.calls)}
        self.instances[spec.sandbox_id] = record
        return node.Made(spec.sandbox_id, "fake walls", record)

    async def adopt(self, sandbox_id, runtime, record, *, paused=False):
        self._enter("adopt", sandbox_id)
        await asyncio.sleep(0)
        if sandbox_id not in self.instances:
            return None
        assert record == made_of(self.instances[sandbox_id])
        self.instances[sandbox_id] = record | {"frozen": True} if paused else record
        return node.Made(sandbox_id, "fake walls", record)

    async def check(self, sandbox_id):
        self._enter("check", sandbox_id)

    async def pause(self, sandbox_id):
        await self._set(sandbox_id, "pause", {"frozen": True})

    async def resume(self, sandbox_id):
        await self._set(sandbox_id, "resume", {})

    async def _set(self, sandbox_id, method, state):
        self._enter(method, sandbox_id)
        if self.hold:
            await self.hold.wait()
        await asyncio.sleep(0)
        if sandbox_id not in self.instances:
            raise errors.SandboxGoneError(sandbox_id)
        self.instances[sandbox_id] = made_of(self.instances[sandbox_id]) | state

    async def sweep(self, keep):
        self._enter("sweep", None)
        gone = [sandbox_id for sandbox_id in self.instances if sandbox_id not in keep]
        for sandbox_id in gone:
            del self.instances[sandbox_id]
        return gone

    async def destroy(self, sandbox_id):
        self._enter("destroy", sandbox_id)
        if self.hold:
            await self.hold.wait()
        await asyncio.sleep(0)
        self.instances.pop(sandbox_id, None)

    def guest(self, sandbox_id):
        if sandbox_id not in self.instances:
            raise errors.SandboxGoneError(sandbox_id)
        return self.guests.setdefault(sandbox_id, FakeGuest())

    async def usage(self, sandbox_id):
        if sandbox_id not in self.instances:
            raise errors.SandboxGoneError(sandbox_id)
        return resources.Usage(1.5, 1000, 100, 3, 0)

    async def close(self, *, destroy):
        self.closed = destroy

    async def die(self, sandbox_id, reason="killed by signal 9"):
        self.instances.pop(sandbox_id)
        await self.on_ended(sandbox_id, reason)


class FakeGuest:
    """Plays events that the test sets; what is not played is not there."""

    def __init__(self):
        self.events = []
        self.error = None
        self.closed = 0
        self.hold = asyncio.Event()
        self.hold.set()

    async def _play(self, *args, **kwargs):
        try:
            for event in self.events:
                yield event
            await self.hold.wait()
            if self.error:
                raise self.error
        finally:
            self.closed += 1

    start_process = connect_process = execute = read_file = watch = _play

    async def stat(self, path, *, user):
        if self.error:
            raise self.error
        return guest.Entry("f", "file", path, 3, 0o644, "-rw-r--r--", "user", "user", 0)

    async def write_file(self, path, content, *, user, metadata):
        size = 0
        async for part in content:
            size += len(part)
        return guest.Entry("f", "file", path, size, 0o644, "-rw-r--r--", "user", "user", 0)

    async def remove(self, path, *, user):
        if self.error:
            raise self.error

    async def move(self, source, destination, *, user):
        return await self.stat(destination, user=user)


class ListAudit:
    """The audit trail as a list."""

    def __init__(self):
        self.records = []

    def record(self, record):
        self.records.append(record)

    def actions(self):
        return [record.action for record in self.records]


class Crash(BaseException):  # noqa: N818 - not an error: the power is off
    """The server is dead from here on."""


class Mortal:
    """Lets `steps` calls through to the world and then the server is dead: no call has an effect any more."""

    def __init__(self, steps, *, after_effect):
        self.steps = steps
        self.after_effect = after_effect
        self.dead = False

    def wrap(self, inner, methods):
        outer = self

        class Wrapped:
            def __getattr__(self, name):
                method = getattr(inner, name)
                return outer._guarded(method) if name in methods else method

        return Wrapped()

    def _guarded(self, method):
        async def guarded(*args, **kwargs):
            if self.dead:
                raise Crash
            self.steps -= 1
            if self.steps > 0:
                return await method(*args, **kwargs)
            self.dead = True
            if self.after_effect:
                await method(*args, **kwargs)
            raise Crash

        return guarded


class World:
    """A host with a store: what outlives servers."""

    def __init__(self, **settings):
        self.clock = FakeClock()
        self.store = memory.MemoryStore()
        self.instances = {}
        self.limits = limits.Limits(**settings)
        self.audit = ListAudit()
        self.telemetry = telemetry.Telemetry()
        self.node = FakeNode(self.instances)

    @property
    def frozen(self):
        """Those that stand still."""
        return {sandbox_id for sandbox_id, instance in self.instances.items() if "frozen" in instance}

    def server(self, mortal=None):
        """The next server on this host."""
        self.node, store = FakeNode(self.instances), self.store
        self.telemetry = telemetry.Telemetry()
        seen_node = self.node
        if mortal is not None:
            seen_node = mortal.wrap(self.node, {"create", "adopt", "sweep", "destroy", "pause", "resume"})
            store = mortal.wrap(store, {"put_sandbox"})
        return sandboxes.Sandboxes(store, seen_node, self.clock, self.limits, self.audit, self.telemetry, TEMPLATES)
