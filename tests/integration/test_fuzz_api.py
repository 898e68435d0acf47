"""The control plane under random requests, made by schemathesis from the server's own OpenAPI page."""

import dataclasses
import pathlib
import random
from collections.abc import Iterator

import httpx
import hypothesis
import pytest
import requests
import schemathesis
from schemathesis import checks as known_checks
from schemathesis.generation import GenerationMode

from tests.support import servers

_REQUESTS = 10_000
_IDENTITIES = ("admin", "tenant", "nobody")
_KEYS_SANDBOXES = 3
#: What these would have: every method on every path refused in one way, ids that the fuzzer made up to exist, whatever
#: the schema allows to be granted (quotas, states and what is not served yet say no), and unknown parameters refused.
_NO_CHECKS = [
    getattr(known_checks, name)
    for name in (
        "unsupported_method",
        "use_after_free",
        "ensure_resource_availability",
        "positive_data_acceptance",
        "negative_data_rejection",
    )
]
_CONFIG = {
    "checks": {
        # 501 is what routes and options that are not served yet answer.
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "501"]},
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """One of our own, on which no key may have more than a few sandboxes."""
    folder = tmp_path_factory.mktemp("fuzzed")
    running = servers.Server(folder, limits_max_sandboxes_per_key=str(_KEYS_SANDBOXES), log_level="warning")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def keys(server: servers.Server) -> dict[str, str | None]:
    made = httpx.post(
        server.url + "/api-keys",
        headers={"X-API-KEY": server.key},
        json={"name": "fuzzer", "maxSandboxes": _KEYS_SANDBOXES},
    )
    return {"admin": server.key, "tenant": made.raise_for_status().json()["key"], "nobody": None}


@dataclasses.dataclass
class Caller:
    """Sends what was generated, sometimes with ids and names that exist, and looks at the answers."""

    server: servers.Server
    session: requests.Session
    sent: int = 0
    made: list[str] = dataclasses.field(default_factory=list)
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)
    chance: random.Random = dataclasses.field(default_factory=lambda: random.Random(0))

    def __call__(self, case: schemathesis.Case, *, valid: bool) -> None:
        if valid:
            self._make_true(case)
        answer = case.call(session=self.session)
        self.sent += 1
        self.statuses[answer.status_code] = self.statuses.get(answer.status_code, 0) + 1
        case.validate_response(answer, excluded_checks=_NO_CHECKS)
        check_answer(answer.status_code, answer.text, self.server.data_dir)
        if answer.status_code == 201 and "sandboxID" in answer.text:
            self.made.append(answer.json()["sandboxID"])

    def _make_true(self, case: schemathesis.Case) -> None:
        """Else no sandbox would ever be made or found."""
        if isinstance(case.body, dict) and "templateID" in case.body and self.chance.random() < 0.5:
            case.body = {"templateID": "base", "timeout": self.chance.choice((1, 60, 300))}
        if "sandboxID" in case.path_parameters and self.made and self.chance.random() < 0.5:
            case.path_parameters["sandboxID"] = self.chance.choice(self.made[-_KEYS_SANDBOXES:])


def check_answer(status: int, text: str, data_dir: pathlib.Path) -> None:
    """No fault, nothing of the host, and errors in their one shape."""
    assert status < 500 or status == 501, text
    for secret in ("Traceback", 'File "', str(data_dir), str(servers.ROOT), "site-packages"):
        assert secret not in text
    if status >= 400:
        body = httpx.Response(status, text=text).json()
        assert body["code"] == status
        assert isinstance(body["message"], str)
        assert set(body) <= {"code", "message", "error_code"}


@pytest.mark.timeout(600)
def test_random_requests(server: servers.Server, keys: dict[str, str | None]) -> None:
    config = schemathesis.Config.from_dict(_CONFIG)
    schema = schemathesis.openapi.from_url(server.url + "/openapi.json", config=config)
    operations = [found.ok() for found in schema.get_all_operations()]
    total, statuses = 0, set()
    for identity in _IDENTITIES:
        with requests.Session() as session:
            if (key := keys[identity]) is not None:
                session.headers["X-API-KEY"] = key
            caller = Caller(server, session)
            _fuzz(operations, caller, -(-_REQUESTS // len(_IDENTITIES)))
            total += caller.sent
            statuses |= set(caller.statuses)
        if identity == "nobody":
            assert set(caller.statuses) == {401}
        else:
            assert caller.made
    assert total >= _REQUESTS
    assert {200, 201, 204, 400, 401, 403, 404, 429, 501} <= statuses
    _leave_nothing(server)


def _fuzz(operations: list[object], caller: Caller, enough: int) -> None:
    """Round after round over all operations: some have few different requests, and their share goes to the others."""
    while caller.sent < enough:
        each = max(4, (enough - caller.sent) // (2 * len(operations)))
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _fuzz_one(operation, mode, caller, each)


def _fuzz_one(operation: object, mode: GenerationMode, caller: Caller, examples: int) -> None:
    valid = mode is GenerationMode.POSITIVE

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))  # type: ignore[attr-defined]
    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def run(case: schemathesis.Case) -> None:
        caller(case, valid=valid)

    try:
        run()
    except hypothesis.errors.Unsatisfiable:
        assert not valid  # there is no wrong way to send nothing


def _leave_nothing(server: servers.Server) -> None:
    with httpx.Client(base_url=server.url, headers={"X-API-KEY": server.key}, timeout=60) as admin:
        for one in admin.get("/sandboxes").json():
            assert admin.delete(f"/sandboxes/{one['sandboxID']}").status_code in (204, 404)
        assert admin.get("/sandboxes").json() == []
    assert "Traceback" not in server.log()
