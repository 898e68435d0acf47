"""`ps`, `kill` and `logs` against a fake server."""

import datetime as dt
import json
from typing import Any


def _ago(seconds: float) -> str:
    return (dt.datetime.now(dt.UTC) - dt.timedelta(seconds=seconds)).isoformat()


def _entry(ms: int, message: str) -> dict[str, Any]:
    moment = dt.datetime.fromtimestamp(ms / 1000, dt.UTC).isoformat()
    return {"timestamp": moment, "ms": ms, "level": "info", "message": message, "fields": {}}


def test_ps_shows_all_pages(glovebox: Any, server: Any, fake: Any) -> None:
    server.state.sandboxes = [fake.sandbox(f"i{number}") for number in range(5)]

    result = glovebox("ps", "--json")

    assert [sandbox["sandboxID"] for sandbox in json.loads(result.stdout)] == ["i0", "i1", "i2", "i3", "i4"]


def test_ps_table(glovebox: Any, server: Any, fake: Any) -> None:
    server.state.sandboxes = [
        fake.sandbox("i1", startedAt=_ago(125.5), endAt=_ago(-3605.5), metadata={"who": "\x1b[31mme", "b": "[bold]"}),
        fake.sandbox("i2", state="paused", alias="code", boundary="user namespace"),
    ]

    lines = glovebox("ps").stdout.splitlines()

    assert lines[0].split() == ["ID", "TEMPLATE", "STATE", "AGE", "ENDS", "IN", "METADATA", "BOUNDARY"]
    assert lines[1].split() == ["i1", "base", "running", "2m", "5s", "1h", "who=\\x1b[31mme", "b=[bold]"]
    assert lines[2].split()[:3] == ["i2", "code", "paused"]
    assert lines[2].rstrip().endswith("user namespace")


def test_ps_of_nothing_prints_nothing(glovebox: Any, server: Any) -> None:
    result = glovebox("ps")

    assert (result.exit_code, result.stdout) == (0, "")


def test_kill_ends_those_named_and_tells_which_were_missing(glovebox: Any, server: Any, fake: Any) -> None:
    server.state.sandboxes = [fake.sandbox("i1"), fake.sandbox("i2"), fake.sandbox("i3")]

    result = glovebox("kill", "i1", "gone", "i3")

    assert result.exit_code == 4
    assert result.stdout == "i1\ni3\n"
    assert "gone" in result.stderr
    assert [sandbox["sandboxID"] for sandbox in server.state.sandboxes] == ["i2"]


def test_kill_all(glovebox: Any, server: Any, fake: Any) -> None:
    server.state.sandboxes = [fake.sandbox(f"i{number}") for number in range(5)]

    result = glovebox("kill", "--all")

    assert result.exit_code == 0
    assert server.state.sandboxes == []


def test_an_id_is_one_segment_of_the_path(glovebox: Any, server: Any) -> None:
    glovebox("kill", "../api-keys/key1?x=#")

    assert server.state.requests == ["DELETE /sandboxes/..%2Fapi-keys%2Fkey1%3Fx%3D%23"]


def test_logs_are_printed_once_and_escaped(glovebox: Any, server: Any) -> None:
    server.state.logs = [_entry(1000, "one\x1b[2J"), _entry(1000, "two\nlines"), _entry(2000, "three")]

    lines = glovebox("logs", "i1").stdout.splitlines()

    assert [line.partition(" info ")[2] for line in lines] == ["one\\x1b[2J", "two\\nlines", "three"]


def test_logs_as_json_lines(glovebox: Any, server: Any) -> None:
    server.state.logs = [_entry(1000, "one"), _entry(2000, "two")]

    lines = glovebox("logs", "i1", "--json").stdout.splitlines()

    assert [json.loads(line)["message"] for line in lines] == ["one", "two"]


def test_following_logs_ends_with_the_sandbox(glovebox: Any, server: Any, monkeypatch: Any) -> None:
    from glovebox.commands import sandboxes

    def next_second(_: float) -> None:
        server.state.logs.append(_entry(3000 + len(server.state.logs), "later"))

    monkeypatch.setattr(sandboxes.time, "sleep", next_second)
    server.state.logs = [_entry(1000, "first")]
    server.state.log_reads_left = 4

    result = glovebox("logs", "-f", "i1")

    assert result.exit_code == 0
    assert [line.rpartition(" ")[2] for line in result.stdout.splitlines()] == ["first", "later"]


def test_logs_of_a_sandbox_that_is_not_there(glovebox: Any, server: Any) -> None:
    server.state.log_reads_left = 0

    assert glovebox("logs", "-f", "i1").exit_code == 4
