import json
import os
import stat
import threading

import pytest

from glovebox import errors
from glovebox_server import audit, clock
from glovebox_server.audit import Record


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def trail(path, **options):
    return audit.AuditLog(path, clock.SystemClock(), **options)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_record_has_all_fields_and_the_chain_holds(path):
    log = trail(path)
    log.record(Record("process.end", "i1", "key_1", "ff", 1.23456, 3, {"cpu_seconds": 1.0}, ("protocol",), {"a": "b"}))
    log.record(Record("sandbox.end"))
    log.close()
    log.close()
    first, second = lines(path)
    assert (first["seq"], first["action"], first["duration_ms"], first["exit_code"]) == (1, "process.end", 1.235, 3)
    assert (first["sandbox_id"], first["user_id"], first["code_hash"]) == ("i1", "key_1", "ff")
    assert (first["resource_usage"], first["security_events"]) == ({"cpu_seconds": 1.0}, ["protocol"])
    assert first["prev_hash"] == audit.FIRST_HASH
    assert second["prev_hash"] == first["hash"]
    assert audit.verify(path) == audit.Verdict(2, second["hash"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_chain_goes_on_over_restarts(path):
    for _ in range(3):
        log = trail(path)
        log.record(Record("a"))
        log.close()
    assert audit.verify(path).records == 3


def test_torn_line_is_cut_off_and_told(path):
    log = trail(path)
    log.record(Record("a"))
    log.close()
    with path.open("ab") as file:
        file.write(b'{"seq":2,"act')
    assert (audit.verify(path).records, audit.verify(path).torn_bytes) == (1, 13)
    trail(path).close()
    assert audit.verify(path).problem is None
    assert lines(path)[1]["action"] == "audit.recovered"
    assert lines(path)[1]["detail"] == {"torn_bytes": "13"}


def test_file_with_nothing_but_a_torn_line(path):
    path.write_bytes(b"{")
    trail(path).close()
    assert audit.verify(path) == audit.Verdict(1, lines(path)[0]["hash"])


@pytest.mark.parametrize(
    ("tamper", "problem"),
    [
        (lambda rows: rows.pop(1), "line 2: record 2 is missing"),
        (lambda rows: rows.pop(0), "line 1: record 1 is missing"),
        (lambda rows: rows.insert(1, rows.pop(2)), "line 2: record 2 is missing"),
        (lambda rows: rows.__setitem__(1, rows[1].replace(b'"b"', b'"x"')), "line 2: was altered"),
        (lambda rows: rows.__setitem__(1, b"hello\n"), "line 2: is not a record"),
        (lambda rows: rows.__setitem__(1, b"[]\n"), "line 2: is not a record"),
    ],
)
def test_tampering_shows(path, tamper, problem):
    log = trail(path)
    for action in "abc":
        log.record(Record(action))
    log.close()
    rows = path.read_bytes().splitlines(keepends=True)
    tamper(rows)
    path.write_bytes(b"".join(rows))
    assert audit.verify(path).problem.startswith(problem)


def test_rehashed_line_breaks_the_next(path):
    log = trail(path)
    log.record(Record("a"))
    log.record(Record("b"))
    log.close()
    rows = lines(path)
    rows[0]["action"] = "x"
    del rows[0]["hash"]
    rows[0]["hash"] = audit._hash(rows[0])
    path.write_bytes(b"".join(audit._canonical(row) + b"\n" for row in rows))
    assert audit.verify(path).problem == "line 2: does not follow the record before it"


def test_guest_text_is_cut_and_escaped(path):
    log = trail(path)
    log.record(Record("a", detail={"path": "\x1b[2J\n" + "x" * 1000 + "\ud800"}))
    log.close()
    [row] = lines(path)
    assert row["detail"]["path"].startswith("\\x1b[2J\\nxxx")
    assert len(row["detail"]["path"]) <= audit.MAX_DETAIL_LETTERS


def test_many_threads_one_chain(path):
    log = trail(path, max_waiting=10)  # overflows: callers write too
    threads = [threading.Thread(target=lambda: [log.record(Record("a")) for _ in range(200)]) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert audit.verify(path).records == 1000
    assert audit.verify(path).problem is None


def test_full_disk_refuses_work_and_loses_nothing(path, monkeypatch):
    log = trail(path, max_waiting=3)
    write, free = os.write, 5

    def full(fd, data):
        nonlocal free
        if free == 0:
            raise OSError(28, "No space left on device")
        free -= 1
        return write(fd, bytes(data[:1]))  # as a nearly full disk does

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for _ in range(3):
            log.record(Record("kept"))
        with pytest.raises(errors.CapacityError, match="audit log"):
            for _ in range(2):  # one may be in the writer's hands
                log.record(Record("refused"))
    log.record(Record("again"))
    log.close()
    assert audit.verify(path).problem is None
    actions = [row["action"] for row in lines(path)]
    assert actions.count("kept") == 3
    assert actions[-1] == "again"


def test_nobody_waits_for_the_disk(path, monkeypatch):
    stuck, reached = threading.Event(), threading.Event()
    write = os.write

    def slow(fd, data):
        reached.set()
        stuck.wait(30)
        return write(fd, data)

    monkeypatch.setattr(os, "write", slow)
    log = trail(path)
    log.record(Record("a"))
    assert reached.wait(30)
    log.record(Record("b"))  # returns while the writer hangs
    stuck.set()
    log.close()
    assert audit.verify(path).records == 2
