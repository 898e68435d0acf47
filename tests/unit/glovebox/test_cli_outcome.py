"""Every error that is nobody's bug has its exit code."""

import e2b
import httpx
import pytest

from glovebox import connection, errors, outcome


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (connection.NoServerError("x"), 3),
        (errors.SandboxNotFoundError("ix"), 4),
        (errors.SandboxGoneError("x"), 4),
        (errors.UnsupportedError("x"), 5),
        (errors.AuthenticationError("x"), 5),
        (errors.QuotaExceededError("x"), 5),
        (TimeoutError(), 124),
        (KeyboardInterrupt(), 130),
        (e2b.SandboxNotFoundException("x"), 4),
        (e2b.NotFoundException("x"), 4),
        (e2b.AuthenticationException("x"), 5),
        (e2b.RateLimitException("x"), 5),
        (e2b.SandboxException("x"), 5),
        (e2b.TimeoutException("x"), 124),
        (httpx.ConnectError("x"), 3),
        (ConnectionRefusedError(), 3),
        (BrokenPipeError(), None),
        (ValueError("a bug"), None),
        (KeyError("a bug"), None),
    ],
)
def test_exit_codes(error: BaseException, code: int | None) -> None:
    assert outcome.exit_code_of(error) == code


def test_a_message_is_one_line_and_not_endless() -> None:
    assert outcome.message_of(errors.ConflictError("first\nsecond")) == "first"
    assert outcome.message_of(TimeoutError()) == "TimeoutError"
    assert len(outcome.message_of(errors.ConflictError("x" * 5000))) == 400
