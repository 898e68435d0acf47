"""Request bodies against pydantic models: lenient on unknown fields, strict on types, precise in what is wrong."""

from collections.abc import Callable
from typing import TypeVar

import pydantic

from glovebox import errors

Model = TypeVar("Model", bound=pydantic.BaseModel)

_MAX_ERRORS_TOLD = 3


def parse(model: type[Model], body: bytes) -> Model:
    """A JSON body, checked. Raises InvalidRequestError that names the field and what is wrong with it."""
    return checked(lambda: model.model_validate_json(body))


def checked(validate: Callable[[], Model]) -> Model:
    """What `validate` returns; its ValidationError in our own words."""
    try:
        return validate()
    except pydantic.ValidationError as error:
        raise errors.InvalidRequestError(_told(error)) from error


def _told(error: pydantic.ValidationError) -> str:
    found = []
    for one in error.errors(include_url=False, include_context=False, include_input=False)[:_MAX_ERRORS_TOLD]:
        field = ".".join(str(place)[:64] for place in one["loc"])
        found.append(f"{field}: {one['msg']}" if field else one["msg"])
    return "; ".join(found)[:500]
