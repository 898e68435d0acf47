from hypothesis import given
from hypothesis import strategies as st

from glovebox_server.model import text


def test_harmless_text_passes():
    assert text.clean("Grüße, 世界!", 100) == "Grüße, 世界!"


def test_controls_and_direction_marks_are_escaped():
    assert text.clean("\x1b[31m\r\n\u202e\ud800", 100) == "\\x1b[31m\\r\\n\\u202e\\ud800"


@given(st.text(st.characters(exclude_categories=[]), max_size=50), st.integers(1, 60))
def test_always_short_and_printable(value, limit):
    shown = text.clean(value, limit)
    assert len(shown) <= limit
    assert shown.isprintable()
    assert shown.encode("utf-8").decode("utf-8") == shown
