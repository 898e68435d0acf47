"""SIGKILL of the server at random moments under load: what was reported running stays usable, and nothing leaks."""

import concurrent.futures
import contextlib
import json
import os
import random
import signal
import threading
import time

import e2b
import httpx
import pytest
from e2b_code_interpreter import Sandbox

from tests.support import leaks, servers

ROUNDS = 20


@pytest.mark.timeout(600)
def test_killed_twenty_times_under_load(own_server: servers.Server) -> None:
    before = leaks.cgroups_of_sandboxes()
    keep = [Sandbox.create(timeout=3600) for _ in range(5)]
    for number, box in enumerate(keep):
        box.run_code(f"state = {number}")
        box.commands.run("exec sleep 3600", background=True).disconnect()
    stop = threading.Event()
    announced: list[Sandbox] = []

    def load() -> None:
        while not stop.is_set():
            # A request that the killed server cut off is the caller's to repeat; what was *answered* must hold.
            with contextlib.suppress(Exception):
                box = Sandbox.create(timeout=3600, request_timeout=10)
                if random.random() < 0.5:
                    box.kill(request_timeout=10)
                else:
                    announced.append(box)

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        workers = [pool.submit(load) for _ in range(3)]
        for _ in range(ROUNDS):
            time.sleep(random.uniform(0.05, 0.6))
            own_server.kill()
            own_server.start()
        stop.set()
        for worker in workers:
            worker.result()
    for number, box in enumerate(keep):
        assert box.run_code("state").text == str(number)
        assert [p for p in box.commands.list() if p.args[-1] == "exec sleep 3600"]
        assert box.is_running()
    for box in announced:
        assert box.commands.run("echo usable").stdout == "usable\n"
    listed = []
    paginator = Sandbox.list()
    while paginator.has_next:
        listed += paginator.next_items()
    # A create that the server finished and could not answer any more lives on, and is seen by its owner.
    assert {box.sandbox_id for box in [*keep, *announced]} <= {item.sandbox_id for item in listed}
    for item in listed:
        assert Sandbox.kill(item.sandbox_id)
    servers.wait_until(
        lambda: not leaks.cgroups_of_sandboxes() - before,
        60,
        lambda: f"{leaks.cgroups_of_sandboxes() - before}\n{own_server.log()[-8000:]}",
    )


def test_a_restart_ends_what_is_due_and_forgets_what_died(own_server: servers.Server) -> None:
    short, long = Sandbox.create(timeout=2), Sandbox.create(timeout=600)
    own_server.kill()
    time.sleep(2)
    own_server.start()
    servers.wait_until(lambda: not short.is_running(), 10)
    assert long.commands.run("echo on").stdout == "on\n"
    long.kill()


def test_a_second_server_on_the_same_folder_is_refused(own_server: servers.Server) -> None:
    import subprocess
    import sys

    second = subprocess.run(
        [sys.executable, "-m", "glovebox_server", "serve", "--port", "0", "--data-dir", own_server.data_dir],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert second.returncode != 0
    assert str(own_server.data_dir) in second.stderr
    assert httpx.get(f"{own_server.url}/health").status_code == 204


def test_creates_at_once_after_the_zygotes_death(own_server: servers.Server) -> None:
    """Each finds it dead, one starts a new one, and nobody is told of it."""
    box = Sandbox.create(timeout=120)
    (facts,) = own_server.data_dir.glob("zygotes/*/zygote.json")
    handle = os.pidfd_open(json.loads(facts.read_text())["pid"])
    signal.pidfd_send_signal(handle, signal.SIGKILL)
    os.close(handle)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: Sandbox.create(timeout=120), range(6)))
    assert [one.run_code("6 * 7").text for one in made] == ["42"] * 6
    servers.wait_until(lambda: not box.is_running(), 30)


def test_sigterm_ends_everything(own_server: servers.Server) -> None:
    box = Sandbox.create(timeout=600)
    box.commands.run("sleep 600", background=True).disconnect()
    own_server.stop()
    assert not [line for line in leaks.processes() if str(own_server.data_dir) in line]
    own_server.start()
    with pytest.raises(e2b.NotFoundException):
        box.get_info()
