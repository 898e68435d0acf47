"""The guest link with a guest that behaves: calls, streams, windows, cancels, fairness, and the loss of the link."""

import asyncio

import pytest

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.node import guest_channel, guest_link


async def within(awaitable, seconds=10):
    return await asyncio.wait_for(awaitable, seconds)


async def until(condition, seconds=10):
    async with asyncio.timeout(seconds):
        while True:
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_a_channel_can_be_opened_before_the_guest_says_hello(make_rig):
    rig = await make_rig(hello=False)
    channel = await rig.link.open("sandbox.env", {})
    await rig.peer.hello()
    opened = await rig.peer.expect(wire.OPEN)
    await rig.peer.ok(opened.channel, env={})
    assert await within(channel.answer()) == {"env": {}}
    assert await rig.link.ready() == "0123456789abcdef"


async def test_channel_numbers_are_never_used_twice(rig):
    numbers = []
    for _ in range(3):
        channel = await rig.link.open("x", {})
        await rig.peer.ok((await rig.peer.expect(wire.OPEN)).channel)
        await within(channel.answer())
        numbers.append(channel.number)
    assert numbers == sorted(set(numbers))


async def test_events_data_and_the_answer_come_in_order(rig):
    channel = await rig.link.open("x", {})
    await rig.peer.say(channel.number, wire.EVENT, {"event": "start"})
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"out", wire.STDOUT))
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"err", wire.STDERR))
    await rig.peer.send(wire.encode(channel.number, wire.EOF))
    await rig.peer.ok(channel.number, a=1)
    assert [await within(channel.receive()) for _ in range(5)] == [
        guest_channel.Event({"event": "start"}),
        guest_channel.Data(wire.STDOUT, b"out"),
        guest_channel.Data(wire.STDERR, b"err"),
        guest_channel.Eof(),
        guest_channel.Answer({"a": 1}),
    ]
    assert rig.link.held_bytes == 0


async def test_a_long_message_comes_in_fragments_with_credit_given_as_they_are_taken(rig):
    channel = await rig.link.open("x", {}, max_message_bytes=wire.MAX_MESSAGE_BYTES)
    text = "x" * (2 * wire.INITIAL_CREDIT)
    receiving = asyncio.create_task(channel.receive())
    credit = wire.Credit()
    for frame in wire.encode_message(channel.number, wire.EVENT, {"text": text}):
        size = len(frame) - wire.HEADER.size
        while credit.left < size:
            credit.give(wire.decode_credit(await rig.peer.expect(wire.CREDIT)))
        credit.spend(size)
        await rig.peer.send(frame)
    assert (await within(receiving)).message == {"text": text}
    assert rig.link.held_bytes == 0


async def test_an_error_answer_is_cut_and_escaped(rig):
    channel = await rig.link.open("x", {})
    message = "\x1b[31mred\n\u202e" + "é" * 5000
    await rig.peer.say(channel.number, wire.END, {"error": {"code": "made-up", "message": message}})
    with pytest.raises(errors.GuestError) as caught:
        await within(channel.answer())
    assert caught.value.code == "internal"
    assert str(caught.value).startswith("\\x1b[31mred\\n\\u202eé")
    assert len(str(caught.value).encode()) <= 2048


