"""Processes, with a real agent: what they are started with, their output and input, and how they end."""

import asyncio
import json
import os
import pathlib
import signal

import pytest

from glovebox_guest import process
from tests.support import agent_client

guest = agent_client.guest
Guest = agent_client.Guest

PROBE = """
import json, os, signal, resource
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(json.dumps({
    "fds": sorted(int(fd) for fd in os.listdir("/proc/self/fd")), "env": dict(os.environ), "cwd": os.getcwd(),
    "ids": [os.getresuid(), os.getresgid(), sorted(os.getgroups())], "oom": open("/proc/self/oom_score_adj").read(),
    "blocked": int(status["SigBlk"], 16), "ignored": int(status["SigIgn"], 16), "sid": os.getsid(0) == os.getpid(),
    "pgid": os.getpgid(0) == os.getpid(), "nice": os.nice(0), "umask": os.umask(0), "threads": status["Threads"].strip(),
}))
"""


async def probe(guest: Guest, **params: object) -> dict[str, object]:
    # Without site: it would change the environment it looks at.
    data, end = await guest.run("/usr/bin/python3", "-I", "-S", "-c", PROBE, **params)
    assert end["exit_code"] == 0, data
    return dict(json.loads(data[1]))


async def test_output_streams_and_exit_code(guest: Guest) -> None:
    data, end = await guest.run("sh", "-c", "echo out; echo err >&2; exit 3")
    assert data == {1: b"out\n", 2: b"err\n"}
    assert end == {"exit_code": 3, "exited": True, "status": "exit status 3", "error": "exit status 3"}
    assert (await guest.run("true"))[1] == {"exit_code": 0, "exited": True, "status": "exit status 0"}


async def test_the_end_by_a_signal(guest: Guest) -> None:
    end = (await guest.run("sh", "-c", "kill -9 $$"))[1]
    assert (end["exit_code"], end["exited"], end["status"]) == (-1, False, "signal: killed")
    assert (await guest.run("sh", "-c", "kill -TERM $$"))[1]["status"] == "signal: terminated"


async def test_nothing_of_the_agents_is_inherited(guest: Guest) -> None:
    # Root's home may be anything here; that /root is its name in passwd is what counts.
    seen = await probe(guest, env={"A": "1"}, cwd="/usr")
    # 3 is the listing's own.
    assert seen["fds"] == [0, 1, 2, 3]
    environment = dict(seen["env"])  # type: ignore[call-overload]  # parsed JSON
    assert environment.pop("PATH")
    environment.pop("LC_CTYPE", None)  # Python's own
    assert environment == {"HOME": "/root", "USER": "root", "LOGNAME": "root", "A": "1"}
    assert seen["cwd"] == "/usr"
    # Python itself ignores SIGPIPE (13) and SIGXFSZ (25). The C library's own signals (32, 33) are nobody's business: a
    # posix_spawn by whoever runs the tests (make) leaves them ignored, and nothing here can set them.
    assert (seen["blocked"], seen["ignored"] & (1 << 31) - 1) == (0, 1 << 12 | 1 << 24)
    assert (seen["sid"], seen["pgid"], seen["nice"], seen["umask"]) == (True, True, 0, 0o022)
    assert int(str(seen["oom"])) >= 0


async def test_another_user(guest: Guest) -> None:
    seen = await probe(guest, user="nobody")
    assert seen["ids"] == [[65534] * 3, [65534] * 3, [65534]]
    assert dict(seen["env"])["USER"] == "nobody"  # type: ignore[call-overload]  # parsed JSON
    # Its home does not exist, and it had not asked to be there.
    assert seen["cwd"] == "/"
    data, _ = await guest.run("sh", "-c", "echo mine > /dev/stdout; echo too > /dev/stderr", user="nobody")
    assert data == {1: b"mine\n", 2: b"too\n"}


async def test_the_environment_is_global_then_the_requests(guest: Guest) -> None:
    await guest.call("sandbox.configure", env={"A": "global", "B": "global"})
    assert await guest.call("sandbox.env") == {"env": {"A": "global", "B": "global"}}
    data, _ = await guest.run("sh", "-c", "echo $A $B $HOME", env={"B": "own", "HOME": "/elsewhere"})
    assert data[1] == b"global own /elsewhere\n"
    assert (await guest.run("sh", "-c", "echo $A $B"))[0][1] == b"global global\n"


