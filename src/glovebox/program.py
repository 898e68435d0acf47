"""How the server's program is started: by its name, so that nothing of it is imported at the caller."""

import importlib.util
import sys

from glovebox import errors


def server_command(*arguments: str) -> list[str]:
    """The command line that runs the server's package. Raises UnsupportedError where it is not installed."""
    if importlib.util.find_spec("glovebox_server") is None:
        raise errors.UnsupportedError("the server is not installed here (no package glovebox_server)")
    return [sys.executable, "-m", "glovebox_server", *arguments]
