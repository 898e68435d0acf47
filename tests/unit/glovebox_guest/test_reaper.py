"""Waiting for children: watched, unwatched, and gone before anybody asked."""

import os
import subprocess
import sys

# In a process of its own: the reaper takes every child there is, the test runner's too.
SCRIPT = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[1])
from glovebox_guest import child, reaper, users

def ending(code):
    pid = child.fork()
    if pid == 0:
        os._exit(code)
    return pid

async def main():
    children = reaper.Reaper()
    children.start()
    assert os.WEXITSTATUS(await children.watch(ending(3))) == 3
    early = ending(4)
    while True:
        try:
            os.waitid(os.P_PID, early, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            break
        await asyncio.sleep(0.001)
    assert os.WEXITSTATUS(await children.watch(early)) == 4
    # What is kept of an earlier process is not taken for a living one's.
    pid = child.fork()
    if pid == 0:
        os.execvp("sleep", ["sleep", "60"])
    children._kept[pid] = 0
    watched = children.watch(pid)
    await asyncio.sleep(0)
    assert not watched.done()
    os.kill(pid, 9)
    assert os.WTERMSIG(await watched) == 9
    ends = await asyncio.gather(*(children.watch(ending(number)) for number in range(100)))
    assert [os.WEXITSTATUS(end) for end in ends] == list(range(100))
    for number in range(reaper.MAX_KEPT_STATUSES + 10):
        children._ended(10**7 + number, 0)
    assert len(children._kept) == reaper.MAX_KEPT_STATUSES
    print("fine")

asyncio.run(main())
"""


def test_every_child_is_waited_for() -> None:
    source = os.path.join(os.path.dirname(__file__), "..", "..", "..", "src")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, source], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout, done.stderr) == ("fine\n", "")
