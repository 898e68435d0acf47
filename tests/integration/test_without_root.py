"""A server run by an ordinary user: everything but control groups and mapped files works.

Needs root to become somebody else: the test gives Debian's user `games` a subordinate id range, in a mount namespace of
its own, so that the host's /etc stays as it is.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import pytest

_CHECKOUT = pathlib.Path(__file__).parents[2]
_USER = "games"

_SCRIPT = """
set -eu
mount --make-rprivate /
for kind in uid gid; do
    cat /etc/sub$kind > "$1/sub$kind" 2>/dev/null || :
    echo "{user}:200000:65536" >> "$1/sub$kind"
    mount --bind "$1/sub$kind" /etc/sub$kind
done
mount --bind {checkout} "$1/checkout"
exec setpriv --reuid {user} --regid {user} --clear-groups env HOME="$1/home" PATH=/usr/bin:/bin:/usr/sbin:/sbin \\
    "$1/venv/bin/python" "$1/checkout/tests/integration/without_root_session.py"
"""


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A folder that the user can reach, with a home, and a Python that finds the checkout where it will be mounted."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="glovebox-", dir="/var/tmp"))
    path.chmod(0o755)
    for name in ("home", "checkout"):
        (path / name).mkdir()
    shutil.chown(path / "home", _USER, _USER)
    subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", path / "venv"], check=True)
    (packages,) = path.glob("venv/lib/python3.*/site-packages")
    ours = pathlib.Path(*pathlib.Path(pytest.__file__).parent.parts[-4:-1])  # lib/python3.x/site-packages
    assert ours.parts[1] == packages.parts[-2], (
        f"/usr/bin/python3 is not the {sys.version_info[:2]} of this environment"
    )
    (packages / "checkout.pth").write_text(f"{path}/checkout/src\n{path}/checkout/.venv/{ours}\n")
    yield path
    shutil.rmtree(path)


@pytest.mark.timeout(300)
def test_an_ordinary_users_server(folder: pathlib.Path) -> None:
    script = _SCRIPT.format(user=_USER, checkout=_CHECKOUT)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", folder],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["uid"] != 0
    assert (seen["code"], seen["chart"], seen["network"], seen["exit"], seen["left"]) == ("42", True, True, 0, [])
    assert seen["who"] == "user\nuser\n"
    assert seen["root"] == "root\nroot\n"
    assert seen["usr"].endswith("1\n"), "the host's /usr belongs to nobody inside, so that root there cannot write it"
    first, second = seen["maps"]
    assert first[:1] == second[:1] == ["0"]
    assert first[1] != second[1], "each sandbox has a range of its own"
