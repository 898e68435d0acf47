"""The host's files, devices and settings, sought from inside as root."""

import os
import pathlib
import subprocess

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers

DEVICES = {"fd", "full", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty", "urandom", "zero"}


def test_a_file_of_the_host_is_not_there(sandbox: Sandbox, canary: pathlib.Path) -> None:
    """Without its own root, `cat` shows the secret."""
    assert "secret of the host" in subprocess.run(["cat", canary], capture_output=True, text=True).stdout
    assert inside.run(sandbox, f"cat {canary}").exit_code != 0
    assert "secret of the host" not in inside.run(sandbox, "cat /root/* 2>/dev/null; true").stdout
    assert not sandbox.files.exists(str(canary))


@pytest.mark.parametrize("way", ["/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/root/../../.."])
def test_no_way_through_proc_to_the_root_of_the_host(sandbox: Sandbox, canary: pathlib.Path, way: str) -> None:
    """Without the pivot, /proc/1/root is the host's; without a pid namespace, /proc/1 is the host's init."""
    assert inside.run(sandbox, f"cat {way}{canary}").exit_code != 0
    roots = inside.run(sandbox, f"cat /proc/[0-9]*/root{canary} /proc/[0-9]*/cwd{canary}; true")
    assert "secret of the host" not in roots.stdout


def test_climbing_and_chroot_do_not_lead_out(sandbox: Sandbox, canary: pathlib.Path) -> None:
    """The classic way out of a chroot: a second chroot below a directory that one still stands in."""
    source = f"""
os.makedirs("/tmp/jail", exist_ok=True)
here = os.open("/", os.O_RDONLY)
os.chroot("/tmp/jail")
os.fchdir(here)
for _ in range(100):
    os.chdir("..")
os.chroot(".")
print(json.dumps([os.path.exists({str(canary)!r}), sorted(os.listdir("/"))]))
"""
    found, names = inside.python(sandbox, source)
    assert not found
    assert names == sorted(sandbox.commands.run("ls -A /").stdout.split())


def test_the_hosts_users_are_not_there(sandbox: Sandbox) -> None:
    shadow = inside.run(sandbox, "cat /etc/shadow").stdout
    assert "root:" in shadow
    if os.access("/etc/shadow", os.R_OK):
        assert shadow != pathlib.Path("/etc/shadow").read_text()
    people = {path.name for path in pathlib.Path("/home").iterdir()} - {"user"}
    assert not people & set(inside.run(sandbox, "ls -A /home").stdout.split())


def test_the_servers_folder_is_not_there(sandbox: Sandbox, server: servers.Server) -> None:
    """Neither the folder, nor its name in anything that is mounted."""
    assert inside.run(sandbox, f"ls {server.data_dir}").exit_code != 0
    told = inside.run(sandbox, "cat /proc/self/mountinfo /proc/self/mounts /proc/1/mountinfo").stdout
    assert "/ / " in told
    for part in (str(server.data_dir), str(servers.ROOT), "glovebox0", "/build/"):
        assert part not in told


def test_descriptors_of_the_launcher_are_not_inherited(sandbox: Sandbox) -> None:
    """CVE-2024-21626: a directory of the host left open as /proc/self/fd/7, or as the working directory."""
    listing = (
        "import os\nfor n in range(200):\n  p = f'/proc/self/fd/{n}'\n  if os.path.lexists(p): print(os.readlink(p))"
    )
    in_context = "".join(sandbox.run_code(listing).logs.stdout)
    in_command = inside.run(sandbox, "ls -l /proc/self/fd; ls -l /proc/self/cwd").stdout
    for shown in (in_context, in_command):
        assert "pipe:" in shown or "socket:" in shown
        assert "/mnt/" not in shown
        assert "glovebox" not in shown
    listed = [line.split(" -> ")[1] for line in in_command.splitlines() if "->" in line]
    assert all(target.startswith(("pipe:", "/dev/null", "/proc/", "/home/user", "/root")) for target in listed), listed


def test_devices_are_the_named_ones(sandbox: Sandbox) -> None:
    """No /dev/mem, /dev/kmsg, /dev/kvm, /dev/vsock, /dev/fuse, disks; the host has most of them."""
    assert set(inside.run(sandbox, "ls -A /dev").stdout.split()) == DEVICES
    assert set(os.listdir("/dev")) - DEVICES


def test_device_nodes_cannot_be_made_or_do_not_open(sandbox: Sandbox) -> None:
    """Block 254:0 is this host's disk; character 1:1 /dev/mem; 10:232 /dev/kvm. On the host mknod and open both work."""
    source = """
import stat
seen = []
for folder in ("/tmp", "/dev/shm", "/dev", "/root", "/dev/pts"):
    for kind, major, minor in ((stat.S_IFBLK, 254, 0), (stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 232)):
        node = f"{folder}/node-{major}-{minor}"
        made = tried(os.mknod, node, kind | 0o666, os.makedev(major, minor))
        seen.append([made, tried(os.open, node, os.O_RDWR)])
print(json.dumps(seen))
"""
    for made, opened in inside.python(sandbox, source):
        assert opened != "done"
        assert made in ("EPERM", "EROFS", "EACCES")


@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/randomize_va_space",
        "/proc/sys/vm/overcommit_memory",
        "/proc/sys/fs/binfmt_misc/register",
        "/proc/sys/net/ipv4/ip_forward",
        "/proc/sys/user/max_user_namespaces",
        "/proc/sysrq-trigger",
        "/proc/sys/kernel/random/boot_id",
        "/proc/1/oom_score_adj",
        "/proc/1/uid_map",
        "/proc/1/setgroups",
        "/proc/timer_list",
        "/proc/acpi/wakeup",
        "/proc/irq/default_smp_affinity",
        "/proc/mtrr",
        "/sys/kernel/uevent_helper",
        "/sys/kernel/debug/tracing/tracing_on",
        "/sys/devices/system/cpu/cpu1/online",
        "/sys/fs/cgroup/release_agent",
        "/sys/fs/cgroup/memory/release_agent",
        "/sys/power/state",
        "/sys/firmware/efi/efivars",
    ],
)
def test_settings_of_the_kernel_cannot_be_written(sandbox: Sandbox, path: str) -> None:
    """On the host, root opens most of these for writing; what looks writable inside must be the empty /dev/null cover."""
    source = f"""
import stat
path = {path!r}
null = os.path.exists(path) and stat.S_ISCHR(os.stat(path).st_mode) and os.stat(path).st_rdev == os.makedev(1, 3)
print(json.dumps("null" if null else tried(os.open, path, os.O_WRONLY)))
"""
    before = pathlib.Path(path).read_bytes() if path.startswith("/proc/sys/") and os.path.exists(path) else None
    assert inside.python(sandbox, source) in ("null", "EROFS", "EACCES", "EPERM", "ENOENT", "EISDIR", "ENOTDIR")
    if before is not None and "random" not in path:
        assert pathlib.Path(path).read_bytes() == before


