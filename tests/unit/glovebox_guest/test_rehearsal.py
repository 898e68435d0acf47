"""The agent's rehearsal before a fork leaves nothing behind, and what is made after it works."""

import subprocess
import sys

_PROGRAM = """
import os, signal, socket
from glovebox_guest import agent, wire

def descriptors():
    return sorted(name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}"))

before = descriptors(), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, ())
agent.rehearse(3)
assert (descriptors(), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before
assert signal.set_wakeup_fd(-1) == -1

ready = agent.Ready()
host, guest = socket.socketpair()
if os.fork() == 0:
    host.close()
    ready.serve(stream=guest)
guest.close()
host.sendall(b"".join(wire.encode_message(0, wire.HELLO, {"version": wire.VERSION})))
host.sendall(b"".join(wire.encode_message(1, wire.OPEN, {"op": "sandbox.env"})))
decoder, kinds = wire.Decoder(), []
while wire.END not in kinds:
    kinds += [frame.kind for frame in decoder.feed(memoryview(host.recv(65536)))]
print(kinds == [wire.HELLO, wire.END])
host.close()
os.wait()
"""


def test_a_rehearsal_leaves_nothing_behind() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("True\n", "")
