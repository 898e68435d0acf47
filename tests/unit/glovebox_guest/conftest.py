"""Contexts in a process of the template's Python (`context_driver`), and the fixtures that start one."""

import asyncio
import dataclasses
import itertools
import json
import pathlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.support import templates

WAIT_S = 60.0
DRIVER = pathlib.Path(__file__).with_name("context_driver.py")
ANALYSIS = ("numpy", "numpy.random", "pandas", "matplotlib.pyplot", "PIL.Image")


@pytest.fixture(scope="session")
def template_python() -> str:
    """The Python of the default template, in which code contexts run."""
    return templates.python()


@dataclasses.dataclass
class Run:
    """One call of the driver, and what has come of it so far."""

    call_id: int
    events: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    outputs: dict[int, str] = dataclasses.field(default_factory=lambda: {1: "", 2: ""})
    chunks: list[str] = dataclasses.field(default_factory=list)
    #: The kinds of the events and the texts of the chunks, as they came.
    order: list[str] = dataclasses.field(default_factory=list)
    answer: Any = None
    refused: list[str] | None = None
    done: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    changed: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)

    def take(self, words: dict[str, Any]) -> None:
        if "event" in words:
            self.events.append(words["event"])
            self.order.append(words["event"]["event"])
        elif "data" in words:
            text = words["data"].encode("latin-1").decode("utf-8", "replace")
            self.outputs[words["stream"]] += text
            self.chunks.append(text)
            self.order.append(text)
        else:
            self.answer, self.refused = words.get("answer"), words.get("refused")
            self.done.set()
        self.changed.set()

    @property
    def stdout(self) -> str:
        return self.outputs[1]

    @property
    def stderr(self) -> str:
        return self.outputs[2]

    @property
    def results(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["event"] == "result"]

    @property
    def main(self) -> dict[str, Any]:
        return next(event["data"] for event in self.events if event.get("is_main_result"))

    @property
    def text(self) -> str:
        return str(self.main["text/plain"])

    @property
    def error(self) -> dict[str, Any]:
        errors = [event for event in self.events if event["event"] == "error"]
        assert len(errors) <= 1
        return errors[0] if errors else {}

    async def until(self, condition: Callable[["Run"], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition(self):
                self.changed.clear()
                await self.changed.wait()


class Driver:
    """The driver's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ids = itertools.count(1)
        self._runs = {0: Run(0)}
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            words = json.loads(line)
            self._runs[words.pop("id")].take(words)
        for run in self._runs.values():
            run.done.set()

    async def finish(self, run: Run) -> Run:
        async with asyncio.timeout(WAIT_S):
            await run.done.wait()
        return run

    async def ready(self) -> None:
        await self.finish(self._runs[0])
        assert self._runs[0].answer == "ready"

    def start(self, call: str, **words: Any) -> Run:
        run = Run(next(self._ids))
        self._runs[run.call_id] = run
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": run.call_id, "call": call, **words}).encode() + b"\n")
        return run

    async def call(self, name: str, **words: Any) -> Any:
        run = await self.finish(self.start(name, **words))
        assert run.refused is None, run.refused
        return run.answer

    async def refusal(self, name: str, **words: Any) -> list[str]:
        run = await self.finish(self.start(name, **words))
        assert run.refused is not None
        return run.refused

    async def run(self, code: str, **words: Any) -> Run:
        run = await self.finish(self.start("execute", code=code, **words))
        assert run.refused is None, run.refused
        return run

    async def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        async with asyncio.timeout(WAIT_S):
            await self._process.wait()
            await self._reading


async def _driver(python: str, *modules: str) -> AsyncIterator[Driver]:
    process = await asyncio.create_subprocess_exec(
        python, str(DRIVER), *modules, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=2**27
    )
    driver = Driver(process)
    try:
        await driver.ready()
        yield driver
    finally:
        await driver.close()


@pytest.fixture
async def contexts(template_python: str, request: pytest.FixtureRequest) -> AsyncIterator[Driver]:
    """Contexts of a sandbox that is warm with IPython only; with the parameter `--cold`, not even that."""
    async for driver in _driver(template_python, *([request.param] if hasattr(request, "param") else [])):
        yield driver


@pytest.fixture
async def warm_contexts(template_python: str) -> AsyncIterator[Driver]:
    """Contexts of a sandbox that is warm with the modules that data analysts use."""
    async for driver in _driver(template_python, *ANALYSIS):
        yield driver