async def test_defaults_that_are_configured(guest: Guest, tmp_path: pathlib.Path) -> None:
    tmp_path.chmod(0o755)
    await guest.call("sandbox.configure", env={}, default_user="nobody", default_workdir="/usr")
    assert (await guest.run("sh", "-c", "whoami; pwd"))[0][1] == b"nobody\n/usr\n"
    assert (await guest.run("pwd", cwd="lib"))[0][1] == b"/usr/lib\n"
    with pytest.raises(agent_client.Refused, match="invalid username: 'x'"):
        await guest.call("sandbox.configure", env={}, default_user="x")
    assert (await guest.run("whoami"))[0][1] == b"nobody\n"


@pytest.mark.parametrize(
    ("params", "code", "message"),
    [
        ({"argv": ["true"], "cwd": "/missing"}, "invalid_argument", "cwd '/missing' does not exist"),
        ({"argv": ["true"], "user": "root123"}, "unauthenticated", "invalid username: 'root123'"),
        ({"argv": []}, "invalid_argument", "'argv' must not be empty"),
        ({"argv": ["a\0b"]}, "invalid_argument", "'argv' must hold strings without NUL"),
        ({"argv": "true"}, "invalid_argument", "'argv' must be a list of at most 65536 strings"),
        ({"argv": ["true"], "env": {"A": 1}}, "invalid_argument", "'env' must map strings to strings"),
        ({"argv": ["true"], "env": {"A=B": "x"}}, "invalid_argument", None),
        ({"argv": ["true", "x" * 3_000_000]}, "invalid_argument", "'argv' must be at most 2097152 bytes"),
        ({"argv": ["true"], "pty": {"cols": 0, "rows": 1}}, "invalid_argument", None),
        ({"argv": ["true"], "stdin": "yes"}, "invalid_argument", "'stdin' must be a boolean"),
        ({"argv": ["true"], "cwd": "a\0"}, "invalid_argument", "a path holds no NUL"),
    ],
)
async def test_requests_that_are_refused(
    guest: Guest, params: dict[str, object], code: str, message: str | None
) -> None:
    with pytest.raises(agent_client.Refused) as refused:
        await guest.call("process.start", **params)
    assert refused.value.code == code
    assert message is None or refused.value.message == message


async def test_what_cannot_be_executed_ends_as_in_a_shell(guest: Guest, tmp_path: pathlib.Path) -> None:
    plain, script, folder = tmp_path / "plain", tmp_path / "script", tmp_path / "folder"
    plain.write_text("echo")
    script.write_text("echo script $1")
    script.chmod(0o755)
    folder.mkdir()
    for name, code, complaint in [
        ("no-such-program", 127, b"no-such-program: command not found\n"),
        ("/no/such", 127, b"/no/such: command not found\n"),
        ("", 127, b": command not found\n"),
        (str(plain), 126, f"{plain}: Permission denied\n".encode()),
        (str(folder), 126, f"{folder}: Permission denied\n".encode()),
    ]:
        data, end = await guest.run(name)
        assert (end["exit_code"], data[2]) == (code, complaint)
    assert (await guest.run(str(script), "here"))[0][1] == b"script here\n"
    # The path is the child's, not the agent's.
    assert (await guest.run("script", "x", env={"PATH": str(tmp_path)}))[0][1] == b"script x\n"
    assert (await guest.run("true", "x" * 200_000))[1]["exit_code"] == 126


async def test_input_and_its_end(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["cat"], stdin=True)
    pid = (await channel.event())["pid"]
    text = os.urandom(1_000_000)
    sending = guest.open("process.input", pid=pid)
    reading = asyncio.create_task(channel.rest())
    for part in (text[:700_000], text[700_000:]):
        await sending.send(part)
    sending.eof()
    assert (await sending.rest())[2] == {}
    assert await guest.call("process.close_stdin", pid=pid) == {}
    data, _, end = await reading
    assert data == {1: text}
    assert end["exit_code"] == 0


