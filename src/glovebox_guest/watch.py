"""The watch operations: changes as a stream, or collected by a watcher and asked for."""

import asyncio
import errno
import os
import secrets
from typing import Any, Dict, Set

from glovebox_guest import channel as channels
from glovebox_guest import parameters, refusals, settings, uploads, watcher

#: A queue each; the kernel's own limit is usually 128 for a user, and programs need some too.
MAX_WATCHERS = 96
#: After this many events at once the next look is put off a little: a storm must not take the whole loop.
STORM_EVENTS = 256
STORM_PAUSE_S = 0.01


class _Active:
    """A watcher that is read whenever there is something to read."""

    def __init__(self, one: watcher.Watcher) -> None:
        self.watcher = one
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._is_closed = False
        self._listen()

    def look(self) -> None:
        """Take what has happened up to now."""
        if self._is_closed:
            return
        count = self.watcher.read_changes()
        self._changed.set()
        if count > STORM_EVENTS:
            self._loop.remove_reader(self.watcher.queue)
            self._loop.call_later(STORM_PAUSE_S, self._listen)

    async def changed(self) -> None:
        """Wait until something may have happened since the last time."""
        await self._changed.wait()
        self._changed.clear()

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self.watcher.queue)
            self.watcher.close()

    def _listen(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self.watcher.queue, self.look)


class Watches:
    """The handlers, and all watchers there are."""

    def __init__(self, config: settings.Settings, names: uploads.Names) -> None:
        self._config = config
        self._names = names
        self._active: Set[_Active] = set()
        self._polled: Dict[str, _Active] = {}

    def catch_up(self) -> None:
        """Have every watcher see what has happened up to now, so that new directories are watched."""
        for active in self._active:
            active.look()

    async def watch(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`fs.watch`."""
        active = self._begin(params)
        try:
            await channel.event({"event": "start"})
            while channel.is_open:
                await active.changed()
                for change in active.watcher.drain():
                    await channel.event({"event": "change", **change})
        finally:
            self._end(active)
        return {}

    async def create(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.watcher_create`."""
        active = self._begin(params)
        watcher_id = secrets.token_hex(8)
        self._polled[watcher_id] = active
        return {"watcher_id": watcher_id}

    async def events(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.watcher_events`."""
        active = self._find(params)
        active.look()
        return {"events": active.watcher.drain()}

    async def remove(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`fs.watcher_remove`."""
        self._end(self._find(params))
        del self._polled[parameters.text(params, "watcher_id")]
        return {}

    # Inside.

    def _begin(self, params: parameters.Parameters) -> _Active:
        path = self._config.path(params, "path", self._config.user(params))
        if not os.path.exists(path):
            raise refusals.Refused("not_found", f"path '{path}' does not exist")
        if not os.path.isdir(path):
            raise refusals.Refused("invalid_argument", f"path '{path}' is not a directory")
        if len(self._active) >= MAX_WATCHERS:
            raise refusals.Refused("resource_exhausted", f"at most {MAX_WATCHERS} directories can be watched at once")
        try:
            one = watcher.Watcher(
                path,
                recursive=parameters.flag(params, "recursive"),
                include_entry=parameters.flag(params, "include_entry"),
                names=self._names,
            )
        except OSError as error:
            if error.errno == errno.ENOSPC:
                # inotify's way to say that the user's watches are used up (inotify_add_watch(2)).
                raise refusals.Refused("resource_exhausted", "no more directories can be watched") from error
            raise refusals.of_os_error(error, path) from error
        active = _Active(one)
        self._active.add(active)
        return active

    def _end(self, active: _Active) -> None:
        active.close()
        self._active.discard(active)

    def _find(self, params: parameters.Parameters) -> _Active:
        watcher_id = parameters.text(params, "watcher_id")
        if watcher_id not in self._polled:
            raise refusals.Refused("not_found", f"watcher with id {watcher_id} not found")
        return self._polled[watcher_id]
