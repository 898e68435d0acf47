"""envd's filesystem.Filesystem: files looked at, moved, removed and watched."""

import asyncio
from collections.abc import Sequence

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers
from glovebox_server.gateway.e2b import connect, running
from glovebox_server.gateway.e2b.proto import filesystem_pb2 as pb

_MAX_DEPTH = 1024
_MAX_PATH_LETTERS = 4096
_MANY_ENTRIES = 200  # more are written down in a thread, beside the other requests
_MAX_INT64 = 2**63 - 1
_TYPES = {"file": pb.FILE_TYPE_FILE, "directory": pb.FILE_TYPE_DIRECTORY, "symlink": pb.FILE_TYPE_SYMLINK}
_CHANGES = {
    "create": pb.EVENT_TYPE_CREATE,
    "write": pb.EVENT_TYPE_WRITE,
    "remove": pb.EVENT_TYPE_REMOVE,
    "rename": pb.EVENT_TYPE_RENAME,
    "chmod": pb.EVENT_TYPE_CHMOD,
}


async def _stat(call: connect.Call, request: pb.StatRequest) -> pb.StatResponse:
    return pb.StatResponse(entry=_entry(await call.guest.stat(path(request.path), user=call.user)))


async def _make_dir(call: connect.Call, request: pb.MakeDirRequest) -> pb.MakeDirResponse:
    return pb.MakeDirResponse(entry=_entry(await call.guest.make_dir(path(request.path), user=call.user)))


async def _move(call: connect.Call, request: pb.MoveRequest) -> pb.MoveResponse:
    source, destination = path(request.source), path(request.destination)
    return pb.MoveResponse(entry=_entry(await call.guest.move(source, destination, user=call.user)))


async def _list_dir(call: connect.Call, request: pb.ListDirRequest) -> pb.ListDirResponse:
    depth = min(request.depth or 1, _MAX_DEPTH)
    entries = await call.guest.list_dir(path(request.path), depth=depth, user=call.user)
    if len(entries) > _MANY_ENTRIES:
        return await asyncio.to_thread(_listing, entries)
    return _listing(entries)


def _listing(entries: Sequence[guest.Entry]) -> pb.ListDirResponse:
    return pb.ListDirResponse(entries=[_entry(entry) for entry in entries])


async def _remove(call: connect.Call, request: pb.RemoveRequest) -> pb.RemoveResponse:
    await call.guest.remove(path(request.path), user=call.user)
    return pb.RemoveResponse()


async def _watch_dir(
    call: connect.Call, request: pb.WatchDirRequest, stream: connect.Stream[pb.WatchDirResponse]
) -> None:
    changes = call.guest.watch(
        path(request.path), recursive=request.recursive, include_entry=request.include_entry, user=call.user
    )
    async with asyncio.timeout(call.timeout_s), running.closing(changes):
        async for change in changes:
            if change is None:
                await stream.send(pb.WatchDirResponse(start=pb.WatchDirResponse.StartEvent()))
            else:
                await stream.send(pb.WatchDirResponse(filesystem=_event(change)))


async def _create_watcher(call: connect.Call, request: pb.CreateWatcherRequest) -> pb.CreateWatcherResponse:
    watcher_id = await call.guest.create_watcher(
        path(request.path), recursive=request.recursive, include_entry=request.include_entry, user=call.user
    )
    return pb.CreateWatcherResponse(watcher_id=answers.text(watcher_id))


async def _get_watcher_events(call: connect.Call, request: pb.GetWatcherEventsRequest) -> pb.GetWatcherEventsResponse:
    changes = await call.guest.watcher_events(request.watcher_id)
    return pb.GetWatcherEventsResponse(events=[_event(change) for change in changes])


async def _remove_watcher(call: connect.Call, request: pb.RemoveWatcherRequest) -> pb.RemoveWatcherResponse:
    await call.guest.remove_watcher(request.watcher_id)
    return pb.RemoveWatcherResponse()


def path(given: str) -> str:
    """A path from a caller; InvalidRequestError when no file can have it. An empty one is the working directory."""
    if "\0" in given or len(given) > _MAX_PATH_LETTERS:
        raise errors.InvalidRequestError(f"path holds a NUL or has more than {_MAX_PATH_LETTERS} characters")
    return given


def _entry(entry: guest.Entry) -> pb.EntryInfo:
    info = pb.EntryInfo(
        name=answers.text(entry.name),
        type=_TYPES.get(entry.type, pb.FILE_TYPE_UNSPECIFIED),
        path=answers.text(entry.path),
        size=max(0, min(entry.size, _MAX_INT64)),
        mode=entry.mode & 0o777,
        permissions=answers.text(entry.permissions),
        owner=answers.text(entry.owner),
        group=answers.text(entry.group),
        metadata={answers.text(key): answers.text(value) for key, value in entry.metadata.items()},
        is_symlink=entry.is_symlink,
    )
    # A guest may claim any time; protobuf's end in the year 9999.
    seconds, nanos = divmod(entry.mtime_ns, 1_000_000_000)
    info.modified_time.seconds = max(-62_135_596_800, min(seconds, 253_402_300_799))
    info.modified_time.nanos = nanos
    if entry.symlink_target is not None:
        info.symlink_target = answers.text(entry.symlink_target)
    return info


def _event(change: guest.Change) -> pb.FilesystemEvent:
    event = pb.FilesystemEvent(name=answers.text(change.name), type=_CHANGES[change.type])
    if change.entry is not None:
        event.entry.CopyFrom(_entry(change.entry))
    return event


METHODS: dict[str, connect.Method] = {
    "/filesystem.Filesystem/Stat": connect.Unary(pb.StatRequest, _stat),
    "/filesystem.Filesystem/MakeDir": connect.Unary(pb.MakeDirRequest, _make_dir),
    "/filesystem.Filesystem/Move": connect.Unary(pb.MoveRequest, _move),
    "/filesystem.Filesystem/ListDir": connect.Unary(pb.ListDirRequest, _list_dir),
    "/filesystem.Filesystem/Remove": connect.Unary(pb.RemoveRequest, _remove),
    "/filesystem.Filesystem/WatchDir": connect.ServerStream(
        pb.WatchDirRequest, _watch_dir, pb.WatchDirResponse(keepalive=pb.WatchDirResponse.KeepAlive())
    ),
    "/filesystem.Filesystem/CreateWatcher": connect.Unary(pb.CreateWatcherRequest, _create_watcher),
    "/filesystem.Filesystem/GetWatcherEvents": connect.Unary(pb.GetWatcherEventsRequest, _get_watcher_events),
    "/filesystem.Filesystem/RemoveWatcher": connect.Unary(pb.RemoveWatcherRequest, _remove_watcher),
}
