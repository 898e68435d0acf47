"""Seccomp profiles in Docker's JSON format: reading them, and resolving what depends on architecture and capabilities.

Pure. `linux/seccomp.py` compiles the result. The format is moby's profiles/seccomp: every rule has `names`, an
`action`, and may have `args`, `errnoRet`, and `includes`/`excludes` by `caps` and `arches`.
"""

import json
from collections.abc import Collection, Mapping
from importlib import resources
from typing import Any

from glovebox import errors
from glovebox_server.model import seccomp

#: Docker's names of the architectures we run on, by uname's.
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_ACTIONS = frozenset(
    f"SCMP_ACT_{name}" for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRAP")
)
_OPERATORS = frozenset(f"SCMP_CMP_{name}" for name in ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ"))
_EPERM = 1


def default(architecture: str) -> seccomp.Profile:
    """Our own profile, which grants nothing for any capability."""
    text = resources.files("glovebox_server.policy.profiles").joinpath("default.json").read_text()
    return parse(json.loads(text), architecture=architecture)


def parse(document: Mapping[str, Any], *, architecture: str, capabilities: Collection[str] = ()) -> seccomp.Profile:
    """A profile for this architecture (uname's name) and these capabilities (Docker's, `CAP_...`).

    Raises InvalidRequestError naming the place that is wrong.
    """
    if architecture not in ARCHITECTURES:
        raise errors.UnsupportedError(f"seccomp profiles are not known for the architecture {architecture}")
    rules: list[seccomp.Rule] = []
    for number, entry in enumerate(_list(document, "syscalls")):
        where = f"syscalls[{number}]"
        if _applies(entry, ARCHITECTURES[architecture], capabilities):
            rules.extend(_rules(entry, where))
    default_action = _action(document.get("defaultAction"), "defaultAction")
    return seccomp.Profile(
        default_action, _number(document.get("defaultErrnoRet", _EPERM), "defaultErrnoRet"), tuple(rules)
    )


def _rules(entry: Mapping[str, Any], where: str) -> list[seccomp.Rule]:
    action = _action(entry.get("action"), where)
    errno = _number(entry.get("errnoRet") or _EPERM, f"{where}.errnoRet")
    comparisons = tuple(_comparison(arg, where) for arg in entry.get("args") or ())
    names = entry.get("names") or ([entry["name"]] if "name" in entry else [])
    if not names or not all(isinstance(name, str) for name in names):
        raise errors.InvalidRequestError(f"seccomp profile: {where} names no system call")
    return [seccomp.Rule(name, action, errno, comparisons) for name in names]


def _applies(entry: Mapping[str, Any], architecture: str, capabilities: Collection[str]) -> bool:
    includes, excludes = entry.get("includes") or {}, entry.get("excludes") or {}
    return (
        all(capability in capabilities for capability in includes.get("caps") or ())
        and not any(capability in capabilities for capability in excludes.get("caps") or ())
        and (not includes.get("arches") or architecture in includes["arches"])
        and architecture not in (excludes.get("arches") or ())
    )


def _comparison(arg: Mapping[str, Any], where: str) -> seccomp.Comparison:
    operator = arg.get("op")
    index = _number(arg.get("index", 0), f"{where}.args.index")
    if operator not in _OPERATORS or index > 5:
        raise errors.InvalidRequestError(f"seccomp profile: {where} compares an argument in a way that does not exist")
    value = _number(arg.get("value", 0), f"{where}.args.value")
    return seccomp.Comparison(index, str(operator), value, _number(arg.get("valueTwo", 0), f"{where}.args.valueTwo"))


def _action(value: object, where: str) -> str:
    if not isinstance(value, str) or value not in _ACTIONS:
        raise errors.InvalidRequestError(f"seccomp profile: {where} has the unknown action {value!r}")
    return value


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**64:
        raise errors.InvalidRequestError(f"seccomp profile: {where} is not a 64-bit number")
    return value


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list):
        raise errors.InvalidRequestError(f"seccomp profile: {name} is not a list")
    return value
