"""Commands that run programs in a sandbox: `shell` (a terminal) and `exec` (plain streams)."""

import shlex
import sys
from typing import Annotated

import typer

from glovebox.commands import options

_SHELL_S = 3600

User = Annotated[str | None, typer.Option("--user", "-u", help="Who runs it (default: the template's user).")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="Where it starts.")]


def shell(
    sandbox_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="A sandbox; without it, a fresh one.")
    ] = None,
    user: User = None,
    cwd: Cwd = None,
    env: options.Env = None,
    template: options.Template = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave a fresh sandbox running after the shell.")] = False,
    data_dir: options.DataDir = None,
) -> None:
    """Open an interactive shell in a sandbox; the exit code is the shell's."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise typer.BadParameter("a shell needs a terminal; to run one command use: glovebox exec ID -- CMD")
    if sandbox_id is not None and (template or keep):
        raise typer.BadParameter("--template and --keep are for a fresh sandbox")
    from glovebox import lease, pty_session  # here: they load the SDK, and help must be quick

    variables = options.variables(env)
    if sandbox_id is not None:
        exit_code = pty_session.run(lease.existing(data_dir, sandbox_id), user, cwd, variables)
    else:
        with lease.fresh(data_dir, template, {}, _SHELL_S, keep) as sandbox:
            exit_code = pty_session.run(sandbox, user, cwd, variables)
            if keep:
                print(f"glovebox: kept sandbox {sandbox.sandbox_id}", file=sys.stderr)
    raise typer.Exit(exit_code)


def execute(
    sandbox_id: options.SandboxArgument,
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="The program and its arguments, after --.")],
    user: User = None,
    cwd: Cwd = None,
    env: options.Env = None,
    background: Annotated[bool, typer.Option("--detach", "-d", help="Leave it running, and print its pid.")] = False,
    no_stdin: Annotated[bool, typer.Option("--no-stdin", "-n", help="Do not pass standard input on.")] = False,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds until it is ended; 0 is never.")] = 0.0,
    data_dir: options.DataDir = None,
) -> None:
    """Run a program in a sandbox, its streams connected to ours; the exit code is the program's."""
    from glovebox import lease, streams  # here: they load the SDK, and help must be quick

    variables = options.variables(env)
    sandbox = lease.existing(data_dir, sandbox_id)
    program = streams.Program(shlex.join(command), user, cwd, variables, timeout)
    if background:
        print(streams.start(sandbox, program, with_stdin=False).pid)
        return
    with lease.kept_alive(sandbox):
        exit_code = streams.run(sandbox, program, with_stdin=not no_stdin and _is_piped())
    raise typer.Exit(exit_code)


def _is_piped() -> bool:
    """Whether standard input is something to pass on: not a terminal, and not closed."""
    return sys.stdin is not None and not sys.stdin.isatty()
