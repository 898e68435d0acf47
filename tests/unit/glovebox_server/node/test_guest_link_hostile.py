"""The guest link with a guest that means harm: each way of threats.md ("The link to the host") ends that link only."""

import asyncio
import json
import socket
import struct

import hypothesis
import pytest
from hypothesis import strategies

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.node import guest_channel, guest_link
from tests.support import link_peer


async def broken_by(rig, *frames, taken=True):
    """Send, and see that the link ends for it, the peer is hung up on, and the open channel hears of it."""
    channel = await rig.link.open("x", {})
    await rig.peer.send(*frames)
    if taken:
        with pytest.raises(errors.GuestProtocolError):
            while True:
                await asyncio.wait_for(channel.receive(), 10)
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.link.closed
    assert len(rig.broken) == 1
    with pytest.raises(errors.GuestProtocolError):
        await rig.link.open("x", {})
    return rig.broken[0]


def event(body, flags=0, channel=1):
    return wire.encode(channel, wire.EVENT, body, flags)


FRAMES = {
    "a frame that is too long": struct.pack("!IIBB", wire.MAX_BODY_BYTES + 1, 1, wire.DATA, 0),
    "a frame of 4 GiB": struct.pack("!IIBB", 2**32 - 1, 1, wire.DATA, 0),
    "an unknown kind": struct.pack("!IIBB", 0, 1, 99, 0),
    "unknown flags": wire.encode(1, wire.DATA, b"x", 0x40),
    "a channel kind on channel 0": wire.encode(0, wire.DATA, b"x"),
    "a link kind on a channel": wire.encode(1, wire.PONG),
    "a channel never opened": wire.encode(2, wire.DATA, b"x"),
    "the highest channel": wire.encode(2**32 - 1, wire.END, b"{}"),
    "an OPEN by the guest": wire.encode(1, wire.OPEN, b'{"op":"x"}'),
    "an OPEN of a new channel by the guest": wire.encode(7, wire.OPEN, b'{"op":"x"}'),
    "a CANCEL by the guest": wire.encode(1, wire.CANCEL),
    "data past its credit": wire.encode(1, wire.DATA, b"x" * wire.MAX_BODY_BYTES) * 4 + wire.encode(1, wire.DATA, b"x"),
    "events past their credit": event(b"x" * wire.MAX_BODY_BYTES, wire.MORE) * 5,
    "data after EOF": wire.encode(1, wire.EOF) + wire.encode(1, wire.DATA, b"x"),
    "EOF twice": wire.encode(1, wire.EOF) * 2,
    "data after END": wire.encode(1, wire.END, b'{"ok":{}}') + wire.encode(1, wire.DATA, b"x"),
    "END twice": wire.encode(1, wire.END, b'{"ok":{}}') * 2,
    "an event amid END": wire.encode(1, wire.END, b"{", wire.MORE) + event(b"{}"),
    "data amid END": wire.encode(1, wire.END, b"{", wire.MORE) + wire.encode(1, wire.DATA, b"x"),
    "EOF amid END": wire.encode(1, wire.END, b"{", wire.MORE) + wire.encode(1, wire.EOF),
    "an empty END": wire.encode(1, wire.END),
    "an empty event": event(b""),
    "credit never used": wire.encode_credit(1, 1),
    "no credit": wire.encode_credit(1, 0),
    "enormous credit": wire.encode_credit(1, 2**32 - 1),
    "credit in five bytes": wire.encode(1, wire.CREDIT, b"12345"),
    "HELLO twice": wire.encode(0, wire.HELLO, b'{"version":1,"boot_id":"0123456789abcdef","pid":1}'),
    "a pong never asked for": wire.encode(0, wire.PONG, b"x"),
    "a ping too long": wire.encode(0, wire.PING, b"x" * 65),
    "a ping flood": wire.encode(0, wire.PING, b"x") * 1000,
}


@pytest.mark.parametrize("name", FRAMES)
async def test_a_broken_rule_ends_the_link(rig, name):
    # END of channel 1 before the harm is legal: there the channel itself has its answer already.
    taken = b'{"ok":{}}' not in FRAMES[name]
    await broken_by(rig, FRAMES[name], taken=taken)


