"""The guest agent's command: `python -m glovebox_guest --listen-fd N | --stream-fd N | --stdio`."""

import argparse
import fcntl
import os
import socket
import stat
from typing import Tuple

from glovebox_guest import agent

#: The link's descriptors are moved above the standard ones.
FIRST_DESCRIPTOR = 3


def main() -> None:
    """Read the arguments and serve; returns never."""
    parser = argparse.ArgumentParser(prog="glovebox_guest", description="Glovebox's guest agent.")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--listen-fd", type=int, metavar="N", help="serve the links that arrive at this listening socket")
    ways.add_argument("--stream-fd", type=int, metavar="N", help="serve one link over this descriptor")
    ways.add_argument("--stdio", action="store_true", help="serve one link over stdin and stdout")
    arguments = parser.parse_args()
    if arguments.listen_fd is not None:
        os.set_inheritable(arguments.listen_fd, False)
        agent.serve(listener=socket.socket(fileno=arguments.listen_fd))
    if arguments.stdio:
        agent.serve(pipes=_take_stdio())
    os.set_inheritable(arguments.stream_fd, False)
    if stat.S_ISSOCK(os.fstat(arguments.stream_fd).st_mode):
        agent.serve(stream=socket.socket(fileno=arguments.stream_fd))
    # A virtio port, say: one descriptor that is no socket.
    agent.serve(pipes=(arguments.stream_fd, arguments.stream_fd))


def _take_stdio() -> Tuple[int, int]:
    """Move the link away from 0 and 1, and leave /dev/null there: nothing else may read or write the link."""
    read_fd = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    write_fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, FIRST_DESCRIPTOR)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return read_fd, write_fd


if __name__ == "__main__":
    main()
