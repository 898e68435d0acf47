"""An operation's parameters, taken out one by one and checked; Refused `invalid_argument` names the one that is wrong."""

from typing import Any, Dict, List, Optional

from glovebox_guest import refusals

Parameters = Dict[str, Any]

#: The environment and the arguments of a process, all together; the kernel's own limit is of this order.
MAX_ARGUMENT_BYTES = 2 * 1024 * 1024
MAX_ARGUMENTS = 65536


def wrong(name: str, what: str) -> refusals.Refused:
    """The refusal of one parameter."""
    return refusals.Refused("invalid_argument", f"'{name}' {what}")


def text(params: Parameters, name: str) -> str:
    """A string that must be there."""
    value = params.get(name)
    if not isinstance(value, str):
        raise wrong(name, "must be a string")
    return value


def optional_text(params: Parameters, name: str) -> Optional[str]:
    """A string, or None when it is absent or null."""
    return None if params.get(name) is None else text(params, name)


def number(params: Parameters, name: str, lowest: int, highest: int) -> int:
    """An integer within bounds that must be there."""
    value = params.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise wrong(name, f"must be an integer from {lowest} to {highest}")
    return value


def optional_number(params: Parameters, name: str, lowest: int, highest: int) -> Optional[int]:
    """An integer within bounds, or None when it is absent or null."""
    return None if params.get(name) is None else number(params, name, lowest, highest)


def flag(params: Parameters, name: str) -> bool:
    """A boolean; false when it is absent."""
    value = params.get(name, False)
    if not isinstance(value, bool):
        raise wrong(name, "must be a boolean")
    return value


def texts(params: Parameters, name: str) -> List[str]:
    """A list of strings without NUL that must be there."""
    value = params.get(name)
    if not isinstance(value, list) or len(value) > MAX_ARGUMENTS:
        raise wrong(name, f"must be a list of at most {MAX_ARGUMENTS} strings")
    if not all(isinstance(item, str) and "\0" not in item for item in value):
        raise wrong(name, "must hold strings without NUL")
    _check_size(name, value)
    return value


def mapping(params: Parameters, name: str) -> Dict[str, str]:
    """A map of strings to strings; empty when it is absent."""
    value = params.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise wrong(name, "must map strings to strings")
    _check_size(name, [*value.keys(), *value.values()])
    return value


def environment(params: Parameters, name: str) -> Dict[str, str]:
    """A map of environment variables; empty when it is absent."""
    value = mapping(params, name)
    for key, item in value.items():
        if not key or "=" in key or "\0" in key or "\0" in item:
            raise wrong(name, "must hold environment variables: names without '=', and no NUL")
    return value


def _check_size(name: str, strings: List[str]) -> None:
    try:
        size = sum(len(string.encode("utf-8", "surrogateescape")) + 1 for string in strings)
    except UnicodeEncodeError:
        raise wrong(name, "must hold text") from None
    if size > MAX_ARGUMENT_BYTES:
        raise wrong(name, f"must be at most {MAX_ARGUMENT_BYTES} bytes")
