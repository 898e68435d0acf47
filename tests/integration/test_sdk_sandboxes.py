"""The official Python SDK: the life of sandboxes, and what each kind of mistake raises."""

import datetime as dt
import uuid
from collections.abc import Iterator

import e2b
import httpx
import pytest
from e2b_code_interpreter import AsyncSandbox, Sandbox

from tests.support import servers


@pytest.fixture
def sandbox(server: servers.Server) -> Iterator[Sandbox]:
    with Sandbox.create(timeout=60) as made:
        yield made


def test_create_info_and_kill(server: servers.Server) -> None:
    made = Sandbox.create(timeout=60, metadata={"purpose": "test ✓"}, envs={"GREETING": "hello"})
    info = made.get_info()
    assert info.sandbox_id == made.sandbox_id
    assert info.state == e2b.SandboxState.RUNNING
    assert info.metadata == {"purpose": "test ✓"}
    assert info.cpu_count >= 1
    assert info.memory_mb > 0
    assert 50 <= (info.end_at - info.started_at).total_seconds() <= 61
    assert made.is_running()
    assert made.commands.run("echo $GREETING").stdout == "hello\n"
    assert made.kill() is True
    assert made.kill() is False
    assert not made.is_running()
    with pytest.raises(e2b.NotFoundException):
        made.get_info()


def test_using_a_killed_sandbox_is_a_timeout_that_says_so(sandbox: Sandbox) -> None:
    sandbox.kill()
    with pytest.raises(e2b.TimeoutException, match=r"not found|end of life|not running"):
        sandbox.commands.run("true")
    with pytest.raises(e2b.TimeoutException):
        sandbox.run_code("1")


def test_kill_during_a_run_is_told_apart_from_a_network_error(sandbox: Sandbox) -> None:
    handle = sandbox.commands.run("sleep 60", background=True)
    Sandbox.kill(sandbox.sandbox_id)
    with pytest.raises(e2b.TimeoutException, match="killed or reached its end of life"):
        handle.wait()


def test_connect_gives_the_same_sandbox_and_only_extends(sandbox: Sandbox) -> None:
    sandbox.files.write("here.txt", "kept")
    sandbox.set_timeout(40)
    before = sandbox.get_info().end_at
    again = Sandbox.connect(sandbox.sandbox_id, timeout=10)
    assert again.files.read("here.txt") == "kept"
    assert again.get_info().end_at == before
    Sandbox.connect(sandbox.sandbox_id, timeout=300)
    assert sandbox.get_info().end_at > before + dt.timedelta(seconds=200)


def test_connect_to_nothing(server: servers.Server) -> None:
    with pytest.raises(e2b.NotFoundException):
        Sandbox.connect("i" + "0" * 19)


def test_set_timeout_moves_the_end_both_ways(sandbox: Sandbox) -> None:
    for seconds in (200, 20):
        sandbox.set_timeout(seconds)
        left = sandbox.get_info().end_at - dt.datetime.now(dt.UTC)
        assert abs(left.total_seconds() - seconds) < 3


def test_the_timeout_kills(server: servers.Server) -> None:
    made = Sandbox.create(timeout=60)
    made.set_timeout(1)
    servers.wait_until(lambda: not made.is_running(), 10)
    with pytest.raises(e2b.NotFoundException):
        made.get_info()


def test_set_timeout_zero_expires_now(server: servers.Server) -> None:
    made = Sandbox.create(timeout=60)
    made.set_timeout(0)
    servers.wait_until(lambda: not made.is_running(), 10)


def test_list_filters_and_pages(server: servers.Server) -> None:
    mark = uuid.uuid4().hex
    made = [Sandbox.create(timeout=60, metadata={"mark": mark, "n a&me": f"{n}=%"}) for n in range(5)]
    try:
        query = e2b.SandboxQuery(metadata={"mark": mark})
        pages, paginator = [], Sandbox.list(query=query, limit=2)
        while paginator.has_next:
            pages.append(paginator.next_items())
        assert [len(page) for page in pages] == [2, 2, 1]
        listed = [item.sandbox_id for page in pages for item in page]
        assert listed == [box.sandbox_id for box in reversed(made)]
        exact = Sandbox.list(query=e2b.SandboxQuery(metadata={"mark": mark, "n a&me": "3=%"})).next_items()
        assert [item.sandbox_id for item in exact] == [made[3].sandbox_id]
        assert Sandbox.list(query=e2b.SandboxQuery(metadata={"mark": "no"})).next_items() == []
        third = made[2].get_info().started_at
        later = e2b.SandboxQuery(metadata={"mark": mark}, started_after=third)
        assert {item.sandbox_id for item in Sandbox.list(query=later).next_items()} == {b.sandbox_id for b in made[2:]}
    finally:
        for box in made:
            box.kill()
    assert Sandbox.list(query=query).next_items() == []