async def test_input_ends_twice_and_is_refused_where_there_is_none(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sh", "-c", "cat; sleep 60"], stdin=True, tag="t")
    await channel.event()
    for _ in range(2):
        await guest.call("process.close_stdin", tag="t")
    sending = guest.open("process.input", tag="t")
    await sending.send(b"x")
    with pytest.raises(agent_client.Refused, match="failed_precondition"):
        await sending.rest()
    await guest.call("process.signal", tag="t", signal=9)
    # Without stdin it is /dev/null.
    assert (await guest.run("cat"))[1]["exit_code"] == 0


async def test_input_that_nobody_reads_ends_with_the_process(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sleep", "60"], stdin=True)
    pid = (await channel.event())["pid"]
    sending = guest.open("process.input", pid=pid)
    await sending.send(bytes(200_000))
    closing = guest.open("process.close_stdin", pid=pid)
    await guest.ping()
    await guest.call("process.signal", pid=pid, signal=15)
    assert (await channel.rest())[2]["status"] == "signal: terminated"
    with pytest.raises(agent_client.Refused, match="failed_precondition"):
        await sending.rest()
    assert (await closing.rest())[2] == {}


async def test_terminals(guest: Guest) -> None:
    command = "test -t 0 && stty size; read line; echo got $line; read again; stty size; exit 4"
    channel = guest.open("process.start", argv=["bash", "-c", command], pty={"cols": 91, "rows": 13}, user="nobody")
    pid = (await channel.event())["pid"]
    text = b""
    while not text.endswith(b"13 91\r\n"):
        kind, stream, more = await channel.next()
        assert (kind, stream) == ("data", 3), more
        text += more
    sending = guest.open("process.input", pid=pid)
    await sending.send(b"hello\n")
    await guest.call("process.resize", pid=pid, cols=100, rows=50)
    with pytest.raises(agent_client.Refused) as refused:
        await guest.call("process.close_stdin", pid=pid)
    assert refused.value.code == "failed_precondition"
    await sending.send(b"\n")
    sending.eof()
    await sending.rest()
    data, _, end = await channel.rest()
    assert data[3].endswith(b"50 100\r\n")
    assert b"got hello" in data[3]
    assert end["exit_code"] == 4


async def test_control_c_reaches_the_terminals_program(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sh", "-c", "echo go; exec sleep 60"], pty={"cols": 80, "rows": 24})
    pid = (await channel.event())["pid"]
    assert (await channel.next())[2] == b"go\r\n"
    sending = guest.open("process.input", pid=pid)
    await sending.send(b"\x03")
    assert (await channel.rest())[2]["status"] == "signal: interrupt"


async def test_list_signal_and_the_unknown(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sleep", "60"], tag="one", env={"A": "1"}, cwd="/usr")
    pid = (await channel.event())["pid"]
    listed = await guest.call("process.list")
    assert listed == {
        "processes": [{"pid": pid, "argv": ["sleep", "60"], "env": {"A": "1"}, "cwd": "/usr", "tag": "one"}]
    }
    with pytest.raises(agent_client.Refused, match="'signal' must be"):
        await guest.call("process.signal", pid=pid, signal=0)
    await guest.call("process.signal", tag="one", signal=signal.SIGKILL)
    await channel.rest()
    assert await guest.call("process.list") == {"processes": []}
    for params, name in [({"pid": pid}, f"pid {pid}"), ({"tag": "one"}, "tag one"), ({"pid": 1}, "pid 1")]:
        with pytest.raises(agent_client.Refused) as refused:
            await guest.call("process.signal", signal=9, **params)
        assert (refused.value.code, refused.value.message) == ("not_found", f"process with {name} not found")


async def test_only_the_process_itself_is_signalled(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sh", "-c", "sleep 60 & echo $!; wait"])
    pid = (await channel.event())["pid"]
    grandchild = int((await channel.next())[2])
    await guest.call("process.signal", pid=pid, signal=15)
    assert (await channel.rest())[2]["status"] == "signal: terminated"
    os.kill(grandchild, signal.SIGKILL)


async def test_several_subscribers_and_the_end_that_is_kept(guest: Guest) -> None:
    first = guest.open("process.start", argv=["sh", "-c", "read x; echo one; read x; echo two"], stdin=True)
    pid = (await first.event())["pid"]
    sending = guest.open("process.input", pid=pid)
    second = guest.open("process.connect", pid=pid)
    assert await second.event() == {"event": "start", "pid": pid}
    await sending.send(b"\n")
    assert await first.next() == await second.next() == ("data", 1, b"one\n")
    # Cancelling only unsubscribes.
    first.cancel()
    with pytest.raises(agent_client.Refused, match="canceled"):
        await first.rest()
    await sending.send(b"\n")
    data, _, end = await second.rest()
    assert (data, end["exit_code"]) == ({1: b"two\n"}, 0)
    again = guest.open("process.connect", pid=pid)
    assert await again.rest() == ({}, [{"event": "start", "pid": pid}], end)
    with pytest.raises(agent_client.Refused, match="process with pid 7777777 not found"):
        await guest.call("process.connect", pid=7777777)


async def test_output_without_a_subscriber_is_dropped(guest: Guest, tmp_path: pathlib.Path) -> None:
    done = tmp_path / "done"
    channel = guest.open("process.start", argv=["sh", "-c", f"yes | head -c 20000000; touch {done}"])
    await channel.event()
    channel.cancel()
    while not done.exists():
        await guest.ping()


async def test_all_output_is_delivered_however_slow_the_subscriber(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sh", "-c", "head -c 3000000 /dev/zero; echo end"])
    channel.generous = False
    await channel.event()
    received = 0
    while received < 3_000_004:
        item = await channel.next()
        assert item[0] == "data", item
        received += len(item[2])
        channel.generous = True
        channel._give(len(item[2]))
        channel.generous = False
    assert (await channel.next())[0] == "end"


async def test_a_grandchild_that_keeps_the_pipe_holds_the_end_back_only_shortly(
    guest: Guest, tmp_path: pathlib.Path
) -> None:
    done = tmp_path / "done"
    loop = asyncio.get_running_loop()
    started = loop.time()
    # It goes on writing after the end, and must not die of it.
    writer = f"(for i in 1 2 3 4 5 6 7 8 9; do echo $i; sleep 0.1; done; touch {done}) & echo leader"
    data, end = await guest.run("sh", "-c", writer)
    assert end["exit_code"] == 0
    assert data[1].startswith((b"leader\n", b"1\nleader\n"))
    assert loop.time() - started < 0.8
    while not done.exists():
        await guest.ping()


async def test_a_stopped_agent_loses_nothing_of_a_short_lived_program(guest: Guest) -> None:
    for options in ({}, {"pty": {"cols": 80, "rows": 24}}):
        channel = guest.open("process.start", argv=["sh", "-c", "read x; echo last; exit 1"], stdin=True, **options)
        pid = (await channel.event())["pid"]
        sending = guest.open("process.input", pid=pid)
        await sending.send(b"\n")
        sending.eof()
        # Stopped at some moment from now on, for longer than the grace.
        os.kill(guest.process.pid, signal.SIGSTOP)
        await asyncio.sleep(process.GRACE_S + 0.1)
        os.kill(guest.process.pid, signal.SIGCONT)
        data, _, _ = await channel.rest()
        assert b"last" in b"".join(data.values())


async def test_a_grandchild_that_floods_does_not_hold_the_end_back(guest: Guest) -> None:
    channel = guest.open("process.start", argv=["sh", "-c", "yes & echo $! >&2"])
    await channel.event()
    data, _, end = await asyncio.wait_for(channel.rest(), 10)
    assert end["exit_code"] == 0
    os.kill(int(data[2]), signal.SIGKILL)


async def test_starting_many_and_orphans_leaves_no_zombie(guest: Guest) -> None:
    channels = [guest.open("process.start", argv=["sh", "-c", "(sleep 0 & exec true) & exit 0"]) for _ in range(40)]
    for channel in channels:
        assert (await channel.rest())[2]["exit_code"] == 0

    def children() -> list[str]:
        # The file names children of the one thread; a second thread would be a mistake of its own.
        return pathlib.Path(f"/proc/{guest.process.pid}/task/{guest.process.pid}/children").read_text().split()

    async with asyncio.timeout(10):
        while children():
            await guest.ping()
    assert guest.threads() == 1


async def test_the_agent_survives_signals_and_sick_children(guest: Guest) -> None:
    for number in (1, 2, 3, 10, 12, 13, 14, 15, 17, 20, 27, 29):
        os.kill(guest.process.pid, number)
    await guest.run("sh", "-c", "kill -STOP $$ & kill -9 $$")
    await guest.ping()


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (0, {"exit_code": 0, "exited": True, "status": "exit status 0"}),
        (0x0200, {"exit_code": 2, "exited": True, "status": "exit status 2", "error": "exit status 2"}),
        (11, {"exit_code": -1, "exited": False, "status": "signal: segmentation fault"}),
        (0x86, {"exit_code": -1, "exited": False, "status": "signal: aborted (core dumped)"}),
    ],
)
def test_ends_are_described_as_go_does(status: int, said: dict[str, object]) -> None:
    assert {**process.describe_end(status), **said} == process.describe_end(status)