MESSAGES = {
    "not JSON": b"{",
    "a list": b"[]",
    "invalid UTF-8": b'{"a":"\xff"}',
    "UTF-16": '{"ok":{}}'.encode("utf-16"),
    "deep JSON": b'{"ok":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    "NaN": b'{"ok":{"a":NaN}}',
    "a number of 5000 digits": b'{"ok":{"a":' + b"1" * 5000 + b"}}",
    "neither ok nor error": b"{}",
    "both ok and error": b'{"ok":{},"error":{"code":"internal","message":""}}',
    "ok is a list": b'{"ok":[]}',
    "an error without message": b'{"error":{"code":"internal"}}',
    "an error's code is a number": b'{"error":{"code":5,"message":""}}',
    "an error is text": b'{"error":"internal"}',
}


@pytest.mark.parametrize("name", MESSAGES)
async def test_a_malformed_answer_ends_the_link(rig, name):
    body = MESSAGES[name]
    parts = [body[at : at + wire.MAX_BODY_BYTES] for at in range(0, len(body), wire.MAX_BODY_BYTES)]
    frames = [wire.encode(1, wire.END, part, wire.MORE) for part in parts[:-1]]
    await broken_by(rig, *frames, wire.encode(1, wire.END, parts[-1]))


async def test_an_empty_fragment_ends_the_link(rig):
    await broken_by(rig, wire.encode(1, wire.EVENT, b"{", wire.MORE), wire.encode(1, wire.END, b"", wire.MORE))


async def test_an_event_that_never_ends_is_too_long_at_last(rig):
    """The credit goes on, as somebody reads; the message's own limit ends it."""
    channel = await rig.link.open("x", {}, max_message_bytes=1024 * 1024)
    receiving = asyncio.create_task(channel.receive())

    async def drip():
        credit = wire.Credit()
        while (frame := await rig.peer.frame()) is not None:
            credit.give(wire.decode_credit(frame)) if frame.kind == wire.CREDIT else None
            while credit.left >= wire.MAX_BODY_BYTES:
                credit.spend(wire.MAX_BODY_BYTES)
                await rig.peer.send(event(b" " * wire.MAX_BODY_BYTES, wire.MORE))

    await asyncio.wait_for(drip(), 10)
    with pytest.raises(errors.GuestProtocolError, match="too long"):
        await receiving


async def test_an_answer_that_never_ends_is_too_long_at_once(rig):
    frame = wire.encode(1, wire.END, b" " * wire.MAX_BODY_BYTES, wire.MORE)
    assert "too long" in await broken_by(rig, frame * 17)


