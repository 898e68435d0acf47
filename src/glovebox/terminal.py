"""What is shown to a person: consoles, JSON, ages, and text from strangers made harmless.

Metadata, logs and names come from sandboxes and their users. A terminal obeys escape sequences, so such text is
escaped before it is printed. A program's own output (`run`, `exec`, `shell`) goes through as it is: that is what
was asked for.
"""

import datetime as dt
import json
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import rich.console

# Controls, formatting (bidirectional overrides), surrogates, and the separators that some terminals break lines at.
_UNSAFE_CATEGORIES = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))


def printable(text: object, limit: int = 2000) -> str:
    """`text` with everything a terminal could act on escaped, cut to `limit` characters."""
    shown = str(text)
    cut = shown[:limit]
    escaped = "".join(_escaped(char) if unicodedata.category(char) in _UNSAFE_CATEGORIES else char for char in cut)
    return escaped + "…" if len(shown) > limit else escaped


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def output() -> "rich.console.Console":
    """The console for results: colours only on a terminal and never with NO_COLOR (both are rich's rules)."""
    import rich.console  # here, so that `--help` does not pay for it

    # Text from outside is not markup: neither [bold] nor :smile: means anything in it.
    return rich.console.Console(markup=False, emoji=False, highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """One line on stderr."""
    print(f"glovebox: {printable(message)}", file=sys.stderr)


def note(message: str) -> None:
    """A line on stderr for a person; a pipe does not need it."""
    if sys.stderr.isatty():
        print(printable(message), file=sys.stderr)


def print_json(value: Any) -> None:
    """`value` as JSON: ASCII only, so that no text in it can act on a terminal."""
    print(json.dumps(value, indent=2))


def parse_time(text: str) -> dt.datetime:
    """An RFC 3339 time; without a zone it is UTC."""
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)


def duration(seconds: float) -> str:
    """A length of time as a person says it: `8s`, `4m 10s`, `2h 5m`, `3d 4h`."""
    whole = max(0, int(seconds))
    for size, unit, smaller_size, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit} {rest}{smaller_unit}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"
