"""System calls that open the kernel's wider surface: refused to root inside, whatever program makes them.

The probes pass arguments that are wrong on purpose: a kernel that gets to see them says EINVAL, EFAULT or EBADF, and only
the filter (or a missing privilege) says EPERM or ENOSYS. `test_without_the_filter` sees that they are told apart.
"""

import os
import platform
import signal

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import inside, posture, servers

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers below are x86-64's")

EPERM, ENOSYS, EAFNOSUPPORT, EPROTONOSUPPORT = 1, 38, 97, 93
NEW = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "net": 0x40000000,
    "time": 0x00000080,
}

#: name -> number and arguments; harmless to any kernel that takes them.
CALLS: dict[str, tuple[int, ...]] = {
    "mount": (165, 0, 0, 0, 0, 0),
    "umount2": (166, 0, 0x7FFFFFFF),
    "pivot_root": (155, 0, 0),
    "open_tree": (428, -1, 0, -1),
    "move_mount": (429, -1, 0, -1, 0, -1),
    "fsopen": (430, 0, -1),
    "fsconfig": (431, -1, 99, 0, 0, 0),
    "fsmount": (432, -1, -1, -1),
    "fspick": (433, -1, 0, -1),
    "mount_setattr": (442, -1, 0, -1, 0, 0),
    "statmount": (457, 0, 0, 0, -1),
    "listmount": (458, 0, 0, 0, -1),
    "open_by_handle_at": (304, -1, 0, 0),
    "name_to_handle_at": (303, -1, 0, 0, 0, -1),
    "setns": (308, -1, 0),
    "clone3": (435, 0, 0),
    "init_module": (175, 0, 0, 0),
    "finit_module": (313, -1, 0, 0),
    "delete_module": (176, 0, 0),
    "kexec_load": (246, 0, 99999, 0, 0),
    "kexec_file_load": (320, -1, -1, 0, 0, -1),
    "reboot": (169, 0, 0, 0, 0),
    "swapon": (167, 0, -1),
    "swapoff": (168, 0),
    "iopl": (172, 99),
    "ioperm": (173, 0x7FFFFFFFFFFF, 1, 1),
    "quotactl": (179, -1, 0, 0, 0),
    "quotactl_fd": (443, -1, -1, 0, 0),
    "acct": (163, 1),
    "sync": (162,),
    "settimeofday": (164, 1, 0),
    "clock_settime": (227, 99, 0),
    "sethostname": (170, 0, -1),
    "setdomainname": (171, 0, -1),
    "syslog": (103, 99, 0, 0),
    "bpf": (321, -1, 0, 0),
    "perf_event_open": (298, 0, -1, -1, -1, 0),
    "userfaultfd": (323, -1),
    "io_uring_setup": (425, 0, 0),
    "io_uring_enter": (426, -1, 0, 0, 0, 0),
    "io_uring_register": (427, -1, 0, 0, 0),
    "io_setup": (206, 0, 0),
    "io_submit": (209, 0, 0, 0),
    "keyctl": (250, -1, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "request_key": (249, 0, 0, 0, 0),
    "lookup_dcookie": (212, 0, 0, 0),
    "nfsservctl": (180, 0, 0, 0),
    "vmsplice": (278, -1, 0, 0, 0),
    "kcmp": (312, 0, 0, 99, 0, 0),
    "pidfd_getfd": (438, -1, -1, 0),
    "process_mrelease": (448, -1, -1),
    "modify_ldt": (154, 0, 0, 0),
    "memfd_secret": (447, -1),
    "fanotify_init": (300, -1, -1),
    "fanotify_mark": (301, -1, -1, 0, -1, 0),
    "migrate_pages": (256, -1, 0, 0, 0),
    "move_pages": (279, -1, 0, 0, 0, 0, 0),
    "remap_file_pages": (216, 1, 0, 0, 0, 0),
    "uselib": (134, 0),
    "ustat": (136, -1, 0),
    "sysfs": (139, 99),
}


def probe(calls: dict[str, tuple[int, ...]]) -> str:
    """A program that makes these calls and prints what came of each."""
    return f"print(json.dumps({{name: call(*one) for name, one in {calls!r}.items()}}))"


@pytest.mark.parametrize("name", CALLS)
def test_refused_to_root(sandbox: Sandbox, name: str) -> None:
    """Without the filter: EINVAL, EFAULT, EBADF, or success."""
    seen = inside.python(sandbox, probe({name: CALLS[name]}))
    assert -seen[name] in (EPERM, ENOSYS)


def test_without_the_filter_these_calls_reach_the_kernel() -> None:
    """The probes can fail: on the host, as root, none says EPERM, and few say ENOSYS (calls this kernel does not have)."""
    if os.geteuid() != 0:
        pytest.skip("needs root on the host")
    seen = inside.on_host(probe(CALLS))
    assert [name for name, result in seen.items() if -result == EPERM] == []
    assert len([name for name, result in seen.items() if -result == ENOSYS]) <= len(CALLS) // 4


@pytest.mark.parametrize("kind", NEW)
def test_unshare_is_refused(sandbox: Sandbox, kind: str) -> None:
    """Without the filter unshare(CLONE_NEWUSER) works for anybody, and the rest in the new user namespace."""
    source = f"print(call(272, {NEW[kind]}))"
    assert -inside.python(sandbox, source) == EPERM
    assert -inside.python(sandbox, source, user="user") == EPERM
    if os.geteuid() == 0:
        assert inside.on_host(source) == 0


@pytest.mark.parametrize("kind", [name for name in NEW if name != "time"])
def test_clone_into_a_new_namespace_is_refused(sandbox: Sandbox, kind: str) -> None:
    """clone(2) reads CLONE_NEWTIME's bit as a part of the exit signal, so that there is nothing to refuse for time."""
    source = f"result = call(56, {NEW[kind] | signal.SIGCHLD}, 0, 0, 0, 0)\nif result == 0: os._exit(0)\nprint(result)"
    assert inside.python(sandbox, source) in (-EPERM, -ENOSYS)
    if os.geteuid() == 0:
        assert inside.on_host(source) > 0


def test_flags_hidden_in_high_bits_are_refused(sandbox: Sandbox) -> None:
    source = "r = call(56, (1 << 40) | 0x10000011, 0, 0, 0, 0)\nif r == 0: os._exit(0)\nprint(r)"
    assert inside.python(sandbox, source) in (-EPERM, -ENOSYS)


@pytest.mark.parametrize("persona", [0x0040000, 0x0400000, 0x0100000, 0x0200000, 0x100000008, 0x4000000])
def test_odd_personalities_are_refused(sandbox: Sandbox, persona: int) -> None:
    """ADDR_NO_RANDOMIZE, READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, ADDR_COMPAT_LAYOUT, high bits, STICKY_TIMEOUTS."""
    source = f"print(call(135, {persona}))"
    assert -inside.python(sandbox, source) in (EPERM, ENOSYS)
    assert inside.on_host(source) >= 0


def test_every_exotic_socket_family_is_refused(sandbox: Sandbox) -> None:
    """AF_PACKET, AF_ALG, AF_VSOCK, AF_KEY, AF_BLUETOOTH, AF_XDP and all the others; the host's kernel has some."""
    source = (
        "kinds = [(f + high, t, 0) for f in range(48) for t in (1, 2, 3, 5) for high in (0, 1 << 32)\n"
        "         if f not in (0, 1, 2, 10, 16)]\n"
        "print(json.dumps([[*kind, call(41, *kind)] for kind in kinds]))"
    )
    assert {-result for *_, result in inside.python(sandbox, source)} == {EAFNOSUPPORT}
    assert {family for family, _, _, result in inside.on_host(source) if result >= 0} & {17, 38, 40}


def test_raw_sockets_are_refused(sandbox: Sandbox) -> None:
    source = (
        "print(json.dumps([call(41, *kind) for kind in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (2, 2, 1), (10, 2, 58))]))"
    )
    assert all(result < 0 for result in inside.python(sandbox, source))
    if os.geteuid() == 0:
        assert inside.on_host(source)[0] >= 0


def test_netlink_speaks_only_of_routes(sandbox: Sandbox) -> None:
    source = "print(json.dumps([call(41, 16, 3, protocol) for protocol in range(24)]))"
    route, *others = inside.python(sandbox, source)
    assert route >= 0
    assert {-result for result in others} == {EPROTONOSUPPORT}
    assert any(result >= 0 for result in inside.on_host(source)[1:])


#: Writes `mov eax, <number>; int 0x80; ret` to executable memory and calls it: a 32-bit system call from a 64-bit program.
_INT80 = """
import mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write(b"\\xb8" + (20).to_bytes(4, "little") + b"\\xcd\\x80\\xc3")
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(at)())
"""


def test_32_bit_calls_kill(sandbox: Sandbox) -> None:
    """The filter judges numbers of x86-64; an i386 getpid is `mkdir` to it. Without it, this prints a pid."""
    ended = inside.program(sandbox, _INT80)
    assert ended.stdout == ""
    assert "bad system call" in str(ended.error), ended


def test_x32_numbers_kill(sandbox: Sandbox) -> None:
    """Without the filter: ENOSYS or a pid, and the program goes on."""
    source = "print(call(0x40000000 | 39))"
    ended = inside.program(sandbox, source)
    assert ended.stdout == ""
    assert "bad system call" in str(ended.error), ended
    assert isinstance(inside.on_host(source), int)


def test_the_filter_holds_in_setuid_programs(sandbox: Sandbox) -> None:
    """sudo makes `user` root inside; what it starts is as filtered as before."""
    ended = inside.run(sandbox, "sudo -n grep -E '^(Seccomp|Uid)' /proc/self/status", user="user")
    assert "Uid:\t0\t0\t0\t0" in ended.stdout
    assert "Seccomp:\t2" in ended.stdout
    assert inside.run(sandbox, "sudo -n unshare --user true", user="user").exit_code != 0
    assert inside.run(sandbox, "sudo -n mount -t tmpfs none /mnt", user="user").exit_code != 0


def test_a_setuid_root_program_gains_nothing_outside(sandbox: Sandbox) -> None:
    """Its effective user is 0 inside; on the host that is an id of the sandbox's own range. Without a user namespace: 0."""
    made = inside.run(sandbox, "cp /usr/bin/sleep /tmp/rootsleep && chmod 4755 /tmp/rootsleep && ls -l /tmp/rootsleep")
    assert "-rwsr-xr-x" in made.stdout
    sandbox.commands.run("exec /tmp/rootsleep 60", user="user", background=True).disconnect()

    def effective() -> list[tuple[int, ...]]:
        found = []
        for pid in posture.pids_of(sandbox.sandbox_id):
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"rootsleep" in file.read().split(b"\0")[0]:
                    found.append(posture.read(pid).uids)
        return found

    servers.wait_until(effective, 20)
    ((real, effective_id, *_),) = effective()
    ((_, first, count),) = posture.read(posture.pids_of(sandbox.sandbox_id)[0]).uid_map
    assert effective_id == first
    assert real == first + 1000
    assert first >= 0x7000_0000
    assert first + count <= 2**32


def test_file_capabilities_gain_nothing(sandbox: Sandbox) -> None:
    """cap_sys_admin on a file: refused, or without effect, for the bounding set does not have it."""
    source = """
import shutil, struct, subprocess
shutil.copy("/usr/bin/cat", "/tmp/cap")
everything = struct.pack("<5I", 0x02000001, 0xFFFFFFFF, 0, 0x1FF, 0)
put = tried(os.setxattr, "/tmp/cap", "security.capability", everything)
os.chmod("/tmp/cap", 0o755)
shell = ["sh", "-c", "/tmp/cap /proc/self/status"]
got = subprocess.run(shell, capture_output=True, text=True, user="user", group="user")
print(json.dumps([put, [line for line in got.stdout.splitlines() if line.startswith(("CapPrm", "CapEff"))]]))
"""
    put, lines = inside.python(sandbox, source)
    assert put in ("done", "EPERM")  # done: execve says EPERM, for the effective set cannot be given (capabilities(7))
    for line in lines:
        assert int(line.split()[1], 16) & ~0xA00405FB == 0
