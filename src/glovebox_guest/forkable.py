"""An event loop that can be made before a fork and used after it.

Making a loop and an agent runs a good deal of Python, and Python writes into every object that it touches: after a fork
each such page must first be copied. Made in the zygote, they cost a sandbox's start nothing. What a loop has in the kernel
(its epoll instance, the socket pair by which it wakes itself) goes to the child; the parent makes itself a new one for
the next child, while this one is already on its way.
"""

import asyncio
import selectors
from typing import Any, Set


class Loop(asyncio.SelectorEventLoop):
    """A selector loop. The parent calls `renew` after each fork, and never runs the loop before it has."""

    def __init__(self) -> None:
        super().__init__(selectors.EpollSelector())

    def renew(self) -> None:
        """Leave the epoll instance and the socket pair to the child, and make new ones. Nothing else may be in the loop.

        Raises OSError when there are none to be had; then all is as before, and still the child's too.
        """
        own: Any = self  # what asyncio keeps to itself, under the same names from Python 3.4 to 3.14
        childs = own._selector, own._ssock, own._csock
        own._selector, own._internal_fds = selectors.EpollSelector(), 0
        try:
            own._make_self_pipe()
        except OSError:
            own._selector.close()
            own._selector, own._ssock, own._csock = childs
            own._internal_fds = 1
            raise
        for one in childs:
            one.close()  # only our descriptor: the child's goes on

    def descriptors(self) -> Set[int]:
        """What must stay open for the loop to go on."""
        own: Any = self
        return {own._selector.fileno(), own._ssock.fileno(), own._csock.fileno()}