async def test_an_upload_stops_at_the_window_and_goes_on_with_credit(rig):
    channel = await rig.link.open("x", {})
    data = bytes(range(256)) * (wire.INITIAL_CREDIT // 128)
    sending = asyncio.create_task(channel.send(data))
    got = b""
    while len(got) < wire.INITIAL_CREDIT:
        got += (await rig.peer.expect(wire.DATA)).body
    assert len(got) == wire.INITIAL_CREDIT
    assert not sending.done()
    await rig.peer.send(wire.encode_credit(channel.number, wire.INITIAL_CREDIT))
    while len(got) < len(data):
        got += (await rig.peer.expect(wire.DATA)).body
    assert await within(sending) is True
    assert got == data


async def test_an_upload_ends_when_the_guest_answers_early(rig):
    channel = await rig.link.open("x", {})
    sending = asyncio.create_task(channel.send(b"x" * (2 * wire.INITIAL_CREDIT)))
    await rig.peer.say(channel.number, wire.END, {"error": {"code": "no_space", "message": "full"}})
    assert await within(sending) is False
    with pytest.raises(errors.GuestError, match="full"):
        await channel.answer()


async def test_an_unread_channel_holds_at_most_its_window_while_another_flows(rig):
    unread = await rig.link.open("x", {})
    flowing = await rig.link.open("x", {})
    frame = b"u" * wire.MAX_BODY_BYTES
    for _ in range(wire.INITIAL_CREDIT // len(frame)):
        await rig.peer.send(wire.encode(unread.number, wire.DATA, frame))
    total = 16 * wire.INITIAL_CREDIT

    async def produce():
        credit = wire.Credit()
        for _ in range(total // len(frame)):
            while credit.left < len(frame):
                credits = await rig.peer.expect(wire.CREDIT)
                assert credits.channel == flowing.number
                credit.give(wire.decode_credit(credits))
            credit.spend(len(frame))
            await rig.peer.send(wire.encode(flowing.number, wire.DATA, frame))
        await rig.peer.ok(flowing.number)

    producing = asyncio.create_task(produce())
    got = 0
    while isinstance(item := await within(flowing.receive()), guest_channel.Data):
        got += len(item.data)
    await producing
    assert got == total
    assert rig.link.held_bytes <= guest_channel.ITEM_BYTES * 4
    # And what waited is all there, byte for byte, and no more than the window.
    assert b"".join([(await unread.receive()).data for _ in range(4)]) == b"u" * wire.INITIAL_CREDIT


async def test_small_data_is_put_together(rig):
    channel = await rig.link.open("x", {})
    other = await rig.link.open("x", {})
    count = 20_000
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"ab") * count)
    await rig.peer.ok(other.number)
    await within(other.answer())  # so all that came before has been handled
    assert rig.link.held_bytes <= 2 * guest_channel.ITEM_BYTES
    got = b""
    while len(got) < 2 * count:
        got += (await within(channel.receive())).data
    assert got == b"ab" * count


async def test_a_flood_of_tiny_frames_does_not_starve_another_link(make_rig):
    flooded, other = await make_rig(), await make_rig()
    channel = await flooded.link.open("x", {})
    dust = wire.encode(channel.number, wire.DATA, b"", wire.STDOUT) * 10_000

    async def flood():
        while True:
            await flooded.peer.send(dust)

    async def answer():
        while (frame := await other.peer.frame()) is not None:
            if frame.kind == wire.OPEN:
                await other.peer.ok(frame.channel)

    tasks = [asyncio.create_task(flood()), asyncio.create_task(answer())]
    try:
        for _ in range(20):
            await within((await other.link.open("x", {})).answer(), 2)
        assert not flooded.link.closed
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_after_a_long_read_the_link_rests_as_long(rig, monkeypatch):
    first, second = await rig.link.open("x", {}), await rig.link.open("x", {})
    moments = iter([100.0, 100.5])  # handling the first answer takes half a second
    monkeypatch.setattr(guest_link.time, "perf_counter", lambda: next(moments, 200.0))
    started = asyncio.get_running_loop().time()
    await rig.peer.ok(first.number)
    await within(first.answer())
    await rig.peer.ok(second.number)
    await within(second.answer())
    assert asyncio.get_running_loop().time() - started >= 0.45


async def test_late_frames_of_a_cancelled_channel_are_dropped_until_its_end(rig):
    channel = await rig.link.open("x", {})
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"before"))
    await until(lambda: rig.link.held_bytes)
    channel.cancel()
    assert rig.link.held_bytes == 0
    channel.cancel()
    await rig.peer.expect(wire.CANCEL)
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"after"), wire.encode(channel.number, wire.EOF))
    await rig.peer.say(channel.number, wire.EVENT, {"event": "late"})
    await rig.peer.say(channel.number, wire.END, {"error": {"code": "canceled", "message": ""}})
    other = await rig.link.open("x", {})
    await rig.peer.ok(other.number)
    await within(other.answer())
    assert rig.broken == []
    assert rig.link.held_bytes == 0
    with pytest.raises(errors.GuestError):
        await channel.receive()