def test_settings_can_be_written_on_the_host() -> None:
    """The probe above can fail."""
    if os.geteuid() != 0:
        pytest.skip("needs root on the host")
    source = "print(json.dumps(tried(os.open, '/proc/sys/kernel/core_pattern', os.O_WRONLY)))"
    assert inside.on_host(source) == "done"


@pytest.mark.parametrize(
    "path", ["/proc/kcore", "/proc/kmsg", "/proc/kallsyms", "/dev/mem", "/dev/kmsg", "/proc/1/mem"]
)
def test_memory_of_the_kernel_and_of_the_agent_cannot_be_read(sandbox: Sandbox, path: str) -> None:
    source = f"""
def look():
    with open({path!r}, "rb") as file:
        return len(file.read(64))
try:
    print(look())
except OSError as error:
    print(json.dumps(errno.errorcode[error.errno]))
"""
    assert inside.python(sandbox, source) in (0, "EPERM", "EACCES", "ENOENT")


def test_the_programs_of_the_agent_cannot_be_rewritten(sandbox: Sandbox) -> None:
    """CVE-2019-5736: /proc/<pid>/exe opened for writing. What root writes over lands in its own copy."""
    target = inside.run(sandbox, "readlink -f /opt/glovebox/bin/python").stdout.strip()
    source = """
seen = [tried(os.open, f"/proc/{pid}/exe", os.O_WRONLY) for pid in ("1", "self", os.getppid())]
print(json.dumps(seen))
"""
    first, *others = inside.python(sandbox, source)
    assert first == "EACCES"
    assert all(one in ("ETXTBSY", "EACCES", "EROFS") for one in others)
    host = pathlib.Path(target)
    before = host.read_bytes()[:64] if host.exists() else None
    inside.run(sandbox, f"rm -f {target}; echo broken > {target}")
    assert before is None or host.read_bytes()[:64] == before
    with Sandbox.create(timeout=60) as other:
        assert other.run_code("40 + 2").text == "42"


