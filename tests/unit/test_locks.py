"""The lock files hold what docs/decisions/0005 says: everything, by hash, and no address."""

import json
import pathlib
import re
import tomllib

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_PROJECT = tomllib.loads((_ROOT / "pyproject.toml").read_text())
_LOCKS = ("requirements.lock", "src/glovebox_server/images/base-requirements.lock")


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


@pytest.mark.parametrize("path", _LOCKS)
def test_each_requirement_has_hashes_and_no_address(path: str) -> None:
    blocks = re.split(r"\n(?=[a-z0-9])", (_ROOT / path).read_text().strip())

    assert len(blocks) > 10
    for block in blocks:
        assert re.match(r"[a-z0-9-]+==[^\s]+ ", block), block
        assert "--hash=sha256:" in block, block
        assert "://" not in block and "--index" not in block, block


def test_all_of_the_projects_requirements_are_locked() -> None:
    locked = {_name(line) for line in (_ROOT / "requirements.lock").read_text().splitlines() if line[:1].isalnum()}
    groups = _PROJECT["dependency-groups"]
    wanted = {_name(text) for text in [*_PROJECT["project"]["dependencies"], *groups["dev"], *groups["bench"]]}

    assert wanted <= locked, "run `make lock`"


def test_the_javascript_lock_names_no_registry() -> None:
    packages = json.loads((_ROOT / "tests/js/package-lock.json").read_text())["packages"]

    assert {"node_modules/e2b", "node_modules/@e2b/code-interpreter"} <= packages.keys()
    for name, package in packages.items():
        assert "resolved" not in package, name
        assert not name or package["integrity"].startswith("sha512-"), name
