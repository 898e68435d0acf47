"""Where the server is: what is believed of its file, and what is not."""

import json
import os
import pathlib
import subprocess
from typing import Any

import pytest

from glovebox import connection, errors

_KEY = "e2b_" + "1" * 40


def _write(directory: pathlib.Path, **content: Any) -> pathlib.Path:
    path = directory / "server.json"
    path.write_text(json.dumps({"url": "http://127.0.0.1:3000", "key": _KEY, "pid": os.getpid(), **content}))
    return path


def test_it_is_found_in_the_data_directory(tmp_path: pathlib.Path) -> None:
    _write(tmp_path, version="1.2.3")

    found = connection.find(tmp_path)

    assert found == connection.Connection("http://127.0.0.1:3000", _KEY, os.getpid(), "1.2.3")
    assert _KEY not in repr(found)


def test_without_a_file_there_is_no_server(tmp_path: pathlib.Path) -> None:
    with pytest.raises(connection.NoServerError, match="glovebox serve"):
        connection.find(tmp_path)


def test_a_server_whose_process_has_ended_is_no_server(tmp_path: pathlib.Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    _write(tmp_path, pid=ended.pid)

    with pytest.raises(connection.NoServerError, match="has ended"):
        connection.find(tmp_path)


def test_the_environment_can_name_a_server_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    monkeypatch.setenv("GLOVEBOX_URL", "https://boxes.example:8443/")
    monkeypatch.setenv("GLOVEBOX_API_KEY", "secret")

    assert connection.find().url == "https://boxes.example:8443"
    _write(tmp_path)
    assert connection.find(tmp_path).url == "http://127.0.0.1:3000"


def test_a_server_elsewhere_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOVEBOX_URL", "https://boxes.example")

    with pytest.raises(errors.AuthenticationError):
        connection.find()


@pytest.mark.parametrize(
    "content",
    [
        {"url": "http://x; rm -rf /"},
        {"url": "http://host:99999"},
        {"url": "file:///etc/passwd"},
        {"url": "http://host/path"},
        {"url": "http://[half"},
        {"url": 3},
        {"url": None},
        {"key": "with space"},
        {"key": "new\nline"},
        {"key": ""},
        {"key": None},
    ],
)
def test_an_odd_address_or_key_is_refused(tmp_path: pathlib.Path, content: dict[str, Any]) -> None:
    _write(tmp_path, **content)

    with pytest.raises(connection.NoServerError):
        connection.find(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '"text"', "null"])
def test_a_file_that_is_no_description_is_refused(tmp_path: pathlib.Path, text: str) -> None:
    (tmp_path / "server.json").write_text(text)

    with pytest.raises(connection.NoServerError):
        connection.find(tmp_path)


@pytest.mark.parametrize(
    ("written", "used", "domain"),
    [
        ("http://0.0.0.0:3000", "http://127.0.0.1:3000", "localhost:3000"),
        ("http://[::]:3000", "http://[::1]:3000", "localhost:3000"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080", "localhost:8080"),
        ("https://boxes.example", "https://boxes.example", "boxes.example"),
    ],
)
def test_addresses_that_a_client_can_use(tmp_path: pathlib.Path, written: str, used: str, domain: str) -> None:
    _write(tmp_path, url=written)

    found = connection.find(tmp_path)

    assert (found.url, found.domain) == (used, domain)


def test_the_data_directory_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOVEBOX_DATA_DIR")
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert connection.default_data_dir() == pathlib.Path("/home/someone/.local/share/glovebox")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert connection.default_data_dir() == pathlib.Path("/var/lib/glovebox")
