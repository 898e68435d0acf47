import inspect

import pytest

from glovebox import errors
from glovebox_guest import wire
from glovebox_server.gateway import problems
from glovebox_server.gateway.e2b import connect

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.GloveboxError)]


@pytest.mark.parametrize("cls", ALL)
def test_every_error_has_its_line(cls):
    assert cls in problems.PROBLEMS


def test_every_guest_code_has_its_line():
    assert set(problems.GUEST_PROBLEMS) == wire.ERROR_CODES


def test_every_connect_code_has_a_status():
    codes = {problem.code for problem in (*problems.PROBLEMS.values(), *problems.GUEST_PROBLEMS.values())}
    assert codes <= set(connect.STATUSES)


def test_of():
    class Narrower(errors.ConflictError):
        pass

    assert problems.of(Narrower("x")).status == 409
    assert problems.of(errors.GuestError("no_space", "full")).status == 507
    assert problems.of(errors.GuestError("never heard of", "x")).status == 500
