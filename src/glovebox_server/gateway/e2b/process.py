"""envd's process.Process: programs started, fed, signalled, and their output streamed."""

import asyncio
from collections.abc import AsyncIterator

from glovebox import errors
from glovebox_server.contract import guest
from glovebox_server.gateway import answers
from glovebox_server.gateway.e2b import connect, running
from glovebox_server.gateway.e2b.proto import process_pb2 as pb

_MAX_PTY = 65_535
_MAX_LETTERS = 2 * 1024 * 1024
_START_BYTES = 4 * 1024 * 1024  # as many letters, some of them escaped
_INPUT_BYTES = 16 * 1024 * 1024  # the SDKs send what a program reads in one message


async def _list(call: connect.Call, request: pb.ListRequest) -> pb.ListResponse:
    return pb.ListResponse(processes=[_info(process) for process in await call.guest.list_processes()])


async def _start(call: connect.Call, request: pb.StartRequest, stream: connect.Stream[pb.StartResponse]) -> None:
    config = request.process
    if not config.cmd:
        raise errors.InvalidRequestError("process.cmd is missing")
    _check_text(config.cmd, *config.args, *config.envs, *config.envs.values(), config.cwd, request.tag)
    events = call.guest.start_process(
        [config.cmd, *config.args],
        env=dict(config.envs),
        cwd=config.cwd or None,
        user=call.user,
        stdin=request.stdin if request.HasField("stdin") else True,
        pty=_size(request.pty) if request.HasField("pty") else None,
        tag=request.tag if request.HasField("tag") else None,
    )

    async def listen(event: guest.ProcessEvent) -> None:
        await stream.send(pb.StartResponse(event=_event(event)))

    await running.follow(call.guest, events, call.timeout_s, listen)


async def _connect(call: connect.Call, request: pb.ConnectRequest, stream: connect.Stream[pb.ConnectResponse]) -> None:
    events = call.guest.connect_process(_selector(request.process))
    async with asyncio.timeout(call.timeout_s), running.closing(events):
        async for event in events:
            await stream.send(pb.ConnectResponse(event=_event(event)))


async def _update(call: connect.Call, request: pb.UpdateRequest) -> pb.UpdateResponse:
    if not request.HasField("pty"):
        raise errors.InvalidRequestError("pty is missing")
    await call.guest.resize(_selector(request.process), *_size(request.pty))
    return pb.UpdateResponse()


async def _send_input(call: connect.Call, request: pb.SendInputRequest) -> pb.SendInputResponse:
    given = _input(request.input)

    async def once() -> AsyncIterator[bytes]:
        yield given

    await call.guest.send_input(_selector(request.process), once())
    return pb.SendInputResponse()


async def _stream_input(call: connect.Call, incoming: AsyncIterator[pb.StreamInputRequest]) -> pb.StreamInputResponse:
    first = await anext(incoming, None)
    if first is None or first.WhichOneof("event") != "start":
        raise errors.InvalidRequestError("the first message of StreamInput must be start")

    async def data() -> AsyncIterator[bytes]:
        async for one in incoming:
            kind = one.WhichOneof("event")
            if kind == "start":
                raise errors.InvalidRequestError("only the first message of StreamInput may be start")
            if kind == "data":
                yield _input(one.data.input)

    await call.guest.send_input(_selector(first.start.process), data())
    return pb.StreamInputResponse()


async def _send_signal(call: connect.Call, request: pb.SendSignalRequest) -> pb.SendSignalResponse:
    if request.signal not in (pb.SIGNAL_SIGKILL, pb.SIGNAL_SIGTERM):
        raise errors.InvalidRequestError(f"signal {int(request.signal)} is not SIGNAL_SIGKILL or SIGNAL_SIGTERM")
    await call.guest.signal_process(_selector(request.process), int(request.signal))
    return pb.SendSignalResponse()


