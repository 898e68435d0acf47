"""The messages between the agent and a context's process, as bytes."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from glovebox_guest import context_link, wire

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(), lambda inner: st.lists(inner, max_size=3)
)
MESSAGES = st.dictionaries(st.text(), VALUES, max_size=4)


@given(st.lists(MESSAGES, max_size=4), st.integers(1, 50))
def test_messages_arrive_in_whatever_pieces(messages, size):
    data = b"".join(context_link.encode(message) for message in messages)
    decoder = context_link.Decoder()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert [message for piece in pieces for message in decoder.feed(piece)] == messages


@given(st.binary(max_size=200))
def test_any_bytes_are_messages_or_a_protocol_error(data):
    try:
        messages = context_link.Decoder().feed(data)
    except wire.ProtocolError:
        return
    assert all(isinstance(message, dict) for message in messages)


def test_a_length_over_the_limit_is_refused_before_the_body_comes():
    too_long = context_link.HEADER.pack(context_link.MAX_MESSAGE_BYTES + 1)
    with pytest.raises(wire.ProtocolError):
        context_link.Decoder().feed(too_long)


def _nested():
    value = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [object(), float("nan"), "x" * context_link.MAX_MESSAGE_BYTES, _nested()],
    ids=["type", "nan", "size", "depth"],
)
def test_what_cannot_be_sent_is_a_value_error(value):
    with pytest.raises(ValueError, match=r"message|JSON"):
        context_link.encode({"value": value})


def test_receive_waits_for_the_whole_and_ends_with_the_peer():
    one, other = socket.socketpair()
    with other:
        with one:
            one.sendall(context_link.encode({"a": "x" * 1000}))
            assert context_link.receive(other) == {"a": "x" * 1000}
            one.sendall(b"\0\0")
        assert context_link.receive(other) is None
