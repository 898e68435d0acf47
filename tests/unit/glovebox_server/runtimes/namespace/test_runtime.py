"""The namespace runtime's decisions, on zygotes that are not there."""

import pathlib
import types
from typing import Any

import pytest

from glovebox import errors
from glovebox_server.model import ids, resources, sandbox, template
from glovebox_server.runtimes.namespace import runtime
from tests.unit.glovebox_server.runtimes.namespace.test_groups import BusyGroup

SPEC = sandbox.SandboxSpec(ids.SandboxId("i1"), "base", resources.Resources(), {}, "i1")
TEMPLATE = template.Template("base", ("base",), (), "/usr/bin/python3", "/agent", "/usr/bin", ())


def _runtime(folder: pathlib.Path, zygote: Any) -> runtime.NamespaceRuntime:
    made = runtime.NamespaceRuntime(folder)
    made._warm["k"] = runtime._Warm(zygote, types.SimpleNamespace(), types.SimpleNamespace())  # type: ignore[arg-type]
    made._current["base"] = "k"
    return made


async def test_a_zygote_that_is_too_busy_leaves_no_group_and_no_socket(tmp_path: pathlib.Path) -> None:
    async def kill(sandbox_id: str) -> None:
        raise errors.CapacityError("the zygote is too busy to answer")

    made, group = _runtime(tmp_path, types.SimpleNamespace(kill=kill)), BusyGroup(3)
    made._hierarchy = types.SimpleNamespace(group=lambda *names: group)  # type: ignore[assignment]
    (tmp_path / "links").mkdir()
    (tmp_path / "links/i1.sock").touch()
    with pytest.raises(errors.CapacityError):
        await made._clear(SPEC.sandbox_id)
    assert not group.is_there
    assert list((tmp_path / "links").iterdir()) == []


async def test_a_limit_of_processes_that_its_user_namespace_does_not_have(tmp_path: pathlib.Path) -> None:
    zygote = types.SimpleNamespace(facts=types.SimpleNamespace(pids=7, key="k"))
    with pytest.raises(errors.UnsupportedError, match=r"1024 processes: the limit is the template's \(7\)"):
        await _runtime(tmp_path, zygote).create(SPEC, TEMPLATE)
