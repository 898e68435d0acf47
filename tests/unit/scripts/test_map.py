import importlib.util
import pathlib
from types import ModuleType

import pytest

_SCRIPT = pathlib.Path(__file__).parents[3] / "scripts/map.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("map_script", _SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_is_current(script: ModuleType) -> None:
    page = script.PAGE.read_text()

    assert script.updated(page) == page, "run `make map`"


def test_a_module_of_each_layer_is_on_it(script: ModuleType) -> None:
    found = "\n".join(script.lines(_SCRIPT.parents[1] / "src"))

    for name in ("errors.py", "gateway/", "node.py", "tree.py", "wire.py", "linux/"):
        assert f"`{name}`" in found
    assert "_pb2" not in found


def test_a_module_without_a_first_line_is_refused(
    script: ModuleType, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "ROOT", tmp_path)
    (tmp_path / "mute.py").write_text("x = 1\n")

    with pytest.raises(SystemExit, match=r"mute\.py does not say"):
        script.first_line(tmp_path / "mute.py")


def test_lost_markers_are_told(script: ModuleType) -> None:
    with pytest.raises(SystemExit, match="lost the markers"):
        script.updated("# Architecture\n")
