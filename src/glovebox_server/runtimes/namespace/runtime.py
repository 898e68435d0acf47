"""The namespace runtime: a sandbox is one fork of a warm zygote into namespaces of its own.

    create ── take a slot (ids) ── ask the zygote to fork ── make a control group, map the layers to the slot's ids, hand in
           ◀── "ready", with the new process's pid on the host (the kernel's word, not the guest's)

What this process does needs root only for four things: control groups, mapping layers, /dev, id maps of the zygote.
"""

import asyncio
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import socket
import struct
from collections.abc import Collection, Mapping
from typing import Any

from glovebox import errors
from glovebox_server.contract import runtime
from glovebox_server.linux import cgroups, processes, syscalls
from glovebox_server.linux import seccomp as compiler
from glovebox_server.model import ids, sandbox, template
from glovebox_server.policy import seccomp
from glovebox_server.runtimes.namespace import devices, groups, instance, networks, probing, slots, waiting, zygotes

_READY_TIMEOUT_S = 20.0
_SANDBOXES = "sandboxes"
_ZYGOTES = "zygotes"
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid (unix(7), SCM_CREDENTIALS)


@dataclasses.dataclass(frozen=True, eq=False)
class _Warm:
    """A zygote, and what is ready for its next sandboxes."""

    zygote: zygotes.Zygote
    slots: slots.Slots
    networks: networks.Networks

    async def let_go(self) -> None:
        await self.slots.close()
        await self.networks.close()


