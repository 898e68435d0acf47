import concurrent.futures
import os
import pathlib
import shutil
import subprocess

import pytest

from glovebox import errors
from glovebox_server.images import environment, guest_archive, host
from glovebox_server.model import template

_INSIDE = """
set -e
mount --make-rprivate /
mount --rbind /usr "$1/usr"
mount -t tmpfs none "$1/dev" && mknod -m 666 "$1/dev/null" c 1 3 && mknod -m 666 "$1/dev/urandom" c 1 9
mount -t tmpfs none "$1/tmp" && mount -t tmpfs none "$1/run"
root=$1 user=$2
shift 2
exec env -i HOME=/root PATH=/usr/sbin chroot --userspec="$user" "$root" /usr/bin/env PATH=/opt/glovebox/bin:/usr/bin:/bin "$@"
"""
_ROOT = pathlib.Path(__file__).parents[4]


@pytest.fixture(scope="module")
def built() -> template.Template:
    """Built once for this checkout: the servers of the integration tests use the same folder."""
    return host.build(_ROOT / "build")


@pytest.fixture
def no_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment with nothing installed, made in no time."""

    def build(target: pathlib.Path, python: environment.Interpreter, report: environment.Progress) -> None:
        (target / "bin").mkdir(parents=True)
        (target / "bin/python").symlink_to(python.path)
        report("made")

    monkeypatch.setattr(environment, "build", build)


def _root(made: template.Template) -> pathlib.Path:
    return made.layers[0].source


def _inside(root: pathlib.Path, user: str, *command: str) -> str:
    """Run in the template's root, in a mount namespace that ends with the program. It is no sandbox: only our own code."""
    return subprocess.run(
        ["unshare", "--mount", "bash", "-c", _INSIDE, "bash", str(root), user, *command],
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def test_it_is_what_runtimes_expect(built: template.Template) -> None:
    assert built.template_id == "base"
    assert {"base", "code-interpreter-v1", "python"} == set(built.names)
    assert [layer.target for layer in built.layers] == ["/", "/usr"]
    assert built.guest_archive == host.GUEST_ARCHIVE
    root = _root(built)
    assert (root / built.guest_archive[1:]).read_bytes() == guest_archive.build(built.python)
    assert (root / built.python[1:]).resolve().is_relative_to("/usr")
    assert not any((root / "usr").iterdir())


def test_nothing_in_it_tells_where_it_was_built(built: template.Template) -> None:
    parts = (str(_ROOT).encode(), b".new-")

    for folder, _, files in os.walk(_root(built)):
        for name in files:
            path = pathlib.Path(folder, name)
            if not path.is_symlink() and path.suffix in ("", ".cfg", ".pyc", ".py", ".txt", ".json", ".fish", ".csh"):
                content = path.read_bytes()
                assert not any(part in content for part in parts), path


def test_scripts_and_settings_name_the_path_inside(built: template.Template) -> None:
    environment_root = _root(built) / "opt/glovebox"

    assert (environment_root / "bin/pip").read_text().splitlines()[0] == f"#!{built.python}"
    assert "include-system-site-packages = false" in (environment_root / "pyvenv.cfg").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_the_code_interpreters_packages_work_inside(built: template.Template) -> None:
    program = (
        "import sys, numpy, pandas, matplotlib, PIL, requests, IPython, pip; matplotlib.use('agg')\n"
        "import logging; logging.basicConfig(level=1)\n"
        "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.title('a'); plt.savefig('/tmp/chart.png')\n"
        "print(sys.prefix, open('/tmp/chart.png', 'rb').read(4))"
    )

    assert _inside(_root(built), "1000:1000", "HOME=/home/user", "python", "-c", program) == (
        "/opt/glovebox b'\\x89PNG'\n"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_fonts_are_not_looked_for_again(built: template.Template) -> None:
    program = "import logging; logging.basicConfig(level=10); import matplotlib.font_manager"
    root = _root(built)

    done = _inside(root, "1000:1000", "HOME=/home/user", "bash", "-c", f'python -c "{program}" 2>&1')

    assert "Using fontManager instance from /home/user/.cache/matplotlib" in done


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_users_and_shells_inside(built: template.Template) -> None:
    root = _root(built)

    assert _inside(root, "0:0", "bash", "-lc", "whoami; command -v python pip") == (
        "root\n/opt/glovebox/bin/python\n/opt/glovebox/bin/pip\n"
    )
    assert _inside(root, "0:0", "id", "user") == "uid=1000(user) gid=1000(user) groups=1000(user),27(sudo)\n"
    login = _inside(root, "1000:1000", "env", "-u", "PATH", "HOME=/home/user", "bash", "-lc", "cd; pwd; command -v pip")
    assert login == "/home/user\n/opt/glovebox/bin/pip\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_a_user_becomes_root_inside_without_a_password(built: template.Template) -> None:
    assert shutil.which("sudo"), "apt-get install sudo"

    assert _inside(_root(built), "1000:1000", "sudo", "-n", "id", "-u") == "0\n"
    assert _inside(_root(built), "1000:1000", "sudo", "-n", "bash", "-c", "command -v python") == (
        "/opt/glovebox/bin/python\n"
    )


def test_a_second_call_builds_nothing(tmp_path: pathlib.Path, no_installation: None) -> None:
    steps: list[str] = []

    first = host.build(tmp_path, report=steps.append)
    before = len(steps)
    second = host.build(tmp_path, report=steps.append)

    assert second == first
    assert before == len(steps) > 0


def test_a_change_of_the_agent_makes_a_new_tree_beside_the_old(
    tmp_path: pathlib.Path, no_installation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _root(host.build(tmp_path))
    steps: list[str] = []
    monkeypatch.setattr(guest_archive, "build", lambda python: b"another")

    new = _root(host.build(tmp_path, report=steps.append))

    assert new != old
    assert (new / host.GUEST_ARCHIVE[1:]).read_bytes() == b"another"
    assert (old / host.GUEST_ARCHIVE[1:]).read_bytes() != b"another"
    assert "made" not in steps  # the environment is the same


def test_a_failure_leaves_nothing_half_made(
    tmp_path: pathlib.Path, no_installation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(target: pathlib.Path, python: environment.Interpreter, report: environment.Progress) -> None:
        target.mkdir()
        (target / "half").touch()
        raise errors.UnsupportedError("no disk")

    with monkeypatch.context() as broken:
        broken.setattr(environment, "build", fail)
        with pytest.raises(errors.UnsupportedError, match="no disk"):
            host.build(tmp_path)

    assert sorted(path.name for path in (tmp_path / "templates/base").rglob("*")) == [".lock", "environments"]
    assert _root(host.build(tmp_path)).is_dir()


def test_two_builders_make_one_tree(tmp_path: pathlib.Path, no_installation: None) -> None:
    steps: list[str] = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: host.build(tmp_path, report=steps.append), range(8)))

    assert len(set(made)) == 1
    assert steps.count("made") == 1


def test_what_is_stale_goes_and_what_is_used_stays(
    tmp_path: pathlib.Path, no_installation: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _root(host.build(tmp_path))
    monkeypatch.setattr(guest_archive, "build", lambda python: b"another")
    used = _root(host.build(tmp_path))
    monkeypatch.setattr(environment, "key", lambda python: "newer")
    new = _root(host.build(tmp_path))
    left = tmp_path / "templates/base/.new-x"
    left.mkdir()

    removed = host.remove_stale(tmp_path, [used, new, tmp_path / "elsewhere/root"])

    assert set(removed) == {old.parent, left}
    assert used.is_dir() and new.is_dir()
    assert len(list((tmp_path / "templates/base/environments").iterdir())) == 2
    host.remove_stale(tmp_path, [new])
    assert [path.name for path in (tmp_path / "templates/base/environments").iterdir()] == ["newer"]
