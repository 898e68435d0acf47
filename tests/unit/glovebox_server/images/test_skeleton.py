import pathlib

import pytest

from glovebox import errors
from glovebox_server.images import skeleton, tree

_SECRET = "hunter2"


@pytest.fixture
def host(tmp_path: pathlib.Path) -> pathlib.Path:
    """A host with a secret in every file that administrators put them in."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    for name in (
        "passwd", "group", "shadow", "gshadow", "hosts", "hostname", "resolv.conf", "machine-id", "environment",
        "profile", "bash.bashrc", "fstab", "pip.conf", "sudoers", "skel/.bashrc", "skel/.profile", "ssh/ssh_host_key",
        "ssl/private/key.pem", "ssl/certs/snakeoil.pem", "java-17-openjdk/management/jmxremote.password",
    ):  # fmt: skip
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_SECRET)
    return tmp_path


def _by_path(host: pathlib.Path) -> dict[str, tree.Entry]:
    return {entry.path: entry for entry in skeleton.entries(host)}


def test_nothing_of_the_hosts_secrets_is_in_it(host: pathlib.Path) -> None:
    for entry in skeleton.entries(host):
        assert _SECRET.encode() not in entry.content, entry.path


def test_only_what_everybody_may_read_is_taken(host: pathlib.Path) -> None:
    (host / "etc/services").write_text("http 80/tcp\n")
    (host / "etc/protocols").write_text(_SECRET)
    (host / "etc/protocols").chmod(0o640)
    (host / "etc/rpc").symlink_to("shadow")

    found = _by_path(host)

    assert found["etc/services"].content == b"http 80/tcp\n"
    assert "etc/protocols" not in found
    assert "etc/rpc" not in found


def test_only_links_into_usr_are_taken(host: pathlib.Path) -> None:
    links = host / "etc/alternatives"
    links.mkdir()
    for name, target in {"editor": "/usr/bin/vim", "key": "/root/.ssh/id", "up": "../../root", "app": "/opt/a"}.items():
        (links / name).symlink_to(target)

    found = {path: entry.content for path, entry in _by_path(host).items() if "alternatives" in path}

    assert found == {"etc/alternatives/editor": b"/usr/bin/vim"}


def test_nobody_can_log_in_with_a_password(host: pathlib.Path) -> None:
    shadow = _by_path(host)["etc/shadow"]

    assert {line.split(":")[1] for line in shadow.content.decode().splitlines()} == {"!"}
    assert shadow.mode == 0o600


def test_a_sites_own_python_hook_does_not_run_inside(host: pathlib.Path) -> None:
    (host / "usr/lib/python3.11").mkdir(parents=True)
    (host / "usr/lib/python3.11/sitecustomize.py").symlink_to("/etc/python3.11/sitecustomize.py")

    assert _by_path(host)["etc/python3.11/sitecustomize.py"].content == b"# Nothing.\n"


def test_paths_are_named_once(host: pathlib.Path) -> None:
    paths = [entry.path for entry in skeleton.entries()]

    assert len(paths) == len(set(paths))


def test_a_host_without_a_merged_usr_is_refused(host: pathlib.Path) -> None:
    (host / "lib").mkdir()

    with pytest.raises(errors.UnsupportedError, match="usrmerge"):
        skeleton.entries(host)
