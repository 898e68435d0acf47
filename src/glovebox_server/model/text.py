"""Guest text made safe to keep and to show: cut to a length, with what terminals and logs obey escaped. Pure."""


def clean(value: str, limit: int) -> str:
    """`value` without anything a terminal, a log or a reader's eye could be led by, at most `limit` characters long.

    Printable text passes as it is; controls, direction marks, line separators and lone surrogates are written as their
    escapes. What was cut is marked with an ellipsis.
    """
    if len(value) <= limit and value.isprintable():
        return value
    shown = "".join(letter if letter.isprintable() else _escape(letter) for letter in value[:limit])
    return shown if len(shown) <= limit and len(value) <= limit else shown[: limit - 1] + "…"


def _escape(letter: str) -> str:
    if letter == "\t":
        return " "
    return letter.encode("unicode_escape", "backslashreplace").decode("ascii")
