"""Python's own at-fork hooks (os.register_at_fork), put off until user code begins.

threading, logging and random have some, which run Python after every fork, and Python copies each page that it touches:
160 of them, half a millisecond of a sandbox's start. The agent has one thread, logs nothing and draws no random numbers,
so that none of its forks needs them; what it forks for user code does.
"""

import os
import sys
from typing import Any, Callable, Dict, List

_put_off: List[Dict[str, Callable[[], Any]]] = []
_register = os.register_at_fork


def put_off() -> None:
    """Only note down what is registered from now on. Call it before those modules are imported."""
    os.register_at_fork = _note  # type: ignore[assignment]  # it takes what the other takes


def _note(**hooks: Callable[[], Any]) -> None:
    if os.register_at_fork is _register:  # somebody has kept this function, and user code runs
        _register(**hooks)
    else:
        _put_off.append(hooks)


def take_up() -> None:
    """In a child that user code will run in: do what its hooks would have done at the fork, and register them."""
    os.register_at_fork = _register
    hooks, _put_off[:] = [*_put_off], []
    for one in hooks:
        _register(**one)
        try:
            one.get("after_in_child", _nothing)()
        except Exception:
            sys.excepthook(*sys.exc_info())  # told, and otherwise nothing: as at a fork


def _nothing() -> None:
    """What a hook that is not there does."""