async def _close_stdin(call: connect.Call, request: pb.CloseStdinRequest) -> pb.CloseStdinResponse:
    try:
        await call.guest.close_stdin(_selector(request.process))
    except errors.GuestError as error:
        if error.code != "failed_precondition":
            raise
        raise connect.RpcError("unknown", f"error closing stdin: {error}") from error
    return pb.CloseStdinResponse()


def _selector(selector: pb.ProcessSelector) -> guest.Selector:
    kind = selector.WhichOneof("selector")
    if kind is None:
        raise errors.InvalidRequestError("process: a pid or a tag is missing")
    return selector.pid if kind == "pid" else selector.tag


def _input(given: pb.ProcessInput) -> bytes:
    kind = given.WhichOneof("input")
    if kind is None:
        raise errors.InvalidRequestError("input: stdin or pty is missing")
    return given.stdin if kind == "stdin" else given.pty


def _size(pty: pb.PTY) -> tuple[int, int]:
    size = (pty.size.cols, pty.size.rows)
    if not all(0 < side <= _MAX_PTY for side in size):
        raise errors.InvalidRequestError(f"pty.size: cols and rows must be 1 to {_MAX_PTY}")
    return size


def _check_text(*texts: str) -> None:
    """Refuse what no execve(2) takes, before it is sent inside."""
    # A pointer and a NUL for each, as execve(2) counts.
    if sum(map(len, texts)) + 9 * len(texts) > _MAX_LETTERS:
        raise errors.InvalidRequestError(f"process: command, arguments and variables exceed {_MAX_LETTERS} characters")
    if any("\0" in text for text in texts):
        raise errors.InvalidRequestError("process: a command, argument or variable holds a NUL character")


def _event(event: guest.ProcessEvent) -> pb.ProcessEvent:
    if isinstance(event, guest.Started):
        return pb.ProcessEvent(start=pb.ProcessEvent.StartEvent(pid=event.pid))
    if isinstance(event, guest.Output):
        data = pb.ProcessEvent.DataEvent()
        setattr(data, event.stream, event.data)
        return pb.ProcessEvent(data=data)
    end = pb.ProcessEvent.EndEvent(exit_code=event.exit_code, exited=event.exited, status=answers.text(event.status))
    if event.error is not None:
        end.error = answers.text(event.error)
    return pb.ProcessEvent(end=end)


def _info(process: guest.ProcessInfo) -> pb.ProcessInfo:
    argv = [answers.text(arg) for arg in process.argv] or [""]
    env = {answers.text(key): answers.text(value) for key, value in process.env.items()}
    config = pb.ProcessConfig(cmd=argv[0], args=argv[1:], envs=env)
    if process.cwd is not None:
        config.cwd = answers.text(process.cwd)
    info = pb.ProcessInfo(config=config, pid=process.pid)
    if process.tag is not None:
        info.tag = answers.text(process.tag)
    return info


METHODS: dict[str, connect.Method] = {
    "/process.Process/List": connect.Unary(pb.ListRequest, _list),
    "/process.Process/Start": connect.ServerStream(
        pb.StartRequest,
        _start,
        pb.StartResponse(event=pb.ProcessEvent(keepalive=pb.ProcessEvent.KeepAlive())),
        _START_BYTES,
    ),
    "/process.Process/Connect": connect.ServerStream(
        pb.ConnectRequest,
        _connect,
        pb.ConnectResponse(event=pb.ProcessEvent(keepalive=pb.ProcessEvent.KeepAlive())),
    ),
    "/process.Process/Update": connect.Unary(pb.UpdateRequest, _update),
    "/process.Process/SendInput": connect.Unary(pb.SendInputRequest, _send_input, _INPUT_BYTES),
    "/process.Process/StreamInput": connect.ClientStream(pb.StreamInputRequest, _stream_input, _INPUT_BYTES),
    "/process.Process/SendSignal": connect.Unary(pb.SendSignalRequest, _send_signal),
    "/process.Process/CloseStdin": connect.Unary(pb.CloseStdinRequest, _close_stdin),
}
