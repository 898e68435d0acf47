"""Text from strangers is harmless when it is printed."""

import unicodedata

import hypothesis
import pytest
from hypothesis import strategies

from glovebox import terminal


@hypothesis.given(strategies.text(alphabet=strategies.characters(), max_size=300))
def test_nothing_that_a_terminal_acts_on_is_left(text: str) -> None:
    shown = terminal.printable(text)

    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_escapes_are_shown_and_long_text_is_cut() -> None:
    assert terminal.printable("\x1b]0;owned\x07 \u202e ok\n") == "\\x1b]0;owned\\x07 \\u202e ok\\n"
    assert terminal.printable("x" * 50, limit=10) == "x" * 10 + "…"
    assert terminal.printable("日本 — plain") == "日本 — plain"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0s"), (8.9, "8s"), (60, "1m"), (250, "4m 10s"), (7500, "2h 5m"), (86400, "1d"), (273600, "3d 4h")],
)
def test_durations_as_a_person_says_them(seconds: float, words: str) -> None:
    assert terminal.duration(seconds) == words