class NamespaceRuntime:
    """See contract.runtime.Runtime."""

    name = "namespace"

    def __init__(self, data_dir: pathlib.Path) -> None:
        self._zygote_dir = data_dir / "zygotes"
        self._socket_dir = data_dir / "links"
        self._mapped = os.geteuid() == 0
        self._own_devices = self._mapped and devices.can_be_made()
        own = hashlib.sha256(str(data_dir.resolve()).encode()).hexdigest()[:12]
        found = cgroups.detect(f"glovebox-{own}")
        self._hierarchy = None if isinstance(found, str) else found
        self._no_hierarchy = found if isinstance(found, str) else ""
        self._seccomp = b""
        self._warm: dict[str, _Warm] = {}  # by key
        self._current: dict[str, str] = {}  # template id -> key
        self._instances: dict[ids.SandboxId, instance.NamespaceInstance] = {}
        self._preparing = asyncio.Lock()

    async def probe(self) -> runtime.Probe:
        return await probing.probe(self._boundary(), self._hierarchy, self._no_hierarchy, self.capabilities)

    @property
    def capabilities(self) -> frozenset[str]:
        can_pause = self._hierarchy is not None and self._hierarchy.can_freeze
        return frozenset(("pause",)) if can_pause else frozenset()

    def _boundary(self) -> str:
        limits = (
            f"cgroup v{self._hierarchy.version} limits" if self._hierarchy else "per-process limits, no control group"
        )
        return (
            "Linux namespaces (user, pid, mount, net, ipc, uts, cgroup), default-deny seccomp, no capabilities on the "
            f"host, {limits}; shares the host's kernel"
        )

    # -- zygotes ------------------------------------------------------------------------------------------------------

    async def prepare(self, template: template.Template) -> None:
        async with self._preparing:
            if not self._seccomp:
                self._seccomp = compiler.compile_profile(seccomp.default(os.uname().machine))
            for folder in (self._zygote_dir, self._socket_dir):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            key = zygotes.key_of(template)
            if key not in self._warm:
                self._hold(await self._find_or_start(key, template))
            warm = self._warm[key]
            await warm.slots.fill()
            await warm.networks.fill()
            await warm.zygote.filter_with(self._seccomp)
            self._current[template.template_id] = key

    async def _find_or_start(self, key: str, template: template.Template) -> zygotes.Zygote:
        folder = self._zygote_dir / key
        found = await zygotes.Zygote.find(folder)
        if found is not None:
            return found
        group = self._hierarchy.create(_ZYGOTES, key) if self._hierarchy else None
        try:
            return await zygotes.Zygote.start(folder, key, template, group)
        except BaseException:
            if group is not None:
                await groups.remove(group)
            raise

    def _hold(self, zygote: zygotes.Zygote) -> None:
        self._warm[zygote.facts.key] = _Warm(zygote, slots.Slots(zygote), networks.Networks(zygote))

    async def _hold_found(self, key: str) -> bool:
        """Hold the zygote of this key if it lives. One at a time: a zygote obeys only who connected last."""
        async with self._preparing:
            if key not in self._warm and (found := await zygotes.Zygote.find(self._zygote_dir / key)) is not None:
                self._hold(found)
            return key in self._warm

    async def _end(self, warm: _Warm) -> None:
        """End the zygote; nothing when another call has. One at a time: the next one has the same folder and group."""
        key = warm.zygote.facts.key
        async with self._preparing:
            if self._warm.get(key) is not warm:
                return
            del self._warm[key]
            await warm.let_go()
            for held in list(self._instances.values()):
                # Whoever lives in it dies with it; a paused one could not, and the zygote would wait for it.
                if held.record()["zygote"] == key:
                    held.kill()
            await warm.zygote.end()
            if self._hierarchy:
                await groups.remove(self._hierarchy.group(_ZYGOTES, key))

    # -- sandboxes ----------------------------------------------------------------------------------------------------

    async def create(self, spec: sandbox.SandboxSpec, template: template.Template) -> runtime.Instance:
        if template.template_id not in self._current:
            raise errors.UnsupportedError(f"the template {template.template_id} is not prepared")
        warm = await self._warmed(template)
        try:
            made = await self._create(spec, template, warm)
        except (errors.SandboxGoneError, ProcessLookupError) as error:
            if await warm.zygote.lives():
                raise errors.UnsupportedError(f"the sandbox could not be made: {error}") from error
            # It has died, and with it all its sandboxes: a new one, once, or the one that another create has started.
            await self._end(warm)
            made = await self._create(spec, template, await self._warmed(template))
        self._instances[spec.sandbox_id] = made
        return made

    async def _warmed(self, template: template.Template) -> _Warm:
        """The template's zygote; a new one when the last has died."""
        warm = self._warm.get(self._current[template.template_id])
        if warm is None:
            await self.prepare(template)
            warm = self._warm[self._current[template.template_id]]
        return warm

    async def _create(
        self, spec: sandbox.SandboxSpec, template: template.Template, warm: _Warm
    ) -> instance.NamespaceInstance:
        if spec.resources.pids != warm.zygote.facts.pids:
            raise errors.UnsupportedError(
                f"{spec.resources.pids} processes: the limit is the template's ({warm.zygote.facts.pids}) in this runtime"
            )
        slot = await warm.slots.take()
        try:
            return await self._create_in(slot, warm, spec, template)
        except BaseException:
            try:
                await self._clear(spec.sandbox_id)
            finally:
                self._give_back(warm.slots, slot)
            raise

    async def _create_in(
        self, slot: slots.Slot, warm: _Warm, spec: sandbox.SandboxSpec, template: template.Template
    ) -> instance.NamespaceInstance:
        path, key = self._socket_path(spec.sandbox_id), warm.zygote.facts.key
        with contextlib.ExitStack() as stack:
            report, its_report = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            stack.enter_context(report)
            stack.enter_context(its_report)
            listener = stack.enter_context(zygotes.listen(path, socket.SOCK_STREAM))
            # Connected before there is anybody to accept: the agent finds it waiting, and says HELLO at once.
            link = zygotes.connect(path, socket.SOCK_STREAM)
            unless_made = stack.enter_context(contextlib.ExitStack())
            unless_made.callback(link.close)
            report.setblocking(False)
            report.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            request = self._request(slot, warm, spec, template)
            await warm.zygote.spawn(request, [its_report.fileno(), listener.fileno()])
            its_report.close()
            # From here on the zygote forks, on another core, while the rest is made.
            group = self._make_group(spec)
            self._hand_in(report, stack, slot, warm, template, group)
            who = processes.identify(await _await_ready(report))
            record = {"pid": who.pid, "start_time": who.start_time, "slot": slot.number, "zygote": key}
            made = instance.NamespaceInstance(
                spec.sandbox_id,
                self._boundary(),
                who,
                path,
                group,
                record,
                lambda: self._gone(spec.sandbox_id, warm.slots, slot),
                link,
            )
            unless_made.pop_all()
            return made

    def _hand_in(
        self,
        report: socket.socket,
        stack: contextlib.ExitStack,
        slot: slots.Slot,
        warm: _Warm,
        template: template.Template,
        group: cgroups.Group | None,
    ) -> None:
        """Send the new process what only we can make: its control groups, layers, /dev, network. `stack` closes ours."""
        fds = group.open_join() if group else []
        for fd in fds:
            stack.callback(os.close, fd)
        message = {"joins": len(fds), "devices": self._own_devices, "network": False}
        fds.append(slot.user_namespace)
        for layer in template.layers if self._mapped else ():
            fds.append(_map_layer(layer, slot.user_namespace))
            stack.callback(os.close, fds[-1])
        if self._own_devices:
            fds.append(devices.make())
            stack.callback(os.close, fds[-1])
        if (network := warm.networks.take()) is not None:
            message["network"] = True
            fds.append(network)
            stack.callback(os.close, network)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: `_await_ready` will say so
            socket.send_fds(report, [json.dumps(message).encode()], fds)

    def _request(
        self, slot: slots.Slot, warm: _Warm, spec: sandbox.SandboxSpec, template: template.Template
    ) -> dict[str, Any]:
        return {
            "sandbox_id": spec.sandbox_id,
            "hostname": spec.hostname,
            "base": warm.zygote.facts.window.base(slot.number),
            "limited": self._hierarchy is not None,
            "layers": [layer.target for layer in template.layers],
            "memory_bytes": spec.resources.memory_bytes,
            "disk_bytes": spec.resources.disk_bytes,
            "inodes": spec.resources.inodes,
            "open_files": spec.resources.open_files,
            "pids": spec.resources.pids,
        }

    def _make_group(self, spec: sandbox.SandboxSpec) -> cgroups.Group | None:
        if self._hierarchy is None:
            return None
        group = self._hierarchy.create(_SANDBOXES, spec.sandbox_id)
        group.limit(spec.resources)
        return group

    def _gone(self, sandbox_id: ids.SandboxId, pool: slots.Slots, slot: slots.Slot) -> None:
        self._instances.pop(sandbox_id, None)
        self._give_back(pool, slot)

    def _give_back(self, pool: slots.Slots, slot: slots.Slot) -> None:
        """To the very pool it came from: that of a new zygote with the same key may have given the number to another."""
        if all(pool is not warm.slots for warm in self._warm.values()):
            slots.close(slot)
        else:
            pool.give_back(slot)

    # -- after a restart ------------------------------------------------------------------------------------------------

    async def adopt(self, sandbox_id: ids.SandboxId, record: Mapping[str, Any]) -> runtime.Instance | None:
        key = str(record.get("zygote", ""))
        if not await self._hold_found(key):
            await self._clear(sandbox_id)
            return None
        identity = processes.Identity(int(record["pid"]), int(record["start_time"]))
        group = self._hierarchy.group(_SANDBOXES, sandbox_id) if self._hierarchy else None
        slot, pool = slots.Slot(int(record["slot"]), -1), self._warm[key].slots
        try:
            adopted = instance.NamespaceInstance(
                sandbox_id,
                self._boundary(),
                identity,
                self._socket_path(sandbox_id),
                group,
                record,
                lambda: self._gone(sandbox_id, pool, slot),
            )
        except ProcessLookupError:
            await self._clear(sandbox_id)
            return None
        pool.reserve(slot.number)
        self._instances[sandbox_id] = adopted
        return adopted

    async def sweep(self, keep: Collection[ids.SandboxId]) -> list[ids.SandboxId]:
        found = {path.name.removesuffix(".sock") for path in self._socket_dir.glob("*.sock")}
        if self._hierarchy:
            found.update(self._hierarchy.children(_SANDBOXES))
        for folder in self._zygote_dir.glob("*"):
            await self._hold_found(folder.name)
        gone = [ids.SandboxId(name) for name in sorted(found) if name not in keep]
        for sandbox_id in gone:
            if (held := self._instances.get(sandbox_id)) is not None:
                await held.destroy()
            else:
                await self._clear(sandbox_id)
        for key, warm in list(self._warm.items()):
            if key not in self._current.values() and not set(await warm.zygote.sandboxes()) & set(keep):
                await self._end(warm)
        await self._forget_dead_zygotes()
        return gone

    async def _forget_dead_zygotes(self) -> None:
        for folder in self._zygote_dir.glob("*"):
            if folder.name not in self._warm:
                shutil.rmtree(folder, ignore_errors=True)
        if self._hierarchy:
            for name in self._hierarchy.children(_ZYGOTES):
                if name not in self._warm:
                    await groups.remove(self._hierarchy.group(_ZYGOTES, name))

    async def _clear(self, sandbox_id: ids.SandboxId) -> None:
        """Leave nothing of a sandbox of which we hold no instance: half-made, or another server's."""
        self._socket_path(sandbox_id).unlink(missing_ok=True)
        try:
            for warm in list(self._warm.values()):
                with contextlib.suppress(errors.SandboxGoneError):
                    await warm.zygote.kill(sandbox_id)
        finally:  # also when a zygote is too busy to answer
            if self._hierarchy:
                await groups.remove(self._hierarchy.group(_SANDBOXES, sandbox_id))

    async def close(self, *, destroy: bool) -> None:
        for held in list(self._instances.values()):
            if destroy:
                await held.destroy()
            else:
                held.release()
        self._instances.clear()
        for key, warm in list(self._warm.items()):
            if destroy:
                await self._end(warm)
            else:
                await warm.let_go()
                del self._warm[key]
                warm.zygote.close()
        self._current.clear()
        if destroy and self._hierarchy:
            await groups.remove(self._hierarchy.group())

    def _socket_path(self, sandbox_id: ids.SandboxId) -> pathlib.Path:
        return self._socket_dir / f"{sandbox_id}.sock"


