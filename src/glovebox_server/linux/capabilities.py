"""Linux capabilities by name, and dropping them for good (capabilities(7)). Python 3.9+: the zygote uses it inside."""

from __future__ import annotations

from collections.abc import Iterable

from glovebox_server.linux import syscalls

NUMBERS = {
    name: number
    for number, name in enumerate(
        "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service "
        "net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct "
        "sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control "
        "setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon bpf "
        "checkpoint_restore".split()
    )
}


def mask(names: Iterable[str]) -> int:
    """The bits of these capabilities."""
    return sum(1 << NUMBERS[name] for name in names)


def bound(keep: Iterable[str]) -> None:
    """Take everything but `keep` out of the bounding set: no program started from here can ever gain it.

    Also capabilities that this list does not know yet: the kernel answers EINVAL past its last one.
    """
    kept = {NUMBERS[name] for name in keep}
    for number in range(64):
        if number not in kept and not syscalls.drop_bounding_capability(number) and number >= len(NUMBERS):
            return