def test_what_root_changes_in_usr_changes_nobody_elses(sandbox: Sandbox, neighbour: Sandbox) -> None:
    """/usr is the host's own, below a writable layer: without it, this would break the host."""
    host = pathlib.Path("/usr/bin/env")
    before, inode = host.read_bytes(), host.stat().st_ino
    changed = inside.run(
        sandbox,
        "rm /usr/bin/env && echo evil > /usr/bin/env && echo more >> /usr/bin/true; chmod 777 /usr/bin/true;"
        " mkdir /usr/evil && touch /usr/evil/x && rm -rf /usr/share/doc && cat /usr/bin/env",
    )
    assert changed.stdout == "evil\n"
    assert (host.read_bytes(), host.stat().st_ino) == (before, inode)
    assert not pathlib.Path("/usr/evil").exists()
    assert inside.run(neighbour, "ls /usr/evil; /usr/bin/env true && /usr/bin/true").exit_code == 0
    assert "evil" not in inside.run(neighbour, "head -c 20 /usr/bin/env").stdout


def test_a_template_layer_is_read_only_even_where_root_below_owns_it(sandbox: Sandbox, server: servers.Server) -> None:
    inside.run(sandbox, "echo mine > /etc/passwd; rm -rf /opt/glovebox /etc/skel; echo x > /root/x")
    with Sandbox.create(timeout=60) as other:
        assert "root:x:0" in inside.run(other, "cat /etc/passwd").stdout
        assert inside.run(other, "ls /root/x").exit_code != 0
    template = next(servers.TEMPLATES.glob("base*"), None)
    assert template is None or not list(template.glob("**/root/x"))


@pytest.mark.parametrize("link", ["symbolic", "folder", "through proc"])
def test_links_do_not_lead_the_file_calls_out(sandbox: Sandbox, canary: pathlib.Path, link: str) -> None:
    """The server reads and writes files through the guest agent only: a link resolves inside. If it resolved on the host,
    the canary would be read, or written (its fixture looks)."""
    made = {
        "symbolic": f"ln -s {canary} /tmp/link",
        "folder": f"ln -s {canary.parent} /tmp/folder && ln -s folder/{canary.name} /tmp/link",
        "through proc": f"ln -s /proc/self/root/../..{canary} /tmp/link",
    }[link]
    assert inside.run(sandbox, made).exit_code == 0
    with pytest.raises(Exception, match="not found|does not exist|no such"):
        sandbox.files.read("/tmp/link", user="root")
    sandbox.files.write("/tmp/link", "from inside", user="root")
    assert canary.read_text() == "secret of the host"
    assert sandbox.files.read("/tmp/link", user="root") == "from inside"


def test_hard_links_to_layers_are_of_the_copy(sandbox: Sandbox) -> None:
    host = pathlib.Path("/usr/bin/env")
    before, links = host.read_bytes(), host.stat().st_nlink
    inside.run(sandbox, "ln /usr/bin/env /usr/bin/second; echo evil > /usr/bin/second")
    assert (host.read_bytes(), host.stat().st_nlink) == (before, links)


@pytest.mark.parametrize("path", ["../../../../../etc/shadow", "/../../etc/shadow", "/home/user/../../etc/shadow"])
def test_dots_do_not_lead_the_file_calls_out(sandbox: Sandbox, path: str) -> None:
    try:
        read = sandbox.files.read(path, user="root")
    except Exception as error:  # refused is well, too
        assert "not" in str(error) or "path" in str(error)
        return
    assert read == inside.run(sandbox, "cat /etc/shadow").stdout


def test_nothing_was_mounted_on_the_host(sandbox: Sandbox) -> None:
    mounts = pathlib.Path("/proc/self/mountinfo").read_text()
    assert sandbox.sandbox_id not in mounts
    pid = posture.pids_of(sandbox.sandbox_id)[0]
    assert "overlay" in pathlib.Path(f"/proc/{pid}/mountinfo").read_text()
    assert "shared:" not in pathlib.Path(f"/proc/{pid}/mountinfo").read_text()