def test_metrics_have_a_first_sample(sandbox: Sandbox) -> None:
    samples = sandbox.get_metrics()
    assert samples
    assert samples[0].mem_total > samples[0].mem_used > 0
    assert samples[0].disk_total > 0
    assert samples[0].cpu_count >= 1


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"template": "no-such-template"}, e2b.SandboxException, "no-such-template"),
        ({"api_key": "e2b_" + "0" * 40}, e2b.AuthenticationException, "401"),
        ({"timeout": -5}, e2b.SandboxException, "greater than"),
        ({"timeout": 1_000_000_000}, e2b.SandboxException, "hours"),
        ({"metadata": {"k": "v" * 1_000_000}}, e2b.SandboxException, "metadata"),
        ({"lifecycle": {"on_timeout": {"action": "pause", "mode": "filesystem"}}}, e2b.SandboxException, "files only"),
        ({"allow_internet_access": False, "network": {"allow_out": ["1.1.1.1"]}}, e2b.SandboxException, "network"),
    ],
)
def test_what_cannot_be_is_refused_with_words(
    server: servers.Server, arguments: dict[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        Sandbox.create(**arguments)  # type: ignore[arg-type]


def test_another_keys_sandboxes_do_not_exist(server: servers.Server, sandbox: Sandbox) -> None:
    made = httpx.post(f"{server.url}/api-keys", json={"name": "other"}, headers={"X-API-KEY": server.key}).json()
    other = made["key"]
    with pytest.raises(e2b.NotFoundException):
        Sandbox.connect(sandbox.sandbox_id, api_key=other)
    assert Sandbox.kill(sandbox.sandbox_id, api_key=other) is False
    assert sandbox.sandbox_id not in {item.sandbox_id for item in Sandbox.list(api_key=other).next_items()}
    theirs = Sandbox.create(timeout=30, api_key=other)
    assert theirs.kill(api_key=other)
    revoked = httpx.delete(f"{server.url}/api-keys/{made['id']}", headers={"X-API-KEY": server.key})
    assert revoked.status_code == 204
    with pytest.raises(e2b.AuthenticationException):
        Sandbox.create(api_key=other)


def test_a_wrong_access_token_opens_nothing(server: servers.Server, sandbox: Sandbox) -> None:
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983", "X-Access-Token": "wrong"}
    answer = httpx.post(f"{server.url}/process.Process/List", json={}, headers=headers)
    assert answer.status_code == 401
    without = httpx.get(
        f"{server.url}/files", params={"path": "/etc/passwd"}, headers={**headers, "X-Access-Token": ""}
    )
    assert without.status_code == 401


def test_host_name_routing(server: servers.Server, sandbox: Sandbox) -> None:
    answer = httpx.get(f"{server.url}/health", headers={"Host": f"49983-{sandbox.sandbox_id}.example.test"})
    assert answer.status_code == 204
    unknown = httpx.get(f"{server.url}/health", headers={"Host": f"49983-{'i' + '1' * 19}.example.test"})
    assert unknown.status_code == 502
    assert unknown.json()["message"] == "The sandbox was not found"


async def test_async_a_whole_life(server: servers.Server) -> None:
    made = await AsyncSandbox.create(timeout=60, metadata={"kind": "async"})
    assert await made.is_running()
    assert (await made.get_info()).metadata == {"kind": "async"}
    again = await AsyncSandbox.connect(made.sandbox_id)
    assert (await again.commands.run("whoami")).stdout == "user\n"
    listed = await AsyncSandbox.list(query=e2b.SandboxQuery(metadata={"kind": "async"})).next_items()
    assert [item.sandbox_id for item in listed] == [made.sandbox_id]
    assert await made.kill()
    assert not await made.is_running()
