"""How a command ends: the exit codes, and which error leads to which.

     0   done                                       3   no server runs there, or it does not answer
     1   the program that was run failed            4   no such sandbox, template, key or file
     2   the command line is wrong                  5   the server refused, or this host cannot do it
                                                  124   the time limit passed
                                                  130   interrupted (Ctrl-C)

`exec` and `shell` end with the exit code of what they ran.
"""

from glovebox import connection, errors

FAILED = 1
USAGE = 2
NO_SERVER = 3
NOT_FOUND = 4
REFUSED = 5
TIMED_OUT = 124
SIGNALLED = 137  # the protocol says that a signal ended the program, not which
INTERRUPTED = 130

# By name, so that the SDK (most of a second to import) is not loaded in order to ask about its errors.
_SDK_CODES = {
    "SandboxNotRunningException": NOT_FOUND,
    "SandboxUnreachableException": NO_SERVER,
    "TimeoutException": TIMED_OUT,
    "NotFoundException": NOT_FOUND,
    "AuthenticationException": REFUSED,
    "ServiceBusyException": REFUSED,
    "SandboxException": REFUSED,
    "ConnectError": NO_SERVER,
    "TransportError": NO_SERVER,
    "ReadError": NO_SERVER,
}
_SDK_MODULES = ("e2b", "e2b_code_interpreter", "httpx", "httpcore", "pyqwest")


def exit_code_of(error: BaseException) -> int | None:
    """The exit code that `error` leads to; None when it is nobody's doing but ours (a bug)."""
    match error:
        case KeyboardInterrupt():
            return INTERRUPTED
        case BrokenPipeError():  # the reader of our output has left: typer ends the process quietly
            return None
        case connection.NoServerError() | ConnectionError():
            return NO_SERVER
        case errors.NotFoundError() | errors.SandboxGoneError():
            return NOT_FOUND
        case TimeoutError():
            return TIMED_OUT
        case errors.GloveboxError():
            return REFUSED
    for kind in type(error).__mro__:
        if kind.__module__.partition(".")[0] in _SDK_MODULES and kind.__name__ in _SDK_CODES:
            return _SDK_CODES[kind.__name__]
    return None


def message_of(error: BaseException) -> str:
    """One line about `error`: its own first line, without the SDK's advice about Python options."""
    text = str(error).strip() or type(error).__name__
    first = text.splitlines()[0]
    return first if len(first) <= 400 else first[:399] + "…"
