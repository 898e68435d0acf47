"""An event loop that can be made before a fork and used after it.

Making a loop and an agent runs a good deal of Python, and Python writes into every object that it touches: after a fork
each such page must first be copied. Made in the zygote, they cost a sandbox's start nothing. What a loop shares with its
parent through the kernel (its epoll instance, the socket pair by which it wakes itself) is made anew in the child.
"""

import asyncio
import selectors
from typing import Any, Set


class Loop(asyncio.SelectorEventLoop):
    """A selector loop; call `renew` in the child, first of all, while it has no readers, writers or tasks yet."""

    def __init__(self) -> None:
        super().__init__(selectors.EpollSelector())

    def renew(self) -> None:
        """Let go of the epoll instance and the socket pair that the parent has too, and make new ones."""
        own: Any = self  # what asyncio keeps to itself, under the same names from Python 3.4 to 3.14
        own._selector.close()  # only our descriptor: the parent's epoll keeps what it has
        own._selector = selectors.EpollSelector()
        for end in (own._ssock, own._csock):
            end.close()
        own._internal_fds = 0
        own._make_self_pipe()

    def descriptors(self) -> Set[int]:
        """What must stay open for the loop to go on."""
        own: Any = self
        return {own._selector.fileno(), own._ssock.fileno(), own._csock.fileno()}
