"""SPECIFICATION.md, SECURITY.md and the compatibility page name only tests that exist; every page's links lead somewhere."""

import ast
import pathlib
import re

import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_TEST = re.compile(r"`(tests/[\w/.]+)(?:::(\w+))?`")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_PAGES = [*sorted(_ROOT.glob("*.md")), *sorted((_ROOT / "docs").rglob("*.md"))]
_PROMISE = re.compile(r"^\| (P-\d{3}) \| (.+) \| (.+) \|$", re.MULTILINE)


def _tests(path: pathlib.Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_named_tests_exist(page: pathlib.Path) -> None:
    for name, test in _TEST.findall(page.read_text()):
        path = _ROOT / name
        assert path.exists(), f"{page.name} names {name}"
        if test:
            assert test.startswith("test_")
            assert test in _tests(path), f"{page.name} names {name}::{test}"


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for target in _LINK.findall(page.read_text()):
        if target != "performance/latest.json":  # made by `make bench`
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_promises_are_numbered_once_and_each_is_kept_or_not_yet() -> None:
    promises = _PROMISE.findall((_ROOT / "SPECIFICATION.md").read_text())
    numbers = [number for number, _, _ in promises]

    assert len(numbers) >= 40
    assert len(set(numbers)) == len(numbers)
    assert numbers == sorted(numbers)
    for number, _, kept in promises:
        assert _TEST.search(kept) or "not yet" in kept, f"{number} has no test and is not marked 'not yet'"


def test_every_page_is_reached_from_the_index() -> None:
    index = _ROOT / "docs/index.md"
    linked = {(index.parent / target).resolve() for target in _LINK.findall(index.read_text())}

    assert not {page for page in (_ROOT / "docs").rglob("*.md") if page != index} - linked
