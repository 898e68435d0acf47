"""The official JavaScript SDKs against a real server: runs tests/js with node's own test runner."""

import os
import pathlib
import shutil
import subprocess

from tests.support import servers

_FOLDER = pathlib.Path(__file__).parents[1] / "js"


def test_the_javascript_sdks(server: servers.Server) -> None:
    node = shutil.which("node")
    assert node, "node is not installed (apt-get install nodejs npm)"
    assert (_FOLDER / "node_modules/e2b").is_dir(), "the SDKs are not installed: make test does it"
    done = subprocess.run(
        [node, "--test", "--test-force-exit", "--test-reporter=spec", "sandbox.test.mjs"],
        cwd=_FOLDER,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **server.environment},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "fail 0" in done.stdout
