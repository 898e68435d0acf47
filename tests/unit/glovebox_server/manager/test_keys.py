import asyncio
import datetime as dt
import re

import pytest

from glovebox import errors
from glovebox_server.manager import keys
from glovebox_server.store import memory
from tests.support import manager_fakes as fakes


class CountingStore(memory.MemoryStore):
    def __init__(self):
        super().__init__()
        self.finds = 0
        self.before_answer = None

    async def find_key(self, secret_hash):
        self.finds += 1
        found = await super().find_key(secret_hash)
        if self.before_answer:
            hook, self.before_answer = self.before_answer, None
            await hook()
        return found


@pytest.fixture
def store():
    return CountingStore()


@pytest.fixture
def clock():
    return fakes.FakeClock()


@pytest.fixture
def all_keys(store, clock):
    return keys.Keys(store, clock)


async def test_secret_opens_and_is_not_kept(all_keys, store):
    key, secret = await all_keys.create("ci", tenant="t9", max_sandboxes=2, admin=True)
    assert re.fullmatch(r"e2b_[0-9a-f]{40}", secret)
    assert (key.tenant, key.max_sandboxes, key.admin, key.prefix) == ("t9", 2, True, secret[:10])
    assert await all_keys.authenticate(secret) == key
    assert secret not in repr(vars(store)) + repr(vars(all_keys))
    assert await all_keys.list() == [key]


@pytest.mark.parametrize(
    "secret", ["", "e2b_", "e2b_" + "0" * 40, "e2b_" + "g" * 40, "x" * 10_000, "e2b_" + "0" * 40 + "\n"]
)
async def test_wrong_secrets(all_keys, secret):
    await all_keys.create("k")
    with pytest.raises(errors.AuthenticationError, match="Invalid API key"):
        await all_keys.authenticate(secret)


async def test_costs_no_sql_per_request(all_keys, store, clock):
    _, secret = await all_keys.create("k")
    for _ in range(100):
        await all_keys.authenticate(secret)
    assert store.finds == 1
    clock.elapsed += 61
    await all_keys.authenticate(secret)
    assert store.finds == 2


async def test_revocation_takes_effect_at_once(all_keys):
    key, secret = await all_keys.create("k")
    await all_keys.authenticate(secret)
    await all_keys.revoke(key.key_id)
    with pytest.raises(errors.AuthenticationError):
        await all_keys.authenticate(secret)
    with pytest.raises(errors.NotFoundError):
        await all_keys.revoke("key_nope")


async def test_revocation_during_the_first_look_is_not_missed(all_keys, store):
    key, secret = await all_keys.create("k")
    store.before_answer = lambda: all_keys.revoke(key.key_id)
    with pytest.raises(errors.AuthenticationError):
        await all_keys.authenticate(secret)
    with pytest.raises(errors.AuthenticationError):
        await all_keys.authenticate(secret)


async def test_expiry_is_checked_in_the_cache_too(all_keys, clock):
    _, secret = await all_keys.create("k", expires_at=clock.now() + dt.timedelta(seconds=30))
    await all_keys.authenticate(secret)
    clock.elapsed += 30
    with pytest.raises(errors.AuthenticationError, match="expired"):
        await all_keys.authenticate(secret)


@pytest.mark.parametrize(
    "bad", [{"name": ""}, {"name": "x" * 129}, {"max_sandboxes": -1}, {"expires_at": dt.datetime(2026, 1, 1)}]
)
async def test_bad_keys_are_refused(all_keys, bad):
    with pytest.raises(errors.InvalidRequestError):
        await all_keys.create(**{"name": "k", **bad})


async def test_at_once(all_keys):
    _, secret = await all_keys.create("k")
    found = await asyncio.gather(*(all_keys.authenticate(secret) for _ in range(20)))
    assert len({key.key_id for key in found}) == 1
