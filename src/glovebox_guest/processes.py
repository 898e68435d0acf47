"""The process operations: start, connect, list, signal, input, resize; and who is remembered for how long."""

import asyncio
import os
from typing import Any, Dict, List, Tuple

from glovebox_guest import channel as channels
from glovebox_guest import parameters, process, reaper, refusals, settings, spawn, users

MAX_PROCESSES = 1024
MAX_ENDED_KEPT = 1024
#: Ended processes whose output a grandchild still holds.
MAX_DRAINING = 128
KEEP_ENDED_S = 30.0
MAX_TERMINAL_SIZE = 65535
MAX_SIGNAL = 64


class Processes:
    """All programs that were started through the link."""

    def __init__(self, config: settings.Settings, children: reaper.Reaper) -> None:
        self._config = config
        self._reaper = children
        self._alive: Dict[int, process.Process] = {}
        self._ended: Dict[int, process.Process] = {}
        self._draining: List[process.Process] = []

    async def start(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`process.start`."""
        request = self._request(params)
        tag = parameters.optional_text(params, "tag")
        if len(self._alive) >= MAX_PROCESSES:
            raise refusals.Refused("resource_exhausted", f"at most {MAX_PROCESSES} processes can be started at once")
        try:
            started = spawn.start(request)
        except OSError as error:
            raise refusals.Refused("resource_exhausted", f"cannot start: {os.strerror(error.errno or 0)}") from error
        new = process.Process(started, request, tag, self._reaper.watch(started.pid), self._on_end)
        self._ended.pop(new.pid, None)
        self._alive[new.pid] = new
        # The first event is always the start, and there is credit for it. Only then does the output begin.
        try:
            await channel.event({"event": "start", "pid": new.pid})
        finally:
            new.run()
        return await new.follow(channel)

    async def connect(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`process.connect`."""
        found = self._find(params)
        await channel.event({"event": "start", "pid": found.pid})
        return await found.follow(channel)

    async def list(self, _params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`process.list`."""
        return {"processes": [one.describe() for one in self._alive.values() if one.is_alive]}

    async def signal(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`process.signal`."""
        self._find_alive(params).signal(parameters.number(params, "signal", 1, MAX_SIGNAL))
        return {}

    async def input(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`process.input`."""
        found = self._find_alive(params)
        while True:
            data = await channel.receive()
            if data is None:
                return {}
            await found.write(data)

    async def close_stdin(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`process.close_stdin`."""
        await self._find_alive(params).close_stdin()
        return {}

    async def resize(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`process.resize`."""
        found = self._find_alive(params)
        found.resize(*_size(params))
        return {}

    # Inside.

    def _request(self, params: parameters.Parameters) -> spawn.Request:
        argv = parameters.texts(params, "argv")
        if not argv:
            raise parameters.wrong("argv", "must not be empty")
        env = parameters.environment(params, "env")
        user = self._config.user(params)
        size = params.get("pty")
        if size is not None and not isinstance(size, dict):
            raise parameters.wrong("pty", "must be an object")
        return spawn.Request(
            argv=argv,
            env=self._config.environment_for(user, env),
            own_env=env,
            cwd=self._cwd(params, user),
            given_cwd=parameters.optional_text(params, "cwd"),
            user=user,
            stdin=parameters.flag(params, "stdin"),
            pty=None if size is None else _size(size),
        )

    def _cwd(self, params: parameters.Parameters, user: users.User) -> str:
        if not parameters.optional_text(params, "cwd"):
            default = self._config.default_workdir or user.home
            return default if os.path.isdir(default) else "/"
        path = self._config.path(params, "cwd", user)
        if not os.path.isdir(path):
            raise refusals.Refused("invalid_argument", f"cwd '{path}' does not exist")
        return path

    def _find(self, params: parameters.Parameters) -> process.Process:
        if params.get("pid") is not None:
            pid = parameters.number(params, "pid", 0, 2**32 - 1)
            found = self._alive.get(pid) or self._ended.get(pid)
            if found is None:
                raise refusals.Refused("not_found", f"process with pid {pid} not found")
            return found
        tag = parameters.text(params, "tag")
        for known in (self._alive, self._ended):
            for candidate in reversed(tuple(known.values())):
                if candidate.tag == tag:
                    return candidate
        raise refusals.Refused("not_found", f"process with tag {tag} not found")

    def _find_alive(self, params: parameters.Parameters) -> process.Process:
        found = self._find(params)
        if not found.is_alive:
            name = f"pid {found.pid}" if params.get("pid") is not None else f"tag {found.tag}"
            raise refusals.Refused("not_found", f"process with {name} not found")
        return found

    def _on_end(self, ended: process.Process) -> None:
        # The pid may be another's by now, if delivering took long.
        if self._alive.get(ended.pid) is ended:
            del self._alive[ended.pid]
            self._ended[ended.pid] = ended
            asyncio.get_running_loop().call_later(KEEP_ENDED_S, self._forget, ended)
            while len(self._ended) > MAX_ENDED_KEPT:
                del self._ended[next(iter(self._ended))]
        self._draining = [one for one in self._draining if one.is_draining]
        if ended.is_draining:
            self._draining.append(ended)
        if len(self._draining) > MAX_DRAINING:
            self._draining.pop(0).abandon()

    def _forget(self, ended: process.Process) -> None:
        if self._ended.get(ended.pid) is ended:
            del self._ended[ended.pid]


def _size(params: parameters.Parameters) -> Tuple[int, int]:
    cols = parameters.number(params, "cols", 1, MAX_TERMINAL_SIZE)
    return cols, parameters.number(params, "rows", 1, MAX_TERMINAL_SIZE)
