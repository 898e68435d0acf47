"""What of the host, the server and other tenants can be learned from inside, or from an answer."""

import json
import os
import pathlib
import pwd
import re
import socket
import urllib.error
import urllib.request

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers


def everything_readable(box: Sandbox) -> str:
    """What /proc and /sys tell to root inside, without the parts that only name processes of the sandbox itself."""
    return inside.run(
        box,
        "for f in /proc/* /proc/self/* /proc/1/* /proc/sys/kernel/* /proc/net/* /proc/sysvipc/*; do"
        " [ -f $f ] && timeout 2 head -c 100000 $f 2>/dev/null | tr -d '\\0'; done; hostname; id; mount; env",
    ).stdout


def test_the_name_of_the_host(sandbox: Sandbox) -> None:
    """Without its own uts namespace, `hostname` says the host's."""
    name = inside.run(sandbox, "hostname; cat /etc/hostname /proc/sys/kernel/hostname; uname -n").stdout.split()
    assert set(name) == {sandbox.sandbox_id}
    assert socket.gethostname() not in name


def test_the_environment_of_the_server(sandbox: Sandbox, server: servers.Server) -> None:
    for user in ("root", "user"):
        told = inside.run(sandbox, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'", user=user).stdout
        names = {line.partition("=")[0] for line in told.splitlines() if "=" in line}
        assert not {name for name in names if name.startswith(("GLOVEBOX", "E2B_API", "PYTEST", "SSH", "XDG"))}
        assert server.key not in told
        assert str(server.data_dir) not in told


def test_keys_and_folders_of_the_server(sandbox: Sandbox, server: servers.Server) -> None:
    told = everything_readable(sandbox)
    assert len(told) > 1000
    for secret in (server.key, str(server.data_dir), str(servers.ROOT), str(server.pid) + " (python", server.url):
        assert secret not in told


def test_arguments_of_programs_of_the_host_hold_no_key(server: servers.Server, sandbox: Sandbox) -> None:
    """`ps` on the host is for all of its users."""
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "glovebox" in line:
            assert server.key not in line


def test_processes_of_the_host(sandbox: Sandbox, neighbour: Sandbox) -> None:
    neighbour.commands.run("exec -a neighbours-secret sleep 60", background=True).disconnect()
    told = inside.run(sandbox, "ps axww -o args; cat /proc/*/cmdline | tr '\\0' ' '").stdout
    assert "glovebox_server serve" not in told
    assert "pytest" not in told
    assert "neighbours-secret" not in told
    assert neighbour.sandbox_id not in told


def test_ids_of_other_sandboxes(sandbox: Sandbox, neighbour: Sandbox) -> None:
    told = everything_readable(sandbox)
    assert sandbox.sandbox_id in told
    assert neighbour.sandbox_id not in told
    files = inside.run(
        sandbox, f"grep -rl {neighbour.sandbox_id} /etc /run /tmp /var /home /root /opt 2>/dev/null; true"
    )
    assert files.stdout == ""


def test_mounts_of_the_host(sandbox: Sandbox) -> None:
    """Sources of overlays name folders of the zygote's view, never the host's disks or folders."""
    told = inside.run(sandbox, "cat /proc/self/mountinfo").stdout
    mine = {line.split(" - ")[1].split()[1] for line in told.splitlines()}
    assert mine <= {"overlay", "proc", "tmpfs", "devpts", "devtmpfs", "sysfs", "none"}
    assert "/dev/vd" not in told
    assert "/dev/sd" not in told


@pytest.mark.parametrize(
    "name",
    "cmdline kallsyms modules iomem ioports interrupts softirqs schedstat zoneinfo keys key-users config.gz mtrr "
    "diskstats partitions buddyinfo consoles timer_list slabinfo vmallocinfo pagetypeinfo kmsg".split(),
)
def test_what_proc_tells_of_the_host_is_covered(sandbox: Sandbox, name: str) -> None:
    seen = inside.run(sandbox, f"cat /proc/{name} 2>/dev/null | head -c 1000").stdout
    assert seen == ""


def test_something_is_there_to_be_covered() -> None:
    """The probe above can fail."""
    assert pathlib.Path("/proc/cmdline").read_text()
    assert pathlib.Path("/proc/interrupts").read_text()


def test_the_kernel_log(sandbox: Sandbox) -> None:
    ended = inside.run(sandbox, "dmesg")
    assert ended.exit_code != 0
    assert ended.stdout == ""


def test_addresses_of_the_kernel(sandbox: Sandbox) -> None:
    told = inside.run(
        sandbox, "cat /proc/net/unix /proc/net/tcp /proc/self/stack /proc/self/wchan /proc/self/stat"
    ).stdout
    assert not re.search(r"\bffff[0-9a-f]{12}\b", told)


def test_identity_of_the_machine(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """machine-id, serial numbers, boot id: none, or each sandbox's own."""
    for path in ("/etc/machine-id", "/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/product_serial"):
        told = inside.run(sandbox, f"cat {path} 2>/dev/null; true").stdout.strip()
        host = pathlib.Path(path)
        assert not told or not host.exists() or told != host.read_text().strip()
    boots = {inside.run(box, "cat /proc/sys/kernel/random/boot_id").stdout for box in (sandbox, neighbour)}
    assert len(boots) == 2
    assert pathlib.Path("/proc/sys/kernel/random/boot_id").read_text() not in boots


def test_users_of_the_host(sandbox: Sandbox) -> None:
    told = inside.run(sandbox, "cat /etc/passwd /etc/group").stdout
    people = {entry.pw_name for entry in pwd.getpwall() if 1000 <= entry.pw_uid < 60000} - {"user"}
    assert not people & {line.partition(":")[0] for line in told.splitlines()}


def test_control_groups_of_the_host(sandbox: Sandbox) -> None:
    told = inside.run(sandbox, "cat /proc/self/cgroup /proc/1/cgroup").stdout
    assert all(line.endswith(":/") for line in told.splitlines())


def test_random_numbers_differ_between_forks_of_one_zygote(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """All sandboxes come from one warm process: what it had seeded must not be the same in two."""
    code = "import random, secrets, uuid, numpy, os\nprint(random.random(), uuid.uuid4(), numpy.random.random(), hash('x'))"
    one, two = ("".join(box.run_code(code).logs.stdout).split() for box in (sandbox, neighbour))
    assert len(one) == 4
    assert not set(one[:3]) & set(two[:3])


ODD = [
    ("GET", "/files?path=/does/not/exist&username=root"),
    ("GET", "/files?path=%00&username=root"),
    ("GET", "/files?path=/etc/shadow&username=nobody-knows"),
    ("POST", "/files?path=/proc/version&username=root"),
    ("POST", "/filesystem.Filesystem/ListDir"),
    ("POST", "/process.Process/Start"),
    ("GET", "/sandboxes/../../etc/passwd"),
    ("GET", "/sandboxes/no-such"),
    ("POST", "/sandboxes"),
    ("PUT", "/sandboxes"),
    ("GET", "/" + "x" * 5000),
]


@pytest.mark.parametrize("method, path", ODD)
@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"templateID": {"a": 1}}', b"\xff\xfe", b'{"templateID":"nope","timeout":1e99}']
)
def test_errors_tell_nothing_of_the_server(
    server: servers.Server, sandbox: Sandbox, method: str, path: str, body: bytes
) -> None:
    """No folder, module, line or trace: for the control plane and for a sandbox's own calls."""
    for headers in ({"X-API-KEY": server.key}, _to_sandbox(sandbox), {}):
        request = urllib.request.Request(server.url + path, data=body or None, method=method)
        for name, value in {**headers, "Content-Type": "application/json"}.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text, told = answer.read(100_000).decode(errors="replace"), answer.headers
        except urllib.error.HTTPError as error:
            text, told = error.read(100_000).decode(errors="replace"), error.headers
        for secret in (
            str(server.data_dir),
            str(servers.ROOT),
            "Traceback",
            'File "',
            ".py",
            server.key,
            os.uname().release,
        ):
            assert secret not in text or path.startswith("/files?path=/etc"), text[:500]
            assert secret not in str(told)


def test_errors_from_inside_name_only_what_is_inside(sandbox: Sandbox, server: servers.Server) -> None:
    trials = (
        lambda: sandbox.files.read("/proc/1/mem", user="root"),
        lambda: sandbox.files.write("/proc/version", "x", user="root"),
        lambda: sandbox.files.list("/proc/1/fd", user="root"),
        lambda: sandbox.commands.run("x", cwd="/no/such/folder"),
        lambda: sandbox.commands.run("x", user="nobody-knows"),
        lambda: sandbox.files.rename("/etc/passwd", "/proc/x", user="root"),
        lambda: sandbox.run_code("1", language="cobol"),
    )
    said = []
    for trial in trials:
        try:
            said.append(str(trial()))
        except Exception as error:  # of whichever kind: its text is what counts
            said.append(f"refused: {error}")
    assert len([one for one in said if one.startswith("refused")]) >= len(trials) - 2
    for secret in (str(server.data_dir), str(servers.ROOT), "Traceback", "glovebox_server", "glovebox_guest"):
        assert not [one for one in said if secret in one]


def test_the_log_of_the_server_has_no_key(server: servers.Server, sandbox: Sandbox) -> None:
    sandbox.commands.run("echo hello", envs={"PASSWORD": "hunter2-of-the-caller"})
    log = server.log()
    assert log
    assert server.key not in log
    assert "hunter2-of-the-caller" not in log
    assert not [line for line in log.splitlines() if line.startswith("{") and "access_token" in json.loads(line)]


def test_the_agent_keeps_no_secret_of_the_servers(sandbox: Sandbox, server: servers.Server) -> None:
    """Process 1 is a fork of the zygote, which was started with a clean environment: read from outside."""
    agent = posture.pids_of(sandbox.sandbox_id)[0]
    told = (
        pathlib.Path(f"/proc/{agent}/environ").read_bytes().decode()
        + pathlib.Path(f"/proc/{agent}/cmdline").read_text()
    )
    assert server.key not in told
    assert str(server.data_dir) not in told
    assert str(servers.ROOT) not in told


def _to_sandbox(box: Sandbox) -> dict[str, str]:
    token = str(box._envd_access_token or "")
    return {"E2b-Sandbox-Id": box.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": token}
