from glovebox_server.manager import journal
from tests.support import manager_fakes as fakes


def lines(ring):
    return [(entry.level, entry.message) for entry in ring.entries()]


def test_output_is_cut_into_lines_when_read():
    ring = journal.Journal(fakes.FakeClock())
    ring.add("command started", pid=3, command="a\x1b")
    ring.output("process 3", "stdout", b"one\r\ntw")
    ring.output("process 3", "stdout", b"o\n\n")
    ring.output("process 3", "stderr", b"bad\xff\x07\n")
    assert lines(ring) == [("info", "command started"), ("info", "one"), ("info", "two"), ("warn", "bad\ufffd\\x07")]
    first, one = ring.entries()[:2]
    assert first.fields == {"pid": "3", "command": "a\\x1b"}
    assert one.fields == {"source": "process 3", "stream": "stdout"}
    assert one.timestamp == fakes.START


def test_bounded_in_entries_bytes_and_line_length():
    ring = journal.Journal(fakes.FakeClock(), max_entries=10, max_bytes=20_000)
    for number in range(1000):
        ring.output("p", "stdout" if number % 2 else "stderr", b"x" * 5000)
    assert sum(len(item.data) for item in ring._items) <= 20_000
    assert all(len(message) == journal.MAX_LINE_BYTES for _, message in lines(ring))
    ring.output("p", "stdout", b"y\n" * 100_000)
    assert sum(len(item.data) for item in ring._items) <= 20_000
    assert lines(ring) == [("info", "y")] * 10
    for number in range(100):
        ring.add("event", number=number)
    assert [entry.fields["number"] for entry in ring.entries()] == [str(number) for number in range(90, 100)]


def test_small_writes_do_not_push_events_out():
    ring = journal.Journal(fakes.FakeClock(), max_entries=10)
    ring.add("command started")
    for _ in range(4000):
        ring.output("p", "stdout", b".")
    assert lines(ring) == [("info", "command started"), ("info", "." * 4000)]
