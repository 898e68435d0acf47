"""Slots: a sandbox's slice of ids, with the user namespace that has them: entered last, and before that to map layers by."""

import asyncio
import collections
import contextlib
import dataclasses
import os

from glovebox import errors
from glovebox_server.runtimes.namespace import zygotes

_AHEAD = 16


@dataclasses.dataclass(frozen=True)
class Slot:
    """A number in the zygote's window; `user_namespace` is a descriptor, -1 in one that a sandbox was found in."""

    number: int
    user_namespace: int


class Slots:
    """The slots of one zygote. A freed slot is used again first: its user namespace is there already."""

    def __init__(self, zygote: zygotes.Zygote) -> None:
        self._zygote = zygote
        self._free: collections.deque[Slot] = collections.deque()
        self._used: set[int] = set()
        self._known: set[int] = set()
        self._reserved: dict[int, Slot] = {}  # made ready before we learnt that a sandbox is in it
        self._filling: asyncio.Task[None] | None = None

    def reserve(self, number: int) -> None:
        """Mark a slot as used by a sandbox that was there before us. Nobody else must get it, though it may be ready."""
        self._used.add(number)
        for slot in [slot for slot in self._free if slot.number == number]:
            self._free.remove(slot)
            self._reserved[number] = slot

    async def take(self) -> Slot:
        """A free slot. Raises CapacityError."""
        slot = self._free.popleft() if self._free else await self._make_unused()
        self._used.add(slot.number)
        if len(self._free) < _AHEAD // 2 and (self._filling is None or self._filling.done()):
            self._filling = asyncio.create_task(self._fill())
        return slot

    def give_back(self, slot: Slot) -> None:
        """The sandbox in it is gone."""
        self._used.discard(slot.number)
        if slot.user_namespace < 0:
            ready = self._reserved.pop(slot.number, None)
            if ready is None:
                return
            slot = ready
        self._free.appendleft(slot)

    async def fill(self) -> None:
        """Make the first ones ready."""
        await self._fill()

    async def close(self) -> None:
        """Stop, and close every descriptor of a free slot."""
        if self._filling is not None:
            self._filling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._filling
        for slot in (*self._free, *self._reserved.values()):
            close(slot)
        self._free.clear()
        self._reserved.clear()

    async def _fill(self) -> None:
        with contextlib.suppress(errors.CapacityError, errors.SandboxGoneError):
            while len(self._free) < _AHEAD:
                self._free.append(await self._make_unused())

    async def _make_unused(self) -> Slot:
        while (slot := await self._make()).number in self._used:  # reserved meanwhile
            self._reserved[slot.number] = slot
        return slot

    async def _make(self) -> Slot:
        number = self._new_number()
        try:
            return Slot(number, await self._zygote.user_namespace(number))
        except BaseException:
            self._known.discard(number)
            raise

    def _new_number(self) -> int:
        for number in range(self._zygote.facts.slots):
            if number not in self._known and number not in self._used:
                self._known.add(number)
                return number
        raise errors.CapacityError(f"all {self._zygote.facts.slots} id ranges of this zygote are in use")


def close(slot: Slot) -> None:
    """Close the slot's descriptor."""
    if slot.user_namespace >= 0:
        os.close(slot.user_namespace)
