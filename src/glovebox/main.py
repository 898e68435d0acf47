"""The `glovebox` command: its sub-commands, and the one place where an error becomes a line and an exit code."""

import signal
from typing import Any

import typer
import typer.core

from glovebox import outcome, terminal
from glovebox.commands import code, keys, processes, sandboxes, server


class _Group(typer.core.TyperGroup):
    """The top group: an error that is nobody's bug ends as one line on stderr, with its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            code_of_error = outcome.exit_code_of(error)
            if code_of_error is None:
                raise  # usage errors are typer's to show; the rest are bugs, and want their traceback
            if not isinstance(error, KeyboardInterrupt):
                terminal.complain(outcome.message_of(error))
            raise typer.Exit(code_of_error) from error


# Plain help, not rich's: it costs a third of the time.
app = typer.Typer(
    cls=_Group,
    help="Run code that nobody trusts, in sandboxes on machines you own.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(server.serve)
app.command()(server.env)
app.command()(code.run)
app.command()(processes.shell)
app.command("exec")(processes.execute)
app.command()(sandboxes.ps)
app.command()(sandboxes.kill)
app.command()(sandboxes.logs)
app.add_typer(keys.app, name="key")
app.command()(server.doctor)
app.command()(server.version)


def main() -> None:
    """The entry point of the `glovebox` command."""
    # By default these end the process on the spot: with its terminal raw, its sandbox and private server left behind.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    app()


def _leave(number: int, _: object) -> None:
    """Unwinds; the exit code is the one that a shell would report for the signal."""
    raise SystemExit(128 + number)
