"""One channel without a link: credit, fragments, and what is left when its handler is interrupted."""

import asyncio
import json

import pytest

from glovebox_guest import channel as channels
from glovebox_guest import refusals, wire


class Host:
    """Takes what the channel has for the writer."""

    def __init__(self) -> None:
        self.ended = False
        self.channel = channels.Channel(7, lambda _channel, _size: None, self._on_end)
        self.decoder = wire.Decoder()

    def _on_end(self, _channel: channels.Channel) -> None:
        self.ended = True

    def take(self) -> list[wire.Frame]:
        frames, has_more = [], True
        while has_more:
            pieces, has_more = self.channel.take_pieces()
            frames += self.decoder.feed(b"".join(pieces))
        return frames


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def bytes_of(frames: list[wire.Frame]) -> int:
    return sum(len(frame.body) for frame in frames if frame.kind in (wire.DATA, wire.EVENT))


async def test_data_waits_for_credit_and_for_the_writer() -> None:
    host = Host()
    sending = asyncio.create_task(host.channel.data(1, bytes(1_000_000)))
    await settle()
    first = bytes_of(host.take())
    assert 0 < first <= channels.MAX_QUEUED_BYTES
    sent = first
    while sent < wire.INITIAL_CREDIT:
        await settle()
        sent += bytes_of(host.take())
    await settle()
    assert host.take() == []
    assert not host.channel.room()
    while not sending.done():
        host.channel.take_frame(wire.Frame(7, wire.CREDIT, 0, (65536).to_bytes(4, "big")))
        await settle()
        sent += bytes_of(host.take())
    assert sent == 1_000_000


async def test_an_event_interrupted_between_fragments_is_followed_by_the_end_only() -> None:
    host = Host()
    sending = asyncio.create_task(host.channel.event({"text": "x" * 1_000_000}))
    await settle()
    frames = host.take()
    assert all(frame.flags == wire.MORE for frame in frames)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    await host.channel.event({"event": "another"})
    await host.channel.data(1, b"more")
    host.channel.end_error("canceled", "enough")
    (end,) = host.take()
    assembler = wire.Assembler()
    for frame in frames:
        assert assembler.add(frame) is None
    assert assembler.add(end) == {"error": {"code": "canceled", "message": "enough"}}


async def test_after_a_cancel_what_is_sent_is_dropped_and_nothing_is_received() -> None:
    host = Host()
    waiting = asyncio.create_task(host.channel.receive())
    stuck = asyncio.create_task(host.channel.data(1, bytes(1_000_000)))
    await settle()
    host.take()
    host.channel.take_frame(wire.Frame(7, wire.CANCEL, 0, b""))
    with pytest.raises(refusals.Refused) as refused:
        await waiting
    assert refused.value.code == "canceled"
    await stuck
    host.take()
    await host.channel.event({"event": "late"})
    assert host.take() == []
    host.channel.end_ok({})
    assert [frame.kind for frame in host.take()] == [wire.END]


async def test_only_the_first_end_counts() -> None:
    host = Host()
    host.channel.end_ok({"a": 1})
    host.channel.end_error("internal", "no")
    (end,) = host.take()
    assert json.loads(end.body) == {"ok": {"a": 1}}
    assert host.ended


async def test_what_is_too_big_to_be_said_is_refused() -> None:
    host = Host()
    with pytest.raises(refusals.Refused) as refused:
        await host.channel.event({"text": "x" * wire.MAX_MESSAGE_BYTES})
    assert refused.value.code == "resource_exhausted"
    host.channel.end_ok({"values": [100] * (wire.MAX_MESSAGE_VALUES + 1)})
    (end,) = host.take()
    assert json.loads(end.body)["error"]["code"] == "resource_exhausted"


async def test_taking_data_gives_its_credit_back() -> None:
    host = Host()
    for _ in range(4):
        host.channel.take_frame(wire.Frame(7, wire.DATA, 0, bytes(wire.MAX_BODY_BYTES)))
    with pytest.raises(wire.ProtocolError):
        host.channel.take_frame(wire.Frame(7, wire.DATA, 0, b"x"))
    assert host.take() == []
    assert sum(map(len, await host.channel.receive_all() or [])) == wire.INITIAL_CREDIT
    (credit,) = host.take()
    assert wire.decode_credit(credit) == wire.INITIAL_CREDIT
    host.channel.take_frame(wire.Frame(7, wire.EOF, 0, b""))
    assert await host.channel.receive() is None
