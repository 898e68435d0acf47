"""What this host can do for the namespace runtime: tried out in a throw-away process, not guessed."""

import asyncio
import os
import shutil
import sys

from glovebox import errors
from glovebox_server.contract import runtime
from glovebox_server.linux import cgroups
from glovebox_server.runtimes.namespace import advice, ids

_TIMEOUT_S = 10.0

_TRIAL = """
import os
from glovebox_server.linux import syscalls
user, group = os.geteuid(), os.getegid()
flags = (syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC
         | syscalls.CLONE_NEWUTS | syscalls.CLONE_NEWCGROUP)
syscalls.unshare(syscalls.CLONE_NEWUSER | flags)
for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
    with open("/proc/self/" + name, "w") as file:
        file.write(text)
print("userns", flush=True)
if os.fork() == 0:
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("tmpfs", "/tmp", "tmpfs")
    for name in ("lower", "upper", "work", "proc"):
        os.mkdir("/tmp/" + name)
    print("tmpfs")
    layers = "lowerdir=/tmp/lower,upperdir=/tmp/upper,workdir=/tmp/work,userxattr"
    syscalls.mount("overlay", "/tmp/lower", "overlay", 0, layers)
    print("overlay")
    syscalls.mount("proc", "/tmp/proc", "proc")
    print("proc", flush=True)
    os._exit(0)
os.wait()
"""

_REMEDIES = {
    "userns": (
        "user namespaces for this user",
        "sysctl -w user.max_user_namespaces=65536 kernel.unprivileged_userns_clone=1 "
        "kernel.apparmor_restrict_unprivileged_userns=0",
    ),
    "tmpfs": ("mounting inside a user namespace", "run outside of a container, or as root"),
    "overlay": ("overlayfs inside a user namespace (Linux 5.11 or later)", "modprobe overlay"),
    "proc": ("an unmasked /proc (a container may mask it)", "run outside of a container"),
}


async def probe(
    boundary: str, hierarchy: cgroups.Hierarchy | None, no_control_groups: str, capabilities: frozenset[str]
) -> runtime.Probe:
    """See contract.runtime.Runtime.probe."""
    reached = await _try()
    missing, fixes = [], []
    notes = advice.advice(hierarchy.version if hierarchy else None)
    for step, (what, fix) in _REMEDIES.items():
        if step not in reached:
            missing.append(what)
            fixes.append(fix)
            break
    if os.geteuid() != 0:
        for program in ("newuidmap", "newgidmap"):
            if shutil.which(program) is None:
                missing.append(program)
                fixes.append("apt-get install uidmap")
        try:
            ids.take_window()
        except errors.UnsupportedError as error:
            missing.append("a subordinate id range")
            fixes.append(str(error))
        notes.append("without root, the files of /usr belong to nobody inside, so that sudo does not work there")
    if no_control_groups:
        notes.append(f"limits hold for each process, not for a sandbox as a whole: {no_control_groups}")
    if "pause" not in capabilities:
        notes.append("sandboxes cannot be paused: there is no freezer among the control groups we may use")
    return runtime.Probe(
        "namespace", not missing, boundary, tuple(missing), tuple(dict.fromkeys(fixes)), tuple(notes), capabilities
    )


async def _try() -> set[str]:
    """The steps that worked."""
    trial = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _TRIAL,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            output, _ = await trial.communicate()
    except TimeoutError:
        trial.kill()
        output, _ = await trial.communicate()
    return set(output.decode().split())
