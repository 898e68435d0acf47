"""Seccomp profiles in Docker's format: what is read, what is refused."""

import json
import os

import pytest

from glovebox import errors
from glovebox_server.linux import seccomp as compiler
from glovebox_server.policy import seccomp

MINIMAL = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "syscalls": [
        {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["bpf"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
        {
            "names": ["socket"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
        },
    ],
}


def test_conditions_on_capabilities_and_architecture_are_resolved() -> None:
    plain = seccomp.parse(MINIMAL, architecture="aarch64")
    assert [rule.name for rule in plain.rules] == ["read", "write", "bpf", "socket"]
    privileged = seccomp.parse(MINIMAL, architecture="x86_64", capabilities=["CAP_SYS_ADMIN"])
    assert [rule.name for rule in privileged.rules] == ["read", "write", "mount", "arch_prctl", "socket"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"defaultAction": "SCMP_ACT_PARTY"}, "defaultAction"),
        ({"syscalls": "all"}, "syscalls"),
        ({"syscalls": [{"names": ["read"], "action": "ALLOW"}]}, r"syscalls\[0\]"),
        ({"syscalls": [{"names": [], "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\]"),
        ({"syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args": [{"op": "<"}]}]}, r"syscalls\[0\]"),
        ({"syscalls": [{"names": ["x"], "action": "SCMP_ACT_ERRNO", "errnoRet": -1}]}, "errnoRet"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], named: str) -> None:
    with pytest.raises(errors.InvalidRequestError, match=named):
        seccomp.parse({**MINIMAL, **change}, architecture="x86_64")


def test_the_default_profile_denies_what_is_dangerous() -> None:
    allowed = {r.name for r in seccomp.default("x86_64").rules if r.action == "SCMP_ACT_ALLOW" and not r.comparisons}
    dangerous = (
        "mount umount2 pivot_root move_mount open_tree fsopen unshare setns bpf perf_event_open userfaultfd keyctl "
        "add_key request_key init_module finit_module delete_module kexec_load reboot swapon iopl ioperm quotactl acct "
        "settimeofday clock_settime io_uring_setup io_uring_enter modify_ldt open_by_handle_at lookup_dcookie "
        "nfsservctl vmsplice kcmp pidfd_getfd clone3 clone socket personality syslog sethostname"
    )
    assert allowed.isdisjoint(dangerous.split())
    assert {"read", "execve", "mmap", "futex", "fork", "ptrace", "chroot"} <= allowed


def test_names_unknown_to_libseccomp_are_left_to_the_default() -> None:
    document = {**MINIMAL, "syscalls": [*MINIMAL["syscalls"], {"names": ["brandnew"], "action": "SCMP_ACT_ALLOW"}]}
    program = compiler.compile_profile(seccomp.parse(document, architecture=os.uname().machine))
    assert len(program) % 8 == 0
    assert program == compiler.compile_profile(seccomp.parse(MINIMAL, architecture=os.uname().machine))


def test_names_unknown_to_libseccomp_are_refused_where_they_would_be_let_through() -> None:
    document = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["brandnew"], "action": "SCMP_ACT_ERRNO"}],
    }
    with pytest.raises(errors.InvalidRequestError, match="brandnew"):
        compiler.compile_profile(seccomp.parse(document, architecture=os.uname().machine))


def test_a_profile_of_dockers_own_compiles() -> None:
    text = json.dumps(
        {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 1,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["accept", "exit", "_llseek"], "action": "SCMP_ACT_ALLOW"},
                {
                    "names": ["personality"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}],
                },
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}],
                },
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        }
    )
    profile = seccomp.parse(json.loads(text), architecture=os.uname().machine)
    assert compiler.compile_profile(profile)
