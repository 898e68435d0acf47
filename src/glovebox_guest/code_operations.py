"""The code operations: parameters checked, then asked of the contexts, which are made on first use."""

import contextlib
from typing import Any, Awaitable, Callable, Dict, Mapping, Optional, Protocol

from glovebox_guest import channel as channels
from glovebox_guest import parameters, reaper, refusals, settings, users


class Contexts(Protocol):
    """What is used of `contexts.Contexts`."""

    async def execute(
        self,
        channel: channels.Channel,
        code: str,
        *,
        context_id: Optional[str] = None,
        language: Optional[str] = None,
        env: Optional[Mapping[str, str]] = None,
        user: Optional[str] = None,
    ) -> Dict[str, Any]: ...

    def prepare(self) -> None: ...

    def create(self, language: Optional[str] = None, cwd: Optional[str] = None) -> Awaitable[Dict[str, Any]]: ...

    def list(self) -> Awaitable[Dict[str, Any]]: ...

    def remove(self, context_id: str) -> Awaitable[Dict[str, Any]]: ...

    def restart(self, context_id: str) -> Awaitable[Dict[str, Any]]: ...

    def interrupt(self, context_id: str) -> Awaitable[Dict[str, Any]]: ...


#: Makes the contexts of a sandbox, of its reaper and a look at its global environment.
Factory = Callable[[reaper.Reaper, Callable[[], Mapping[str, str]]], Contexts]


class Code:
    """The handlers."""

    def __init__(self, config: settings.Settings, children: reaper.Reaper, factory: Optional[Factory]) -> None:
        self._config = config
        self._reaper = children
        self._factory = factory or _usual_contexts
        self._made: Optional[Contexts] = None

    @property
    def _contexts(self) -> Contexts:
        if self._made is None:
            self._made = self._factory(self._reaper, lambda: self._config.env)
        return self._made

    def prepare(self) -> None:
        """Start the default context before it is asked for. If that cannot be, whoever asks for it will be told."""
        with contextlib.suppress(refusals.Refused):
            self._contexts.prepare()

    async def execute(self, params: parameters.Parameters, channel: channels.Channel) -> Dict[str, Any]:
        """`code.execute`."""
        return await self._contexts.execute(
            channel,
            parameters.text(params, "code"),
            context_id=parameters.optional_text(params, "context_id"),
            language=parameters.optional_text(params, "language"),
            env=parameters.environment(params, "env"),
            user=parameters.optional_text(params, "user"),
        )

    async def create(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`code.create_context`."""
        cwd = parameters.optional_text(params, "cwd")
        if cwd:
            cwd = users.resolve(cwd, self._config.user({}), self._config.default_workdir)
        return await self._contexts.create(parameters.optional_text(params, "language"), cwd)

    async def list(self, _params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`code.list_contexts`."""
        return await self._contexts.list()

    async def remove(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`code.remove_context`."""
        return await self._contexts.remove(parameters.text(params, "context_id"))

    async def restart(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`code.restart_context`."""
        return await self._contexts.restart(parameters.text(params, "context_id"))

    async def interrupt(self, params: parameters.Parameters, _channel: channels.Channel) -> Dict[str, Any]:
        """`code.interrupt`."""
        return await self._contexts.interrupt(parameters.text(params, "context_id"))


def _usual_contexts(children: reaper.Reaper, environment: Callable[[], Mapping[str, str]]) -> Contexts:
    # Imported on first use: a sandbox that runs no code does not pay for it.
    from glovebox_guest import contexts

    return contexts.Contexts(reaper=children, environment=environment)