async def test_many_unread_answers_are_bounded_together(rig, monkeypatch):
    """Each is within its limit; nobody reads them."""
    limit = guest_link.MEMORY_BYTES
    channels = [await rig.link.open("x", {}, max_message_bytes=wire.MAX_MESSAGE_BYTES) for _ in range(4)]
    frame = b" " * wire.MAX_BODY_BYTES
    most = 0
    for count in range(2 * limit // len(frame)):
        await rig.peer.send(wire.encode(channels[count % 4].number, wire.END, frame, wire.MORE))
        most = max(most, rig.link.held_bytes)
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["more was sent than may be held unread"]
    assert most <= limit
    assert rig.link.held_bytes == 0


async def test_tiny_events_nobody_reads_are_bounded(rig):
    """A two-byte event uses little credit and much memory; the budget counts it."""
    channels = [await rig.link.open("x", {}) for _ in range(4)]
    for channel in channels:
        await rig.peer.send(event(b"{}", channel=channel.number) * (wire.INITIAL_CREDIT // 2))
        if rig.link.closed:
            break
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["more was sent than may be held unread"]


async def test_data_in_alternating_streams_nobody_reads_is_bounded(rig):
    channels = [await rig.link.open("x", {}) for _ in range(4)]
    pair = [wire.encode(channel.number, wire.DATA, b"x", stream) for channel in channels for stream in (1, 2)]
    for pair_of_one in (pair[at] + pair[at + 1] for at in range(0, len(pair), 2)):
        await rig.peer.send(pair_of_one * (wire.INITIAL_CREDIT // 2))
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["more was sent than may be held unread"]


async def test_values_that_are_far_bigger_than_their_text_are_refused(rig):
    channel = await rig.link.open("x", {}, max_message_bytes=wire.MAX_MESSAGE_BYTES)
    body = b'{"ok":{"a":[' + b",".join([b"[]"] * 2_000_000) + b"]}}"
    frames = [
        wire.encode(channel.number, wire.END, body[at : at + 65536], wire.MORE if at + 65536 < len(body) else 0)
        for at in range(0, len(body), 65536)
    ]
    sending = asyncio.create_task(rig.peer.send(*frames))
    with pytest.raises(errors.GuestProtocolError, match="too many values"):
        await asyncio.wait_for(channel.answer(), 10)
    await sending


async def test_cancelled_channels_that_are_never_ended_are_bounded(rig, monkeypatch):
    monkeypatch.setattr(guest_link, "MAX_FORGOTTEN", 10)
    for _ in range(10):
        (await rig.link.open("x", {})).cancel()
    assert rig.broken == []
    (await rig.link.open("x", {})).cancel()
    assert rig.broken == ["too many cancelled operations are not ended"]


async def test_a_cancelled_channel_gets_no_new_credit(rig):
    channel = await rig.link.open("x", {})
    channel.cancel()
    frame = wire.encode(channel.number, wire.DATA, b"x" * wire.MAX_BODY_BYTES)
    await rig.peer.send(frame * 5)
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["more was sent than there was credit for"]


async def test_a_cancelled_channels_answer_is_bounded_too(rig):
    channel = await rig.link.open("x", {})
    channel.cancel()
    frame = wire.encode(channel.number, wire.END, b" " * wire.MAX_BODY_BYTES, wire.MORE)
    await rig.peer.send(frame * 17)
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["an answer is empty or too long"]


async def test_a_frame_for_a_cancelled_channel_after_its_end_ends_the_link(rig):
    channel = await rig.link.open("x", {})
    channel.cancel()
    await rig.peer.ok(channel.number)
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"x"))
    await asyncio.wait_for(rig.peer.at_end(), 10)
    assert rig.broken == ["a frame is for an operation that is not open"]


HELLOS = {
    "no version": {"boot_id": "0123456789abcdef", "pid": 1},
    "another version": {"version": 2, "boot_id": "0123456789abcdef", "pid": 1},
    "true for a version": {"version": True, "boot_id": "0123456789abcdef", "pid": 1},
    "no boot id": {"version": 1, "pid": 1},
    "a boot id of words": {"version": 1, "boot_id": "../../etc/passwd", "pid": 1},
    "a long boot id": {"version": 1, "boot_id": "a" * 65, "pid": 1},
    "no pid": {"version": 1, "boot_id": "0123456789abcdef"},
    "too much": {"version": 1, "boot_id": "0123456789abcdef", "pid": 1, "more": "x" * 5000},
}


@pytest.mark.parametrize("name", HELLOS)
async def test_a_malformed_hello_ends_the_link(make_rig, name):
    rig = await make_rig(hello=False)
    await rig.peer.say(0, wire.HELLO, HELLOS[name])
    with pytest.raises(errors.GuestProtocolError):
        await asyncio.wait_for(rig.link.ready(), 10)
    assert len(rig.broken) == 1


@pytest.mark.parametrize(
    "frame", [wire.encode(1, wire.DATA, b"x"), wire.encode(0, wire.PING), wire.encode(0, wire.PONG)]
)
async def test_anything_before_hello_ends_the_link(make_rig, frame):
    await broken_by(await make_rig(hello=False), frame)


async def test_silence_instead_of_hello_ends_the_link(make_rig):
    rig = await make_rig(hello=False, hello_timeout_s=0.05)
    assert "in time" in await broken_by(rig)


async def test_silence_while_somebody_waits_ends_the_link(make_rig):
    rig = await make_rig(pong_timeout_s=0.1)
    assert rig.broken == []
    assert "does not answer" in await broken_by(rig)


async def test_a_slow_drip_ends_the_link(make_rig):
    """One byte now and then of a frame that is never whole is no sign of life."""
    rig = await make_rig(pong_timeout_s=0.2)
    await rig.link.open("x", {})
    frame = wire.encode(1, wire.DATA, b"x" * 60_000)
    for byte in range(len(frame)):
        await rig.peer.send(frame[byte : byte + 1])
        await asyncio.sleep(0.01)
        if rig.link.closed:
            break
    assert rig.broken == ["the guest does not answer"]


async def test_one_guests_harm_leaves_another_link_alone(make_rig):
    bad, good = await make_rig(), await make_rig()
    channel = await good.link.open("x", {})
    await broken_by(bad, wire.encode(9, wire.DATA, b"x"))
    await good.peer.ok(channel.number, fine=True)
    assert await asyncio.wait_for(channel.answer(), 10) == {"fine": True}
    assert good.broken == []


async def test_what_a_liar_sent_before_is_not_given_out(rig):
    channel = await rig.link.open("x", {})
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"bait") + wire.encode(99, wire.DATA, b"x"))
    await asyncio.wait_for(rig.peer.at_end(), 10)
    with pytest.raises(errors.GuestProtocolError):
        await channel.receive()
    assert rig.link.held_bytes == 0


# --- anything at all ---

_ANY_FRAME = strategies.builds(
    wire.encode,
    strategies.integers(0, 5),
    strategies.integers(1, 10),
    strategies.one_of(
        strategies.binary(max_size=40),
        strategies.just(b"x" * wire.MAX_BODY_BYTES),
        strategies.sampled_from([b'{"ok":{}}', b'{"event":"x"}', b'{"error":{"code":"c","message":"m"}}', b"\0\0\0\1"]),
    ),
    strategies.sampled_from([0, 0, 0, 1, 2, 3, wire.MORE]),
)


async def _endure(chunks):
    """Feed a link, with readers, a writer and a cancelled channel on it, then hang up; nothing but link errors come out."""
    host, inside = socket.socketpair()
    host.setblocking(False)
    inside.setblocking(False)
    broken = []
    link = await guest_link.GuestLink.attach(host, broken.append)
    peer = link_peer.Peer(inside)
    await peer.hello()
    try:
        channels = [await link.open("x", {}) for _ in range(4)]
        channels[3].cancel()
        readers = [asyncio.create_task(_read_all(channel)) for channel in channels[:2]]
        writer = asyncio.create_task(channels[0].send(b"x" * (wire.INITIAL_CREDIT + 1)))
        for chunk in chunks:
            await peer.send(chunk)
        inside.close()
        outcomes = await asyncio.wait_for(asyncio.gather(*readers, writer, return_exceptions=True), 10)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                assert isinstance(outcome, errors.SandboxGoneError | errors.GuestError), outcome
        assert len(broken) <= 1
        assert link.closed
    finally:
        link.close()
        inside.close()


async def _read_all(channel):
    while not isinstance(await channel.receive(), guest_channel.Answer):
        pass


_SETTINGS = hypothesis.settings(max_examples=150, deadline=None)


@_SETTINGS
@hypothesis.given(strategies.lists(strategies.binary(max_size=300), max_size=10))
def test_random_bytes_only_ever_end_their_link(chunks):
    asyncio.run(_endure(chunks))


@_SETTINGS
@hypothesis.given(strategies.lists(_ANY_FRAME, max_size=30))
def test_random_frames_only_ever_end_their_link(frames):
    asyncio.run(_endure(frames))


@_SETTINGS
@hypothesis.given(
    strategies.recursive(
        strategies.none()
        | strategies.booleans()
        | strategies.floats(allow_nan=False, allow_infinity=False)
        | strategies.text(max_size=5),
        lambda inner: (
            strategies.lists(inner, max_size=3)
            | strategies.dictionaries(strategies.text(max_size=3), inner, max_size=3)
        ),
    )
)
def test_random_answers_only_ever_end_their_link(value):
    body = json.dumps({"ok": value}).encode()
    asyncio.run(_endure([wire.encode(1, wire.END, body), wire.encode(2, wire.EVENT, body)]))
