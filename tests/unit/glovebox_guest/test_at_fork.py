"""At-fork hooks that are put off do not run at a fork, and all run, in order, once they are taken up."""

import subprocess
import sys

_PROGRAM = """
import os
from glovebox_guest import at_fork
at_fork.put_off()
import random

said = []
os.register_at_fork(after_in_child=lambda: said.append("first"), before=lambda: said.append("before"))
os.register_at_fork(after_in_child=lambda: 1 / 0)
os.register_at_fork(after_in_child=lambda: said.append("second"), after_in_parent=lambda: said.append("parent"))

def in_child(work):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, repr(work()).encode())
        os._exit(0)
    os.close(write)
    with open(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text

def taken_up():
    at_fork.take_up()
    taken, said[:] = [*said], []
    random_number = random.random()
    return taken, in_child(lambda: [*said]), random_number, in_child(lambda: random.random())

print(in_child(lambda: (said, random.random())), random.random())
print(in_child(taken_up))
print(in_child(taken_up))
"""


def test_hooks_wait_until_they_are_taken_up() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True, timeout=60)
    put_off, first, second = done.stdout.splitlines()
    said, drawn = put_off.removeprefix("([], ").split(") ")
    assert said == drawn, "random was not to be reseeded by a fork"
    taken, at_the_next_fork, number, number_of_child = eval(first)
    assert taken == ["first", "second"], "what is done in a child, and nothing else"
    assert at_the_next_fork == "['before', 'first', 'second']"
    numbers = {said, str(number), number_of_child, *map(str, eval(second)[2:])}
    assert done.stderr.count("ZeroDivisionError") >= 2, "a hook that fails is told of, and the others run"
    assert len(numbers) == 5, "random differs in every process that hooks were taken up in, and in its children"
