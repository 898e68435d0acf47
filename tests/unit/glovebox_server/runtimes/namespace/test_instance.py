"""An instance's end: nothing is left of it, or it says so and can be asked again."""

import pathlib
import subprocess

import pytest

from glovebox import errors
from glovebox_server.linux import processes
from glovebox_server.model import ids
from glovebox_server.runtimes.namespace import groups, instance
from tests.unit.glovebox_server.runtimes.namespace.test_groups import BusyGroup


async def test_a_destroy_that_failed_can_be_made_again(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "_TIMEOUT_S", 0.02)
    group, gone = BusyGroup(1_000_000), []
    path = tmp_path / "i1.sock"
    path.touch()
    with subprocess.Popen(["sleep", "600"]) as process:
        made = instance.NamespaceInstance(
            ids.SandboxId("i1"), "a test", processes.identify(process.pid), path, group, {}, lambda: gone.append(1)
        )
        with pytest.raises(OSError, match="busy"):
            await made.destroy()
        assert process.wait(timeout=10) == -9
    assert (gone, path.exists(), group.is_there) == ([], True, True)
    group.left = 3
    await made.destroy()
    await made.destroy()
    assert (gone, path.exists(), group.is_there) == ([1], False, False)


async def test_pausing(tmp_path: pathlib.Path) -> None:
    group = BusyGroup(0)
    with subprocess.Popen(["sleep", "600"]) as process:
        made = instance.NamespaceInstance(
            ids.SandboxId("i1"), "a test", processes.identify(process.pid), tmp_path / "x", group, {}, lambda: None
        )
        await made.pause()
        await made.pause()
        assert group.is_frozen
        await made.resume()
        assert not group.is_frozen
        await made.pause()
        await made.destroy()
        assert not group.is_frozen
        assert process.wait(timeout=10) == -9
    for call in (made.pause, made.resume):
        with pytest.raises(errors.SandboxGoneError):
            await call()


async def test_without_a_freezer_pausing_is_refused_in_words(tmp_path: pathlib.Path) -> None:
    group = BusyGroup(0)
    group.can_freeze = False
    with subprocess.Popen(["sleep", "600"]) as process:
        for has in (group, None):
            made = instance.NamespaceInstance(
                ids.SandboxId("i1"), "a test", processes.identify(process.pid), tmp_path / "x", has, {}, lambda: None
            )
            with pytest.raises(errors.UnsupportedError, match="no freezer control group"):
                await made.pause()
            await made.resume()
            made.release()
        process.kill()
