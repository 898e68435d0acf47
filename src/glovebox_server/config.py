"""Every setting with its default; the one reader of the environment and of the settings file.

A setting comes from the first of: the environment (`GLOVEBOX_PORT`, `GLOVEBOX_LIMITS_MAX_SANDBOXES`), the file
`config.toml` in the data folder (`port = 3000`, and tables such as `[limits]`), the default.
"""

import dataclasses
import os
import pathlib
import tomllib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pydantic
import structlog

from glovebox import errors
from glovebox_server.model import resources as model_resources
from glovebox_server.policy import limits as policy_limits

_log = structlog.get_logger(__name__)

PREFIX = "GLOVEBOX_"
FILE_NAME = "config.toml"
_TABLES = ("limits", "resources")


class Settings(pydantic.BaseModel):
    """The settings of one server."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=False)

    host: str = "127.0.0.1"
    port: Annotated[int, pydantic.Field(ge=0, le=65535)] = 3000
    data_dir: pathlib.Path
    domain: str | None = None  # base of the sandboxes' host names; None: clients use one URL for all
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    runtimes: Annotated[tuple[str, ...], pydantic.Field(min_length=1)] = ("namespace",)
    limits: policy_limits.Limits = policy_limits.Limits()
    resources: model_resources.Resources = model_resources.Resources()

    @pydantic.field_validator("limits", "resources")
    @classmethod
    def _positive(cls, value: Any) -> Any:
        for field in dataclasses.fields(value):
            number = getattr(value, field.name)
            if number is not None and number <= 0:
                raise ValueError(f"{field.name} must be greater than 0")
        return value

    @pydantic.field_validator("limits")
    @classmethod
    def _consistent(cls, value: policy_limits.Limits) -> policy_limits.Limits:
        if value.default_timeout_s > value.max_timeout_hours * 3600:
            raise ValueError("default_timeout_s is longer than max_timeout_hours")
        return value


def default_data_dir(*, root: bool, home: pathlib.Path) -> pathlib.Path:
    """Where state is kept when nobody says."""
    return pathlib.Path("/var/lib/glovebox") if root else home / ".local/share/glovebox"


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings. InvalidRequestError names each one that is wrong, and where it came from."""
    environ = os.environ if environ is None else environ
    found = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    folder = pathlib.Path(
        found.pop(PREFIX + "DATA_DIR", "") or default_data_dir(root=os.geteuid() == 0, home=pathlib.Path.home())
    )
    values = _read_file(folder / FILE_NAME)
    if "data_dir" in values:
        raise errors.InvalidRequestError(f"setting data_dir cannot stand in {folder / FILE_NAME}, which is inside it")
    values["data_dir"] = folder.expanduser().absolute()
    for name, text in found.items():
        _place(values, name, text)
    try:
        return Settings.model_validate(values)
    except pydantic.ValidationError as error:
        raise errors.InvalidRequestError(_explain(error)) from None


def _read_file(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise errors.InvalidRequestError(f"settings file {path} cannot be read: {error}") from error


def _place(values: dict[str, Any], name: str, text: str) -> None:
    """Put an environment variable where its name says."""
    key = name.removeprefix(PREFIX).lower()
    table = next((table for table in _TABLES if key.startswith(table + "_")), None)
    field = key if table is None else key.removeprefix(table + "_")
    kinds = _field_kinds(table)
    if field not in kinds:
        # Other programs of ours may have variables of this prefix; a typing error should still be seen.
        _log.warning("unknown setting ignored", variable=name)
        return
    target = values if table is None else values.setdefault(table, {})
    if not isinstance(target, dict):
        raise errors.InvalidRequestError(f"setting {table} must be a table")
    target[field] = _parse(text, kinds[field])


def _field_kinds(table: str | None) -> dict[str, str]:
    owner = Settings if table is None else Settings.model_fields[table].annotation
    if isinstance(owner, type) and issubclass(owner, pydantic.BaseModel):
        kinds = {name: str(field.annotation) for name, field in owner.model_fields.items()}
    else:
        assert isinstance(owner, type)
        kinds = {field.name: str(field.type) for field in dataclasses.fields(owner)}
    return {name: kind for name, kind in kinds.items() if table is not None or name not in _TABLES}


def _parse(text: str, kind: str) -> Any:
    if "tuple" in kind:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if "None" in kind and text.strip().lower() in ("", "none"):
        return None
    return text


def _explain(error: pydantic.ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        path = [str(part) for part in problem["loc"]]
        variable = PREFIX + "_".join(path).upper()
        lines.append(f"setting {'.'.join(path)} ({variable}): {problem['msg']}, not {str(problem['input'])[:80]!r}")
    return "; ".join(lines)
