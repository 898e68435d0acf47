"""`key create`, `key list` and `key revoke` against a fake server."""

import json
from typing import Any


def test_a_new_key_is_all_that_is_on_stdout(glovebox: Any, server: Any) -> None:
    result = glovebox("key", "create", "laptop")

    assert result.stdout == "e2b_" + "ab" * 20 + "\n"
    assert [key["name"] for key in server.state.keys] == ["laptop"]


def test_keys_are_listed_without_secrets(glovebox: Any, server: Any) -> None:
    server.state.keys = [{"id": "key1", "name": "\x1b]0;x\x07", "createdAt": "2026-01-01T00:00:00Z"}]

    lines = glovebox("key", "list").stdout.splitlines()

    assert lines[0].split() == ["ID", "NAME", "CREATEDAT"]
    assert lines[1].split() == ["key1", "\\x1b]0;x\\x07", "2026-01-01T00:00:00Z"]
    assert json.loads(glovebox("key", "list", "--json").stdout) == server.state.keys


def test_revoke(glovebox: Any, server: Any) -> None:
    server.state.keys = [{"id": "key1", "name": "laptop"}]

    assert glovebox("key", "revoke", "key1").exit_code == 0
    assert server.state.keys == []
    assert glovebox("key", "revoke", "key1").exit_code == 4
