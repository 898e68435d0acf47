"""Writes the map in ARCHITECTURE.md, between its markers, from the first lines of the modules: `make map`.

With `--check` it writes nothing, and fails if the map is not what it would write.
"""

import ast
import pathlib
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
_BEGIN, _END = "<!-- map: made by `make map` -->\n", "<!-- end of map -->\n"
# Packages in the order in which requests go, callers first; modules that stand alone come before folders.
_PACKAGES = ("glovebox", "glovebox_server", "glovebox_guest")
_LAYERS = ("", "gateway", "manager", "node", "runtimes", "policy", "images", "store", "linux", "contract", "model")


def main() -> int:
    """The exit code: 1 when the page is not up to date and was only to be checked."""
    old = PAGE.read_text()
    new = updated(old)
    if new == old:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("The map in ARCHITECTURE.md is not current: run `make map`.\n")
        return 1
    PAGE.write_text(new)
    return 0


def updated(page: str) -> str:
    """The page with the map as it must be now."""
    head, begin, rest = page.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} has lost the markers of its map: {_BEGIN.strip()} and {_END.strip()}")
    return head + begin + "\n" + "\n".join(lines(ROOT / "src")) + "\n\n" + end + tail


def lines(source: pathlib.Path) -> Iterator[str]:
    """The map, as nested Markdown lists: a folder's line is its package's."""
    for package in _PACKAGES:
        yield f"- **`{package}/`** {first_line(source / package / '__init__.py')}"
        yield from _folder(source / package, 1)


def _folder(folder: pathlib.Path, depth: int) -> Iterator[str]:
    indent = "  " * depth
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py" and not path.stem.endswith("_pb2"):
            yield f"{indent}- `{path.name}` {first_line(path)}"
    for path in sorted((path for path in folder.iterdir() if (path / "__init__.py").is_file()), key=_layer):
        yield f"{indent}- **`{path.name}/`** {first_line(path / '__init__.py')}"
        yield from _folder(path, depth + 1)


def _layer(path: pathlib.Path) -> tuple[int, str]:
    return (_LAYERS.index(path.name) if path.name in _LAYERS else len(_LAYERS), path.name)


def first_line(path: pathlib.Path) -> str:
    """What a module says it is for."""
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise SystemExit(f"{path.relative_to(ROOT)} does not say in a first line what it is for")
    return text.splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
