"""Compiles a resolved seccomp profile to a BPF program with libseccomp (through pyseccomp)."""

import errno
import os
import tempfile

import pyseccomp

from glovebox import errors
from glovebox_server.model import seccomp

_ACTIONS = {
    "SCMP_ACT_ALLOW": pyseccomp.ALLOW,
    "SCMP_ACT_KILL": pyseccomp.KILL,
    "SCMP_ACT_KILL_THREAD": pyseccomp.KILL,
    "SCMP_ACT_KILL_PROCESS": pyseccomp.KILL_PROCESS,
    "SCMP_ACT_LOG": pyseccomp.LOG,
    "SCMP_ACT_TRAP": pyseccomp.TRAP,
}
_PERMISSIVE = frozenset(("SCMP_ACT_ALLOW", "SCMP_ACT_LOG"))
_UNKNOWN = -1  # __NR_SCMP_ERROR
_CTL_OPTIMIZE = 8  # SCMP_FLTATR_CTL_OPTIMIZE (seccomp_attr_set(3)), which pyseccomp does not name
_OPERATORS = {
    f"SCMP_CMP_{name}": getattr(pyseccomp, name) for name in ("EQ", "NE", "LT", "LE", "GT", "GE", "MASKED_EQ")
}


def compile_profile(profile: seccomp.Profile) -> bytes:
    """The profile as a BPF program for this machine's own architecture; calls of any other one kill the process.

    Names that this libseccomp does not know are left out where the default denies, since they stay denied, and refused
    where it does not. A rule with the profile's default action says nothing and is left out (libseccomp refuses it).

    Raises InvalidRequestError.
    """
    compiled = pyseccomp.SyscallFilter(_action(profile.default_action, profile.default_errno))
    compiled.set_attr(pyseccomp.Attr.ACT_BADARCH, pyseccomp.KILL_PROCESS)
    # Without no_new_privs: the filter is installed with CAP_SYS_ADMIN in the sandbox's user namespace, so that
    # setuid programs (sudo) still work, which gain nothing outside it.
    compiled.set_attr(pyseccomp.Attr.CTL_NNP, 0)
    # A binary tree instead of a list: the kernel runs the program once for every system call there is when it is
    # installed (to cache those always allowed), which is a part of every sandbox's start.
    compiled.set_attr(_CTL_OPTIMIZE, 2)
    for rule in profile.rules:
        _add(compiled, rule, profile)
    with tempfile.TemporaryFile() as file:
        compiled.export_bpf(file)
        return os.pread(file.fileno(), 1 << 20, 0)


def _add(compiled: pyseccomp.SyscallFilter, rule: seccomp.Rule, profile: seccomp.Profile) -> None:
    if rule.action == profile.default_action and rule.errno == profile.default_errno:
        return
    if pyseccomp.resolve_syscall(pyseccomp.system_arch(), rule.name) == _UNKNOWN:
        if profile.default_action in _PERMISSIVE:
            raise errors.InvalidRequestError(
                f"seccomp profile: this libseccomp does not know the system call {rule.name}, which would be let through"
            )
        return
    arguments = [pyseccomp.Arg(c.index, _OPERATORS[c.operator], c.value, c.value_two) for c in rule.comparisons]
    try:
        compiled.add_rule(_action(rule.action, rule.errno), rule.name, *arguments)
    except OSError as error:
        if error.errno == errno.EDOM:  # a call of another architecture only
            return
        raise errors.InvalidRequestError(f"seccomp profile: the rule for {rule.name} cannot be compiled") from error


def _action(name: str, code: int) -> int:
    return int(pyseccomp.ERRNO(code) if name == "SCMP_ACT_ERRNO" else _ACTIONS[name])