async def test_a_lost_link_gives_what_had_come_and_then_sandbox_gone(rig):
    ended = await rig.link.open("x", {})
    cut_off = await rig.link.open("x", {})
    await rig.peer.ok(ended.number, a=1)
    await rig.peer.send(wire.encode(cut_off.number, wire.DATA, b"some"))
    await until(lambda: rig.link.held_bytes > guest_channel.ITEM_BYTES)
    rig.peer.sock.close()
    await until(lambda: rig.link.closed)
    assert await ended.answer() == {"a": 1}
    assert (await cut_off.receive()).data == b"some"
    for call in (cut_off.receive(), cut_off.send(b"x"), rig.link.open("x", {}), rig.link.ready()):
        with pytest.raises(errors.SandboxGoneError) as caught:
            await within(call)
        assert not isinstance(caught.value, errors.GuestProtocolError)
    assert rig.broken == []


async def test_a_closed_link_wakes_everybody(rig):
    channel = await rig.link.open("x", {})
    waiting = [
        asyncio.create_task(channel.receive()),
        asyncio.create_task(channel.send(b"x" * (2 * wire.INITIAL_CREDIT))),
    ]
    await rig.peer.expect(wire.DATA)
    rig.link.close()
    rig.link.close()
    for task in waiting:
        with pytest.raises(errors.SandboxGoneError):
            await within(task)


async def test_a_guest_that_does_not_read_makes_senders_wait(rig):
    channels = [await rig.link.open("x", {}) for _ in range(20)]
    sending = [asyncio.create_task(channel.send(b"x" * wire.INITIAL_CREDIT)) for channel in channels]
    opening = asyncio.create_task(rig.link.open("late", {}))
    await asyncio.wait(sending, timeout=0.2)
    assert not all(task.done() for task in sending)
    got = 0
    while got < 20 * wire.INITIAL_CREDIT:
        got += len((await rig.peer.expect(wire.DATA)).body)
    assert all(await within(asyncio.gather(*sending)))
    await within(opening)


async def test_a_ping_is_answered(rig):
    await rig.peer.send(wire.encode(0, wire.PING, b"body"))
    assert (await rig.peer.expect(wire.PONG)).body == b"body"


async def test_an_idle_link_is_left_alone(make_rig):
    rig = await make_rig(pong_timeout_s=0.04)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(rig.peer.frame(), 0.3)
    assert not rig.link.closed


async def test_a_busy_link_with_pongs_lives(make_rig):
    rig = await make_rig(pong_timeout_s=0.2)
    channel = await rig.link.open("x", {})
    for _ in range(8):
        ping = await rig.peer.expect(wire.PING)
        await rig.peer.send(wire.encode(0, wire.PONG, ping.body))
    await rig.peer.ok(channel.number)
    await within(channel.answer())


async def test_too_many_operations_at_once_are_refused(rig, monkeypatch):
    monkeypatch.setattr(wire, "MAX_CHANNELS", 3)
    for _ in range(3):
        await rig.link.open("x", {})
    with pytest.raises(errors.GuestError) as caught:
        await rig.link.open("x", {})
    assert caught.value.code == "resource_exhausted"


async def test_parameters_that_cannot_be_sent_are_the_callers_fault(rig):
    with pytest.raises(errors.InvalidRequestError):
        await rig.link.open("x", {"text": "x" * wire.MAX_MESSAGE_BYTES})
    assert not rig.link.closed


async def test_credit_is_given_back_in_batches(rig):
    channel = await rig.link.open("x", {})
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"x" * 40_000))
    await rig.peer.send(wire.encode(channel.number, wire.DATA, b"x" * 40_000))
    assert len((await within(channel.receive())).data) == 40_000
    assert len((await within(channel.receive())).data) == 40_000
    assert wire.decode_credit(await rig.peer.expect(wire.CREDIT)) == 80_000


def test_the_budget_holds_the_longest_message():
    assert guest_link.MEMORY_BYTES > wire.MAX_MESSAGE_BYTES + guest_channel.ITEM_BYTES * 1024
