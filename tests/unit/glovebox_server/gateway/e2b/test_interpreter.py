import asyncio
import json

import pytest

from glovebox_server.gateway.e2b import interpreter
from tests.support import server


async def run(world, box, **body):
    answer = await world.client.post("/execute", json=body, headers=server.code(box))
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


async def test_execute(world, box):
    events = await run(world, box, code="1+1", context_id=None, language=None, env_vars=None)
    assert events == [
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "result", "text": "2", "extra": {"x/y": 1}, "is_main_result": True},
        {"type": "end_of_execution"},
    ]


async def test_split_characters(world, box):
    events = await run(world, box, code="print")
    assert "".join(one["text"] for one in events if one["type"] == "stdout") == "a€\ufffd"
    assert all("timestamp" in one for one in events if one["type"] == "stdout")


async def test_errors(world, box):
    events = await run(world, box, code="raise")
    assert events[1] == {"type": "error", "name": "ValueError", "value": "no", "traceback": "Traceback"}
    assert events[-1] == {"type": "end_of_execution"}
    events = await run(world, box, code="die")
    assert events[1]["name"] == "ContextRestarting"
    assert events[1]["value"].startswith("Context was restarted")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"code": "x", "context_id": "a", "language": "b"}, 400, "Only one of context_id or language can be provided"),
        ({"code": "x", "context_id": "nope"}, 404, "Context nope not found"),
        ({"code": 5}, 400, "code: Input should be a valid string"),
        ({}, 400, "code: Field required"),
    ],
)
async def test_refusals(world, box, body, status, message):
    answer = await world.client.post("/execute", json=body, headers=server.code(box))
    assert (answer.status_code, answer.text) == (status, message)


async def test_execute_needs_the_token(world, box):
    headers = server.code(box)
    del headers["X-Access-Token"]
    assert (await world.client.post("/execute", json={"code": "1"}, headers=headers)).status_code == 401
    assert (await world.client.get("/contexts", headers=headers)).status_code == 200


async def test_contexts(world, box):
    headers = server.code(box)
    assert (await world.client.get("/health", headers=headers)).json() == "OK"
    made = (await world.client.post("/contexts", json={"language": "Python", "cwd": "/root"}, headers=headers)).json()
    assert made == {"id": "c1", "language": "python", "cwd": "/root"}
    assert (await world.client.get("/contexts", headers=headers)).json()[-1] == made
    assert (await world.client.post("/contexts/c1/restart", headers=headers)).status_code == 200
    assert (await world.client.delete("/contexts/c1", headers=headers)).status_code == 200
    for answer in (
        await world.client.delete("/contexts/c1", headers=headers),
        await world.client.post("/contexts/c1/restart", headers=headers),
    ):
        assert (answer.status_code, answer.text) == (404, "Context c1 not found")


async def test_a_wrong_token_opens_no_context(world, box):
    wrong = server.code(box) | {"X-Access-Token": "wrong"}
    for method, path in (("GET", "/contexts"), ("POST", "/contexts"), ("DELETE", "/contexts/python-1")):
        assert (await world.client.request(method, path, headers=wrong)).status_code == 401
    none = {name: value for name, value in server.code(box).items() if name != "X-Access-Token"}
    assert (await world.client.get("/contexts", headers=none)).status_code == 200  # as the SDKs ask


async def test_variables_are_bounded(world, box):
    many = {str(number): "" for number in range(200_000)}
    answer = await world.client.post("/execute", json={"code": "1", "env_vars": many}, headers=server.code(box))
    assert answer.status_code == 400
    assert "env_vars" in answer.text


async def test_headers_at_once_and_keepalives(world, box, monkeypatch):
    monkeypatch.setattr(interpreter, "KEEPALIVE_S", 0.1)
    guest = world.guest(box["sandboxID"])

    async def queued(*args, **kwargs):
        await asyncio.Event().wait()
        yield

    guest.execute = queued
    async with world.client.stream("POST", "/execute", json={"code": "x"}, headers=server.code(box)) as answer:
        assert json.loads(await anext(answer.aiter_lines())) == {"type": "keepalive"}


async def test_leaving_interrupts(world, box):
    guest = world.guest(box["sandboxID"])
    async with world.client.stream("POST", "/execute", json={"code": "sleep"}, headers=server.code(box)) as answer:
        await anext(answer.aiter_lines())
    await server.until(lambda: guest.interrupted == 1)


def test_result():
    assert interpreter.result({"text/latex": "$x$"}) == {"latex": "$x$", "extra": {}}
    bundle = {
        "text/plain": "'it''s'",
        "image/png": "AA==",
        "application/json": {"a": None},
        "e2b/chart": {},
        "text/html": None,
    }
    assert interpreter.result(bundle) == {"text": "it''s", "png": "AA==", "json": {"a": None}, "chart": {}, "extra": {}}
    assert [interpreter.unquoted(text) for text in ("'", "''", '"a"', "'a\"", "a")] == ["'", "", "a", "'a\"", "a"]
