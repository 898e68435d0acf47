"""The default template, built once for all tests of this checkout (it takes a minute to make, and is never changed)."""

import functools
import pathlib

from glovebox_server.images import host
from glovebox_server.model import template

#: A data folder, of which only `templates/` is used.
FOLDER = pathlib.Path(__file__).parents[2] / "build"


@functools.cache
def base() -> template.Template:
    """The default template, as a server has it."""
    FOLDER.mkdir(exist_ok=True)
    return host.build(FOLDER)


def python() -> str:
    """Its interpreter, seen from the host: with IPython and the rest of its environment."""
    made = base()
    return str(made.layers[0].source / made.python.lstrip("/"))
