"""What every store must do, on each of them."""

import asyncio
import dataclasses
import datetime as dt

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glovebox_server.contract import store as contract_store
from glovebox_server.model import ids, lifecycle, resources, sandbox
from glovebox_server.store import memory, sqlite

T0 = dt.datetime(2026, 1, 1, 12, 0, 0, 123456, tzinfo=dt.UTC)
BOX = sandbox.Sandbox(
    sandbox_id=ids.SandboxId("i" + "a" * 19),
    tenant=ids.TenantId("t1"),
    template_id="tpl",
    alias=None,
    state=lifecycle.State.CREATING,
    started_at=T0,
    end_at=T0 + dt.timedelta(seconds=5),
    metadata={},
    env={},
    access_token="secret",
)
FULL = dataclasses.replace(
    BOX,
    sandbox_id=ids.SandboxId("i" + "b" * 19),
    alias="base",
    state=lifecycle.State.RUNNING,
    metadata={"ü\n": "\x00'\"; --", "": ""},
    env={"A": "1"},
    resources=resources.Resources(cpu_count=0.5, pids=7),
    boundary="walls",
    node="n2",
    end_reason="timeout",
    instance={"pid": 7, "deep": {"list": [1, None]}},
    key_id=ids.KeyId("key_1"),
    idempotency_key="again",
    request_hash="ff",
)
KEY = contract_store.ApiKey(ids.KeyId("key_1"), ids.TenantId("t1"), "name", "e2b_abc", T0, None, None, None)


@pytest.fixture(params=["memory", "sqlite in memory", "sqlite"])
async def store(request, tmp_path):
    if request.param == "memory":
        store = memory.MemoryStore()
    else:
        store = sqlite.SqliteStore(tmp_path / "glovebox.db" if request.param == "sqlite" else None)
        await store.open()
    yield store
    await store.close()


def box(number, **changes):
    return dataclasses.replace(BOX, sandbox_id=ids.SandboxId(f"i{number:019}"), **changes)


async def test_sandboxes_come_back_as_they_were(store):
    for one in (BOX, FULL):
        await store.put_sandbox(one)
        assert await store.get_sandbox(one.sandbox_id) == one
    assert await store.get_sandbox(ids.SandboxId("i" + "z" * 19)) is None


async def test_put_replaces_everything(store):
    await store.put_sandbox(BOX)
    changed = dataclasses.replace(FULL, sandbox_id=BOX.sandbox_id)
    await store.put_sandbox(changed)
    assert await store.list_sandboxes() == [changed]
    await store.put_sandbox(BOX)
    assert await store.list_sandboxes() == [BOX]


async def test_filters_are_all_held(store):
    other = box(1, tenant=ids.TenantId("t2"), template_id="other", state=lifecycle.State.KILLED)
    late = box(2, started_at=T0 + dt.timedelta(microseconds=1), metadata={"a": "1", "b": "2"})
    for one in (BOX, other, late):
        await store.put_sandbox(one)

    async def found(**filters):
        return {one.sandbox_id for one in await store.list_sandboxes(**filters)}

    assert await found() == {BOX.sandbox_id, other.sandbox_id, late.sandbox_id}
    assert await found(tenant=ids.TenantId("t2")) == {other.sandbox_id}
    assert await found(states=[lifecycle.State.KILLED, lifecycle.State.PAUSED]) == {other.sandbox_id}
    assert await found(states=[]) == set()
    assert await found(started_after=late.started_at) == {late.sandbox_id}
    assert await found(started_after=late.started_at + dt.timedelta(microseconds=1)) == set()
    assert await found(template_id="other") == {other.sandbox_id}
    assert await found(metadata={"a": "1"}) == {late.sandbox_id}
    assert await found(metadata={"a": "1", "b": "2"}) == {late.sandbox_id}
    assert await found(metadata={"a": "1", "b": "3"}) == set()
    assert await found(metadata={"b": "1"}) == set()
    assert await found(tenant=ids.TenantId("t1"), template_id="other") == set()


@pytest.mark.parametrize("descending", [True, False])
async def test_pages_show_each_once_in_order(store, descending):
    everything = [box(n, started_at=T0 + dt.timedelta(seconds=n // 3)) for n in range(10)]
    for one in reversed(everything):
        await store.put_sandbox(one)
    seen, after = [], None
    while part := await store.list_sandboxes(page=contract_store.Page(limit=2, descending=descending, after=after)):
        assert len(part) <= 2
        seen += part
        after = (part[-1].started_at, part[-1].sandbox_id)
    sign = -1 if descending else 1
    assert seen == sorted(everything, key=lambda one: (sign * one.started_at.timestamp(), one.sandbox_id))


async def test_find_created(store):
    old = box(1, idempotency_key="k", started_at=T0)
    new = box(2, idempotency_key="k", started_at=T0 + dt.timedelta(hours=1), state=lifecycle.State.KILLED)
    await store.put_sandbox(new)
    await store.put_sandbox(old)
    assert await store.find_created(BOX.tenant, "k", T0) == new
    assert await store.find_created(BOX.tenant, "k", new.started_at) == new
    assert await store.find_created(BOX.tenant, "k", new.started_at + dt.timedelta(seconds=1)) is None
    assert await store.find_created(ids.TenantId("t2"), "k", T0) is None
    assert await store.find_created(BOX.tenant, "other", T0) is None


async def test_forgets_only_the_killed_and_old(store):
    await store.put_sandbox(box(1, state=lifecycle.State.KILLED))
    await store.put_sandbox(box(2, state=lifecycle.State.RUNNING))
    assert await store.forget_sandboxes(BOX.end_at) == 0
    assert await store.forget_sandboxes(BOX.end_at + dt.timedelta(microseconds=1)) == 1
    assert [one.sandbox_id for one in await store.list_sandboxes()] == [box(2).sandbox_id]


async def test_keys(store):
    admin = dataclasses.replace(
        KEY, key_id=ids.KeyId("key_0"), admin=True, max_sandboxes=3, expires_at=T0 + dt.timedelta(days=1)
    )
    await store.put_key(KEY, "h1")
    await store.put_key(admin, "h0")
    assert await store.find_key("h1") == KEY
    assert await store.find_key("h0") == admin
    assert await store.find_key("h2") is None
    assert await store.list_keys() == [admin, KEY]


async def test_revocation_is_remembered_once(store):
    await store.put_key(KEY, "h1")
    assert await store.revoke_key(KEY.key_id, T0)
    assert await store.revoke_key(KEY.key_id, T0 + dt.timedelta(days=1))
    assert (await store.find_key("h1")).revoked_at == T0
    assert not await store.revoke_key(ids.KeyId("nope"), T0)


async def test_many_writers_at_once(store):
    await asyncio.gather(*(store.put_sandbox(box(n)) for n in range(100)))
    assert len(await store.list_sandboxes()) == 100


# Lone surrogates and NUL never get here: policy/limits.py refuses them.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(metadata=st.dictionaries(TEXT, TEXT, max_size=3))
async def test_any_metadata_is_found_again(store, metadata):
    await store.put_sandbox(dataclasses.replace(BOX, metadata=metadata))
    [found] = await store.list_sandboxes(metadata=metadata)
    assert found.metadata == metadata
    assert await store.list_sandboxes(metadata={**metadata, "x" * 21: ""}) == []
