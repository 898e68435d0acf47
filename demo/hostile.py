"""Hostile programs of the demo: each tries to harm the host for real, and is watched from outside."""

import pathlib
import secrets
import socket
import tempfile
import time

import e2b_code_interpreter as e2b
from stage import Stage, Step

#: Forks until the kernel refuses, holds all it got until it is told, then cleans up after itself.
_FORK_BOMB = """
import os, signal, sys
children = []
try:
    while len(children) < 100_000:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        children.append(pid)
    print("UNLIMITED", len(children), flush=True)
except OSError as error:
    print("REFUSED", len(children), error.strerror, flush=True)
sys.stdin.readline()
for pid in children:
    os.kill(pid, signal.SIGKILL)
"""

#: Touches 4 GiB, page by page: asking alone costs nothing, so it would prove nothing.
_MEMORY_BOMB = """
blocks = []
for number in range(64):
    blocks.append(b"x" * (64 << 20))
    print("HAS", (number + 1) * 64, flush=True)
print("ALL OF IT", flush=True)
"""

_DIAL = """
import socket
for host, port in {targets!r}:
    try:
        socket.create_connection((host, port), timeout=2).close()
        print("REACHED", host, port)
    except OSError as error:
        print("REFUSED", host, port, error.strerror or error)
"""


def fork_bomb(stage: Stage, sandbox: e2b.Sandbox) -> None:
    """As many processes as it can get, held while a neighbour goes on as if nothing were."""
    with stage.step("A fork bomb") as step:
        sandbox.files.write("bomb.py", _FORK_BOMB)
        seen: list[str] = []
        bomb = sandbox.commands.run("exec python3 bomb.py", background=True, stdin=True, timeout=60)
        for out, _, _ in bomb:
            seen.append(out or "")
            if "\n" in "".join(seen):
                break
        word, _, rest = "".join(seen).strip().partition(" ")
        step.expect(word == "REFUSED", f"the bomb must be refused at some point, and said: {''.join(seen)!r}")
        count, _, reason = rest.partition(" ")
        step.note(f"the kernel refused it after {count} processes: {reason}")
        _neighbour_works(step, "with the bomb still holding them")
        bomb.send_stdin("\n")  # it lets go: what follows is the sandbox's own recovery
        bomb.wait()
    _still_fine(stage, sandbox)


def memory_bomb(stage: Stage, sandbox: e2b.Sandbox) -> None:
    """4 GiB of memory, really touched."""
    with stage.step("4 GiB of memory") as step:
        try:
            ended: e2b.CommandResult | e2b.CommandExitException
            ended = sandbox.commands.run(f"exec python3 -c '{_MEMORY_BOMB}'", timeout=60)
        except e2b.CommandExitException as error:
            ended = error
        step.expect("ALL OF IT" not in ended.stdout, "the program got 4 GiB")
        step.expect(ended.exit_code != 0, "the program must not end well")
        got = ended.stdout.split()[-1] if ended.stdout else "0"
        step.note(f"stopped after {got} MiB, exit code {ended.exit_code} ({ended.error or last_line(ended.stderr)})")
        _neighbour_works(step, "right after")
    _still_fine(stage, sandbox)


