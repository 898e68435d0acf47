"""Many at once, and much at once: 300 sandboxes, a gibibyte each way, a program that prints without end."""

import concurrent.futures
import hashlib
import os
import pathlib
import re
import statistics
import threading
import time
from collections.abc import Iterator

import e2b
import httpx
import pytest
from e2b_code_interpreter import Sandbox

from tests.support import leaks, servers

MIB = 1024 * 1024


def server_memory(server: servers.Server) -> int:
    """Resident bytes of the server's own process."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


@pytest.mark.timeout(600)
def test_300_sandboxes_at_once_each_running_code_and_nothing_left(own_server: servers.Server) -> None:
    Sandbox.create().kill()  # what is made once for all is made now
    before = leaks.snapshot()
    made: list[Sandbox] = []
    lock = threading.Lock()

    def make_and_run(number: int) -> str | None:
        box = Sandbox.create(timeout=600)
        with lock:
            made.append(box)
        return box.run_code(f"import os; {number} * 2").text

    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        results = list(pool.map(make_and_run, range(300)))
    assert results == [str(2 * n) for n in range(300)]
    assert len({box.sandbox_id for box in made}) == 300
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        again = list(pool.map(lambda box: box.run_code("'still here'").text, made))
        assert again == ["still here"] * 300
        assert all(pool.map(lambda box: box.kill(), made))
    servers.wait_until(lambda: not leaks.new_since(before), 60, lambda: leaks.new_since(before))


def random_file(path: pathlib.Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size // MIB):
            block = os.urandom(MIB)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@pytest.mark.timeout(600)
def test_a_gibibyte_each_way_with_little_memory(own_server: servers.Server, tmp_path: pathlib.Path) -> None:
    source = tmp_path / "big"
    wanted = random_file(source, 1024 * MIB)
    with Sandbox.create(timeout=600) as box:
        box.files.write("warm-up", b"x" * MIB)
        box.files.read("warm-up", format="bytes")
        before = server_memory(own_server)
        peak = [before]
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(0.02):
                peak[0] = max(peak[0], server_memory(own_server))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with open(source, "rb") as file:
                box.files.write("/tmp/big", file)
            assert box.commands.run("sha256sum /tmp/big", timeout=120).stdout.split()[0] == wanted
            digest = hashlib.sha256()
            for chunk in box.files.read("/tmp/big", format="stream"):
                digest.update(chunk)
        finally:
            stop.set()
            watcher.join()
    assert digest.hexdigest() == wanted
    assert peak[0] - before < 64 * MIB, f"the server grew by {(peak[0] - before) // MIB} MiB"


@pytest.fixture
def flooded(own_server: servers.Server) -> Iterator[Sandbox]:
    with Sandbox.create(timeout=120) as box:
        yield box


def test_a_program_that_prints_without_end_grows_nothing_and_delays_nobody(
    own_server: servers.Server, flooded: Sandbox
) -> None:
    """The client reads the flood's head and then no further, as a stuck client does."""
    headers = {
        "E2b-Sandbox-Id": flooded.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "X-Access-Token": flooded.connection_config.sandbox_headers["X-Access-Token"],
        "Content-Type": "application/connect+json",
        "Connect-Protocol-Version": "1",
    }
    body = b'{"process":{"cmd":"/bin/bash","args":["-c","exec yes a long line that is printed without end"]},"stdin":false}'
    frame = b"\0" + len(body).to_bytes(4, "big") + body
    url = f"{own_server.url}/process.Process/Start"
    with httpx.stream("POST", url, content=frame, headers=headers, timeout=60) as answer:
        assert answer.status_code == 200
        next(answer.iter_raw())
        before = server_memory(own_server)
        delays = []
        for number in range(100):
            started = time.perf_counter()
            assert flooded.files.exists("/etc/passwd")
            delays.append(time.perf_counter() - started)
            if number == 50:
                assert flooded.commands.run("echo me too").stdout == "me too\n"
        grown = server_memory(own_server) - before
    assert grown < 16 * MIB
    assert statistics.median(delays) < 0.05


def test_quotas_are_exact_under_a_rush(own_server: servers.Server) -> None:
    made = httpx.post(
        f"{own_server.url}/api-keys", json={"name": "small", "maxSandboxes": 5}, headers={"X-API-KEY": own_server.key}
    ).json()

    def create(_: int) -> Sandbox | Exception:
        try:
            return Sandbox.create(timeout=60, api_key=made["key"])
        except e2b.RateLimitException as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        outcome = list(pool.map(create, range(12)))
    boxes = [one for one in outcome if isinstance(one, Sandbox)]
    assert len(boxes) == 5
    for box in boxes:
        box.kill(api_key=made["key"])
