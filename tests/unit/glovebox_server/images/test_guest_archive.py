import ast
import io
import pathlib
import subprocess
import sys
import zipfile
from collections.abc import Iterator

import pytest

from glovebox_server.images import guest_archive

# What a template's Python has and the sandbox of another may not: imported late, where it is there.
_FROM_THE_TEMPLATE = {"IPython", "matplotlib", "numpy", "pandas", "PIL", "traitlets"}


def test_the_same_sources_give_the_same_bytes() -> None:
    first, second = guest_archive.build("/opt/python"), guest_archive.build("/opt/python")

    assert first == second
    assert first.startswith(b"#!/opt/python\n")
    assert set(zipfile.ZipFile(io.BytesIO(first)).namelist()) == set(guest_archive.modules())


def test_the_agent_and_the_zygote_are_imported_from_it_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "guest.pyz").write_bytes(guest_archive.build(sys.executable))
    program = (
        "import sys; sys.path = [p for p in sys.path if 'packages' not in p]; sys.path.insert(0, 'guest.pyz')\n"
        "import glovebox_guest.agent, glovebox_server.runtimes.namespace.zygote as zygote; print(zygote.__file__)"
    )

    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], cwd=tmp_path, capture_output=True, text=True)

    assert done.stdout.startswith("guest.pyz/"), done.stderr


@pytest.mark.parametrize("name", sorted(guest_archive.modules()))
def test_a_module_of_it_is_python_39(name: str) -> None:
    ast.parse(guest_archive.modules()[name], name, feature_version=(3, 9))


@pytest.mark.parametrize("name", sorted(name for name in guest_archive.modules() if name.startswith("glovebox_guest/")))
def test_the_agent_needs_the_standard_library_only(name: str) -> None:
    for module in _imported(guest_archive.modules()[name]):
        top = module.partition(".")[0]
        assert top in sys.stdlib_module_names | _FROM_THE_TEMPLATE or top == "glovebox_guest", module


def _imported(source: bytes) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