def _map_layer(layer: template.Layer, user_namespace: int) -> int:
    """A detached, read-only mount of a layer, its ids mapped to the sandbox's."""
    fd = syscalls.open_tree(str(layer.source), recursive=True)
    try:
        # Safety: the mount is a copy of ours and detached: only the sandbox it is sent to ever sees it. Read-only:
        # whatever an id in there may do, nothing can be changed through it.
        flags = syscalls.MOUNT_ATTR_IDMAP | syscalls.MOUNT_ATTR_RDONLY
        syscalls.mount_setattr(fd, flags, userns_fd=user_namespace, recursive=True)
    except BaseException:
        os.close(fd)
        raise
    return fd


async def _await_ready(report: socket.socket) -> int:
    """The new process's pid on the host, once it has entered the jail.

    Raises UnsupportedError, CapacityError, and SandboxGoneError when it has ended (the zygote too, perhaps).
    """
    try:
        await waiting.readable(report.fileno(), _READY_TIMEOUT_S)
        data, ancillary, _, _ = report.recvmsg(4096, socket.CMSG_SPACE(_CREDENTIALS.size))
    except TimeoutError as error:
        raise errors.CapacityError(f"the sandbox was not ready within {_READY_TIMEOUT_S:.0f} s") from error
    except ConnectionResetError:
        data, ancillary = b"", []
    if not data:
        raise errors.SandboxGoneError("its process ended before it was ready")
    answer = json.loads(data)
    if "ready" not in answer:
        raise errors.UnsupportedError(f"the sandbox could not be made: {answer.get('error')}")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            return int(_CREDENTIALS.unpack(payload[: _CREDENTIALS.size])[0])
    raise errors.UnsupportedError("the kernel did not say who reported ready")
