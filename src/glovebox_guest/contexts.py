"""The sandbox's code contexts: made, used one execution at a time, interrupted, restarted, removed.

A context is an id, a language and a working directory; its process comes and goes:

    (none) ──first use──▶ alive ──restart, death, protocol broken──▶ (none)        removed: the id is forgotten
"""

import asyncio
import os
import sys
import uuid
from typing import Any, Callable, Dict, Mapping, Optional, Protocol

from glovebox_guest import context_process, kernel, refusals, users

PYTHON = "python"
LANGUAGES = frozenset((PYTHON,))
DEFAULT_CWD = "/home/user"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MAX_CONTEXTS = 64


class Reaper(Protocol):
    """What is used of `reaper.Reaper`."""

    def watch(self, pid: int) -> "asyncio.Future[int]": ...


class _Context:
    """One context, with or without its process."""

    def __init__(self, language: str, cwd: str) -> None:
        self.id = uuid.uuid4().hex
        self.language = language
        self.cwd = cwd
        self.turn = asyncio.Lock()
        self.process: Optional[context_process.ContextProcess] = None
        self.is_removed = False

    def describe(self) -> Dict[str, str]:
        return {"id": self.id, "language": self.language, "cwd": self.cwd}


class Contexts:
    """All contexts of the sandbox. `environment` gives the sandbox's global environment."""

    def __init__(self, reaper: Reaper, environment: Callable[[], Mapping[str, str]]) -> None:
        self._reaper = reaper
        self._environment = environment
        self._contexts: Dict[str, _Context] = {}
        self._defaults: Dict[str, str] = {}

    async def execute(
        self,
        channel: context_process.Channel,
        code: str,
        *,
        context_id: Optional[str] = None,
        language: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
    ) -> Dict[str, Any]:
        """`code.execute`: run `code` when those before it are done; END's answer. Raises Refused."""
        if user not in (None, "root"):
            raise refusals.Refused("invalid_argument", f"code contexts run as root, not as '{user}'")
        if context_id is not None and language is not None:
            raise refusals.Refused("invalid_argument", "only one of context_id or language can be provided")
        variables = dict(env or {})
        _check_environment(variables)
        context = self._find(context_id) if context_id is not None else self._default(language)
        execution = context_process.Execution(channel)
        async with context.turn:
            if context.is_removed:
                raise _not_found(context.id)
            if not channel.cancelled.is_set():
                await self._execute(context, execution, code, variables)
        return {"execution_count": execution.count}

    async def _execute(
        self, context: _Context, execution: context_process.Execution, code: str, variables: Dict[str, str]
    ) -> None:
        process = self._started(context)
        usual = self._full_environment()
        reset = {name: usual.get(name) for name in variables}
        # The process may be older than the sandbox's configuration.
        env = {**usual, **variables} if process.is_fresh else variables
        await process.execute(execution, {"code": code, "env": env, "reset": reset})

    def prepare(self) -> None:
        """Start the default context's process before it is asked for: its first execution is quicker then. Raises Refused."""
        self._started(self._default(PYTHON))

    async def create(self, language: Optional[str] = None, cwd: Optional[str] = None) -> Dict[str, Any]:
        """`code.create_context`: a new context, its process started. Raises Refused."""
        if cwd is not None and not os.path.isdir(cwd):
            raise refusals.Refused("invalid_argument", f"cwd '{cwd}' does not exist")
        context = self._add(_checked_language(language), cwd or DEFAULT_CWD)
        try:
            self._started(context)
        except refusals.Refused:
            del self._contexts[context.id]
            raise
        return {"context": context.describe()}

    async def list(self) -> Dict[str, Any]:
        """`code.list_contexts`: all of them, newest last; the default one for Python is always among them."""
        self._default(PYTHON)
        return {"contexts": [context.describe() for context in self._contexts.values()]}

    async def remove(self, context_id: str) -> Dict[str, Any]:
        """`code.remove_context`: end it and forget it. Raises Refused."""
        context = self._find(context_id)
        context.is_removed = True
        del self._contexts[context.id]
        if self._defaults.get(context.language) == context.id:
            del self._defaults[context.language]
        await _end(context, "the context was removed")
        return {}

    async def restart(self, context_id: str) -> Dict[str, Any]:
        """`code.restart_context`: its state is gone, its id stays. Raises Refused."""
        await _end(self._find(context_id), "the context was restarted")
        return {}

    async def interrupt(self, context_id: str) -> Dict[str, Any]:
        """`code.interrupt`: interrupt what runs now, if something does. Raises Refused."""
        process = self._find(context_id).process
        if process is not None:
            process.interrupt()
        return {}

    async def close(self) -> None:
        """End all contexts. Safe to call twice."""
        contexts = [*self._contexts.values()]
        for context in contexts:
            context.is_removed = True
        self._contexts.clear()
        self._defaults.clear()
        await asyncio.gather(*(_end(context, "the sandbox is shutting down") for context in contexts))

    def _find(self, context_id: str) -> _Context:
        context = self._contexts.get(context_id)
        if context is None:
            raise _not_found(context_id)
        return context

    def _default(self, language: Optional[str]) -> _Context:
        language = _checked_language(language)
        context_id = self._defaults.get(language)
        if context_id is None:
            context_id = self._defaults[language] = self._add(language, DEFAULT_CWD).id
        return self._contexts[context_id]

    def _add(self, language: str, cwd: str) -> _Context:
        if len(self._contexts) >= MAX_CONTEXTS:
            raise refusals.Refused("resource_exhausted", f"a sandbox has at most {MAX_CONTEXTS} contexts")
        context = _Context(language, cwd)
        self._contexts[context.id] = context
        return context

    def _started(self, context: _Context) -> context_process.ContextProcess:
        if not kernel.is_installed():
            raise refusals.Refused("unimplemented", "this template has no code interpreter: its Python lacks IPython")
        if context.process is None or not context.process.is_alive:
            context.process = context_process.ContextProcess(context.cwd, self._full_environment(), self._reaper.watch)
        return context.process

    def _full_environment(self) -> Dict[str, str]:
        root = users.find("root")
        # The interpreter's own folder first, so that `!pip` and `!python` are those of this environment.
        path = f"{os.path.dirname(sys.executable)}:{DEFAULT_PATH}" if sys.executable else DEFAULT_PATH
        return {"PATH": path, "HOME": root.home, "USER": "root", "LOGNAME": "root", **self._environment()}


async def _end(context: _Context, why: str) -> None:
    process, context.process = context.process, None
    if process is not None:
        process.kill(why)
        await process.gone()


def _checked_language(language: Optional[str]) -> str:
    name = (language or PYTHON).lower()
    if name not in LANGUAGES:
        raise refusals.Refused("invalid_argument", f"language '{name}' is not supported by this template")
    return name


def _check_environment(variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise refusals.Refused("invalid_argument", f"env: '{name}' cannot be a variable")
        try:
            os.fsencode(name + value)
        except UnicodeEncodeError:
            raise refusals.Refused("invalid_argument", f"env: {name!a} is not text") from None


def _not_found(context_id: str) -> refusals.Refused:
    return refusals.Refused("not_found", f"Context {context_id} not found")
