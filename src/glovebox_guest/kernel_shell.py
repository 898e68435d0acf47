"""IPython's shell as a code context has it: results, errors and displays become messages instead of text.

Imports IPython: only `kernel` imports this, when it warms up.
"""

import builtins
import getpass
import os
import subprocess
import sys
import traceback
import types
import warnings
from typing import Any, Callable, Dict, List, NoReturn, Optional, Tuple

from IPython.core import application, autocall, displayhook, displaypub, error, formatters, interactiveshell
from traitlets import ObjectName, Type, Unicode, config

from glovebox_guest import results

MATPLOTLIB_BACKEND = "module://glovebox_guest.mpl_backend"
MAX_TRACEBACK_CHARACTERS = 1024 * 1024

#: Since Python 3.11.
_GROUP: Any = getattr(builtins, "BaseExceptionGroup", None)

Send = Callable[[Dict[str, Any]], None]


class _DisplayHook(displayhook.DisplayHook):
    """The value of a cell's last expression: the main result."""

    def write_output_prompt(self) -> None:
        pass

    def write_format_data(self, format_dict: Dict[str, Any], md_dict: Any = None) -> None:
        self.shell.send_result(format_dict, is_main_result=True)

    def log_output(self, format_dict: Dict[str, Any]) -> None:
        # IPython keeps every output for ever; the objects themselves (Out) are enough.
        pass

    def finish_displayhook(self) -> None:
        self._is_active = False


class _DisplayPublisher(displaypub.DisplayPublisher):
    """What display() shows."""

    def publish(self, data: Any, metadata: Any = None, *args: Any, update: bool = False, **more: Any) -> None:
        # There is nothing on the other side that could be updated.
        if not update:
            self.shell.send_result(data, is_main_result=False)

    def clear_output(self, wait: bool = False) -> None:
        pass


class _Exit(autocall.ExitAutocall):
    """exit() and quit(): end the cell, not the context."""

    def __call__(self, code: Any = None) -> NoReturn:
        raise SystemExit() if code is None else SystemExit(code)


class _MimeFormatter(formatters.BaseFormatter):
    """A formatter for a MIME type that IPython does not know, whose values are dictionaries."""

    format_type = Unicode("")
    print_method = ObjectName("_repr_e2b_data_")
    _return_type = dict


def _make_formatter(shell: Any) -> Callable[[str, str], Any]:
    def make(mime: str, method: str) -> Any:
        formatter = _MimeFormatter(parent=shell.display_formatter)
        formatter.format_type = mime
        formatter.print_method = method
        return formatter

    return make


class Shell(interactiveshell.InteractiveShell):
    """The one shell of a context's process. `send` is set after the fork; until then messages are dropped."""

    displayhook_class = Type(_DisplayHook)
    display_pub_class = Type(_DisplayPublisher)

    def prepare(self) -> None:
        """What remains to be set once it is made."""
        self.db: Dict[str, Any] = {}  # %cd keeps its list here; IPython's own is a folder
        self.send: Optional[Send] = None
        self.error_sent = False
        self.is_cancelling = False
        results.register(self.display_formatter.formatters, _make_formatter(self))
        results.adapt_libraries(MATPLOTLIB_BACKEND)
        # IPython adds this to every SystemExit; here the advice would be wrong.
        warnings.filterwarnings("ignore", message="To exit: use 'exit'")

    def begin(self) -> None:
        """A new execution: it may send one error."""
        self.error_sent = False

    def send_result(self, data: Dict[str, Any], is_main_result: bool) -> None:
        """Send a MIME bundle, saying on stderr what of it cannot be sent."""
        kept, dropped = results.fit(data)
        for mime in dropped:
            print(f"a result's {mime} is not shown: it is too large, or not JSON", file=sys.stderr)
        if kept and self.send is not None:
            self.send({"event": "result", "is_main_result": is_main_result, "data": kept})

    def send_error(self, name: str, value: str, text: str) -> None:
        """Send the execution's error; a second one goes to stderr."""
        if self.is_cancelling:
            return
        if self.error_sent:
            print(text, file=sys.stderr)
            return
        self.error_sent = True
        if self.send is not None:
            cut = text if len(text) <= MAX_TRACEBACK_CHARACTERS else text[:MAX_TRACEBACK_CHARACTERS] + "\n[...]"
            value = value[:MAX_TRACEBACK_CHARACTERS]
            self.send({"event": "error", "name": name, "value": value, "traceback": cut})

    def report(self, raised: BaseException) -> None:
        """Send what ended an execution, unless IPython has."""
        if not self.error_sent:
            lines = traceback.format_exception(type(raised), raised, _outside_ipython(raised))
            self.send_error(type(raised).__name__, _text_of(raised), "".join(lines).rstrip("\n"))

    # What IPython calls.

    def _showtraceback(self, etype: Any, evalue: Any, stb: List[str]) -> None:
        self.send_error(str(getattr(etype, "__name__", etype)), _text_of(evalue), "\n".join(stb))

    def enable_matplotlib(self, gui: Optional[str] = None) -> Tuple[Optional[str], str]:
        """%matplotlib, whatever is asked for: there is no screen."""
        pyplot = __import__("matplotlib.pyplot").pyplot
        pyplot.switch_backend(MATPLOTLIB_BACKEND)
        return None, MATPLOTLIB_BACKEND

    def system(self, cmd: str) -> None:
        """`!cmd`: it writes to the pipes by itself, and an interrupt ends the cell too."""
        command = self.var_expand(cmd, depth=1)
        code = subprocess.call(command, shell=True, executable=os.environ.get("SHELL"))  # noqa: S602 a shell is meant
        self.user_ns["_exit_code"] = code

    def ask_exit(self) -> NoReturn:
        """What is left of ways to say exit()."""
        raise SystemExit()

    def showtraceback(self, exc_tuple: Any = None, *args: Any, **more: Any) -> None:
        """IPython prints exception groups, which it cannot format, to stderr; everything else is as it has it."""
        value = exc_tuple[1] if exc_tuple else sys.exc_info()[1]
        if _GROUP is not None and isinstance(value, _GROUP):
            self.report(value)
        else:
            super().showtraceback(exc_tuple, *args, **more)


def _outside_ipython(raised: BaseException) -> Optional[types.TracebackType]:
    """The traceback from the user's first line on; None when all of it is ours or IPython's."""
    at = raised.__traceback__
    while at is not None and at.tb_frame.f_globals.get("__name__", "").startswith(("IPython.", "glovebox_guest.")):
        at = at.tb_next
    return None if isinstance(raised, error.UsageError) else at


def _text_of(value: Any) -> str:
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__}, whose text cannot be made>"


def _no_input(prompt: object = "", *args: object, **more: object) -> NoReturn:
    __tracebackhide__ = True
    raise error.StdinNotImplementedError("input() is not available here: nobody is there to answer")


def refuse_input() -> None:
    """input() and getpass() say clearly that there is nobody to ask."""
    builtins.input = _no_input
    getpass.getpass = _no_input


def make() -> Shell:
    """The shell, with no history, no threads, no colours, and no files of its own."""
    configuration = config.Config()
    configuration.HistoryManager.enabled = False
    shell: Shell = Shell.instance(
        config=configuration,
        ipython_dir=".",  # must exist; nothing is written there
        profile_dir=application.ProfileDir(),  # without a location, it is nowhere
        user_module=types.ModuleType("__main__", "The module of a code context"),
        colors="nocolor",
        exiter=_Exit(),
        autoawait=True,
    )
    shell.prepare()
    return shell
