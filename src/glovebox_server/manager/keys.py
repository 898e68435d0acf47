"""API keys: who may call. Kept as hashes; checked from a small cache, so that a request costs no SQL."""

import dataclasses
import datetime as dt
import hashlib
import re
import secrets
from collections.abc import Sequence

from glovebox import errors
from glovebox_server.contract import clock, store
from glovebox_server.model import ids

# 160 random bits: a plain hash is enough, nothing can be guessed back from it.
_SECRET = re.compile(r"e2b_[0-9a-f]{40}")
_CACHED_FOR_S = 60.0
_CACHE_SIZE = 10_000
_PREFIX_LETTERS = len("e2b_") + 6


@dataclasses.dataclass(frozen=True)
class _Cached:
    key: store.ApiKey
    until: float


class Keys:
    """All API keys of this server; it is the only one that writes them."""

    def __init__(self, store: store.Store, clock: clock.Clock) -> None:
        self._store = store
        self._clock = clock
        self._cache: dict[str, _Cached] = {}
        self._generation = 0  # counts the revocations, see authenticate

    async def authenticate(self, secret: str) -> store.ApiKey:
        """Whose key this is. AuthenticationError when it is nobody's, has expired or was revoked."""
        if not _SECRET.fullmatch(secret):
            raise errors.AuthenticationError("Invalid API key")
        digest = _hash(secret)
        cached = self._cache.get(digest)
        if cached is None or cached.until < self._clock.monotonic():
            key = await self._find(digest)
        else:
            key = cached.key
        if key is None or key.revoked_at is not None:
            raise errors.AuthenticationError("Invalid API key")
        if key.expires_at is not None and key.expires_at <= self._clock.now():
            raise errors.AuthenticationError("The API key has expired")
        return key

    async def create(
        self,
        name: str,
        *,
        tenant: str | None = None,
        expires_at: dt.datetime | None = None,
        max_sandboxes: int | None = None,
        admin: bool = False,
    ) -> tuple[store.ApiKey, str]:
        """A new key, and its secret, which is not kept and is never told again.

        Keys of one tenant share their sandboxes. A key for which no tenant is named has one of its own: apart by default.
        """
        if not name or len(name) > 128:
            raise errors.InvalidRequestError("name must have 1 to 128 characters")
        if max_sandboxes is not None and max_sandboxes < 0:
            raise errors.InvalidRequestError("max_sandboxes must not be negative")
        if expires_at is not None and expires_at.tzinfo is None:
            raise errors.InvalidRequestError("expires_at must have a time zone")
        secret = "e2b_" + secrets.token_hex(20)
        key_id = ids.KeyId("key_" + secrets.token_hex(8))
        key = store.ApiKey(
            key_id=key_id,
            tenant=ids.TenantId(tenant or key_id),
            name=name,
            prefix=secret[:_PREFIX_LETTERS],
            created_at=self._clock.now(),
            expires_at=expires_at,
            revoked_at=None,
            max_sandboxes=max_sandboxes,
            admin=admin,
        )
        await self._store.put_key(key, _hash(secret))
        return key, secret

    async def list(self) -> Sequence[store.ApiKey]:
        """All keys, revoked ones too, oldest first."""
        return await self._store.list_keys()

    async def revoke(self, key_id: ids.KeyId) -> None:
        """From now on the key opens nothing. NotFoundError when there is no such key. Its sandboxes go on."""
        if not await self._store.revoke_key(key_id, self._clock.now()):
            raise errors.NotFoundError(f"API key '{key_id[:64]}' not found")
        self._generation += 1
        self._cache = {digest: cached for digest, cached in self._cache.items() if cached.key.key_id != key_id}

    async def _find(self, digest: str) -> store.ApiKey | None:
        # A revocation may pass by while we read; what was read before it must not enter the cache.
        while True:
            generation = self._generation
            key = await self._store.find_key(digest)
            if generation == self._generation:
                break
        if key is not None:
            if len(self._cache) >= _CACHE_SIZE:
                self._cache.clear()
            self._cache[digest] = _Cached(key, self._clock.monotonic() + _CACHED_FOR_S)
        return key


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
