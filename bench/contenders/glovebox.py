"""Glovebox, asked in two ways: over plain HTTP, which shows the server, and by the E2B SDK, which users have."""

import contextlib
import pathlib
import time

import e2b
from e2b_code_interpreter.code_interpreter_sync import Sandbox

from bench import machine, server
from bench.contenders import contract

HTTP_KEY = "glovebox-http"
SDK_KEY = "glovebox-sdk"


class _Glovebox(contract.Contender):
    """Both measure one server."""

    def __init__(self, shared: server.Server) -> None:
        self._server = shared

    def missing(self) -> str | None:
        return self._server.missing()

    def version(self) -> str:
        return machine.commit()

    def prepare(self, work: pathlib.Path) -> None:
        self._server.start(work)

    def close(self) -> None:
        self._server.stop()


class Http(_Glovebox):
    key = HTTP_KEY
    name = "Glovebox (HTTP)"
    how = "`POST /v2/sandboxes`, then `POST /execute`, on one kept-alive connection; namespace runtime"

    def __init__(self, shared: server.Server) -> None:
        super().__init__(shared)
        self._client: server.Client | None = None

    def prepare(self, work: pathlib.Path) -> None:
        super().prepare(work)
        self._client = server.Client(self._server)

    def measure(self, metric: str) -> int:
        client = self._client
        if client is None:
            raise contract.MeasureError("the server is not running")
        start = time.perf_counter_ns()
        sandbox = client.create()
        end = time.perf_counter_ns()
        try:
            if metric == contract.FIRST_RESULT:
                end = _until_result(client, sandbox)
        finally:
            client.kill(sandbox["sandboxID"])
        return end - start

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        super().close()


def _until_result(client: server.Client, sandbox: dict[str, str]) -> int:
    """The time at which the result of 1+1 came in."""
    came = 0
    for event in client.execute(sandbox, "1+1"):
        if event.get("type") == "result" and event.get("text") == "2":
            came = time.perf_counter_ns()
    if not came:
        raise contract.MeasureError("1+1 had no result")
    return came


class Sdk(_Glovebox):
    key = SDK_KEY
    name = "Glovebox (E2B Python SDK)"
    how = '`Sandbox.create()`, then `run_code("1+1")`, of the unmodified `e2b_code_interpreter`; namespace runtime'

    def version(self) -> str:
        return f"{super().version()}; e2b {e2b.__version__}" if hasattr(e2b, "__version__") else super().version()

    def measure(self, metric: str) -> int:
        url, key = self._server.url, self._server.key
        start = time.perf_counter_ns()
        try:
            sandbox = Sandbox.create(api_key=key, api_url=url, sandbox_url=url)
            end = time.perf_counter_ns()
        except e2b.SandboxException as error:
            raise contract.MeasureError(f"Sandbox.create: {error}") from error
        self._server.created.append(sandbox.sandbox_id)
        try:
            if metric == contract.FIRST_RESULT:
                execution = sandbox.run_code("1+1")
                end = time.perf_counter_ns()
                if execution.text != "2":
                    raise contract.MeasureError(f"1+1 was {execution.text!r}, {execution.error}")
        except e2b.SandboxException as error:
            raise contract.MeasureError(f"run_code: {error}") from error
        finally:
            with contextlib.suppress(e2b.SandboxException):
                sandbox.kill()
        return end - start