def read_host_files(stage: Stage, sandbox: e2b.Sandbox) -> None:
    """The host's password file and a secret planted there, read as root inside, through every door that is tried."""
    with (
        tempfile.TemporaryDirectory(prefix="glovebox-demo-secret-") as directory,
        stage.step("Reading the host's files, as root inside") as step,
    ):
        secret = secrets.token_hex(16)
        path = pathlib.Path(directory, "secret")
        path.write_text(secret)
        pathlib.Path(directory).chmod(0o755)
        path.chmod(0o644)
        step.expect(path.read_text() == secret, "the secret must be readable on the host")
        names = ["/etc/shadow", str(path)]
        doors = [door + name for name in names for door in ("", "/proc/1/root", "/proc/self/root")]
        tried = sandbox.commands.run(
            "id -un; for f in " + " ".join(doors) + '; do echo "== $f"; cat $f 2>&1; done; true', user="root"
        )
        step.expect(tried.stdout.startswith("root\n"), "the attempt must be made as root inside")
        shadow = _host_shadow()
        step.expect(not shadow or shadow not in tried.stdout, "the host's /etc/shadow was read inside")
        step.expect(secret not in tried.stdout, "the host's secret file was read inside")
        step.note(f"{len(doors)} paths tried; none gave the secret that was planted on the host")
        if shadow:
            step.note(f"nor the host's /etc/shadow ({len(shadow.splitlines())} lines): what is there inside is its own")
        step.note(f"what cat said of the secret: {_said_of(tried.stdout, str(path))}")
    _still_fine(stage, sandbox)


def dial_out(stage: Stage, sandbox: e2b.Sandbox) -> None:
    """Connections to the host (a listener that does accept from outside), to the cloud's metadata, to the internet."""
    with socket.create_server(("127.0.0.1", 0)) as listener, stage.step("Opening connections to the outside") as step:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=2):
            listener.accept()[0].close()  # the probe can succeed: from the host it does
        own = _host_address()
        targets = [("127.0.0.1", port), ("169.254.169.254", 80), ("1.1.1.1", 443), *([(own, 22)] if own else [])]
        result = sandbox.run_code(_DIAL.format(targets=targets))
        lines = "".join(result.logs.stdout).splitlines()
        step.expect(len(lines) == len(targets), f"every attempt must be told: {lines} {result.error}")
        for line in lines:
            step.expect(line.startswith("REFUSED"), f"a connection went out: {line}")
            step.note(line.lower())
        listener.settimeout(0.2)
        try:
            listener.accept()
            step.expect(False, "the host's listener was reached from inside")
        except TimeoutError:
            step.note("the host's listener, which the host itself just reached, saw nobody from inside")
    _still_fine(stage, sandbox)


def last_line(text: str) -> str:
    """The last line of `text`, or a word for its absence."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "killed without a word"


def _still_fine(stage: Stage, sandbox: e2b.Sandbox) -> None:
    with stage.step("  … and after it: the same sandbox") as step:
        deadline = time.monotonic() + 20
        while True:
            try:
                answer = sandbox.commands.run("echo still here", timeout=10)
                break
            except e2b.CommandExitException:
                # What it left behind is still being reaped; but not for long.
                step.expect(time.monotonic() < deadline, "the sandbox must work again within 20 s")
        step.expect(answer.stdout == "still here\n", f"the sandbox answered {answer.stdout!r}")
        sum_of = sandbox.run_code("sum(range(10))").text
        step.expect(sum_of == "45", f"its code context answered {sum_of!r}")
        step.note("runs commands and code as before")


def _neighbour_works(step: Step, when: str) -> None:
    """Another sandbox, made now: the server and the other tenants must not notice the attack."""
    started = time.perf_counter()
    neighbour = e2b.Sandbox.create(timeout=60)
    try:
        text = neighbour.run_code("6 * 7").text
        step.expect(text == "42", f"a neighbour answered {text!r}")
    finally:
        neighbour.kill()
    step.note(f"{when}, a new neighbour was made, computed 6 * 7 and ended in {(time.perf_counter() - started):.2f} s")


def _host_shadow() -> str:
    """The host's password file; empty if we may not read it ourselves, and so could not recognise it."""
    try:
        return pathlib.Path("/etc/shadow").read_text().strip()
    except OSError:
        return ""


def _host_address() -> str | None:
    """An address of this host that is not loopback, if it has one (a UDP connect sends nothing)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
        return address


def _said_of(output: str, path: str) -> str:
    after = output.partition(f"== {path}\n")[2].splitlines()
    return after[0] if after else "nothing"
