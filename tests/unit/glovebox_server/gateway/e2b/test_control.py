import pytest

from glovebox import errors
from glovebox_server.model import ids


async def test_create_and_look(world):
    box = await world.create(timeout=60, metadata={"a": "b"}, envVars={"X": "1"})
    assert box["envdVersion"] == "0.6.13"
    assert box["templateID"] == "tpl1"
    assert box["alias"] == "base"
    assert box["trafficAccessToken"] is None
    assert box["domain"] is None
    assert box["clientID"] == "local"
    found = (await world.client.get(f"/sandboxes/{box['sandboxID']}", headers=world.api)).json()
    assert found["metadata"] == {"a": "b"}
    assert found["state"] == "running"
    assert found["lifecycle"] == {"autoResume": False, "onTimeout": "kill"}
    assert found["envdAccessToken"] == box["envdAccessToken"]
    assert found["endAt"].endswith("Z")


async def test_defaults_by_generation(world):
    for path, seconds in (("/sandboxes", 15), ("/v2/sandboxes", 300)):
        answer = await world.client.post(path, json={"templateID": "base"}, headers=world.api)
        box = world.sandboxes.live(ids.SandboxId(answer.json()["sandboxID"]))
        assert abs((box.end_at - box.started_at).total_seconds() - seconds) < 1


async def test_legacy_client_id_suffix(world, box):
    answer = await world.client.get(f"/sandboxes/{box['sandboxID']}-local", headers=world.api)
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "Invalid API key, please provide it"),
        ({"X-API-KEY": "e2b_00"}, "Invalid API key"),
        ({"X-API-KEY": ""}, "Invalid"),
    ],
)
async def test_keys_are_asked_for(world, headers, message):
    answer = await world.client.get("/v2/sandboxes", headers=headers)
    assert answer.status_code == 401
    assert answer.json()["code"] == 401
    assert answer.json()["message"].startswith(message)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "JSON"),
        ("[]", 400, "object"),
        ('{"timeout": 5}', 400, "templateID: Field required"),
        ('{"templateID": "base", "timeout": "5"}', 400, "timeout: Input should be a valid integer"),
        ('{"templateID": "base", "timeout": 0}', 400, "Timeout must be greater than 0"),
        ('{"templateID": "base", "timeout": 999999}', 400, "Timeout cannot be greater than 24 hours"),
        ('{"templateID": "base", "metadata": {"a": 1}}', 400, "metadata.a: Input should be a valid string"),
        ('{"templateID": "base", "metadata": {"a": "\\ud800"}}', 400, "JSON"),
        ('{"templateID": "nope"}', 404, "template 'nope' not found"),
        ('{"templateID": "base", "autoPause": true, "autoPauseMemory": false}', 501, "files only"),
        ('{"templateID": "base", "autoPauseMemory": false}', 400, "autoPauseMemory"),
        (
            '{"templateID": "base", "autoPause": true, "autoPauseMemory": false, "autoResume": {"enabled": true}}',
            400,
            "together with autoResume",
        ),
        ('{"templateID": "base", "network": {"allowOut": ["1.1.1.1"]}}', 400, "network.allowOut"),
        ('{"templateID": "base", "network": {"denyOut": ["example.com"]}}', 400, "invalid denied CIDR example.com"),
        ('{"templateID": "base", "network": {"allowPublicTraffic": false}}', 501, "allowPublicTraffic"),
        ('{"templateID": "base", "volumeMounts": [{"name": "v", "path": "/v"}]}', 501, "volumes"),
    ],
)
async def test_create_refuses(world, body, status, message):
    answer = await world.client.post("/v2/sandboxes", content=body, headers=world.api)
    assert answer.status_code == status, answer.text
    assert message in answer.json()["message"]
    assert answer.json()["code"] == status
    assert not list(world.sandboxes.live_all())


async def test_create_accepts_what_changes_nothing(world):
    await world.create(
        timeout=300,
        autoPause=False,
        autoPauseMemory=None,
        secure=True,
        allow_internet_access=True,
        network={"denyOut": ["0.0.0.0/0"], "allowPublicTraffic": True},
        unheard_of=[1],
    )


async def test_too_long_body(world):
    answer = await world.client.post("/v2/sandboxes", content=b'"' + b"x" * 2**20 + b'"', headers=world.api)
    assert answer.status_code == 400
    assert "longer than 1048576 bytes" in answer.json()["message"]


async def test_idempotency_key(world):
    headers = {**world.api, "Idempotency-Key": "a-1"}
    answers = [
        (await world.client.post("/v2/sandboxes", json={"templateID": "base"}, headers=headers)).json()
        for _ in range(2)
    ]
    assert answers[0] == answers[1]
    bad = await world.client.post(
        "/v2/sandboxes", json={"templateID": "base"}, headers=world.api | {"Idempotency-Key": "A B"}
    )
    assert bad.status_code == 400


async def test_pages(world):
    made = [(await world.create(metadata={"n": str(n % 2)}))["sandboxID"] for n in range(5)]
    seen, token = [], ""
    for expected in (2, 2, 1):
        answer = await world.client.get(
            "/v2/sandboxes", params={"limit": 2, **({"nextToken": token} if token else {})}, headers=world.api
        )
        assert answer.headers["X-Total-Running"] == "5"
        assert len(answer.json()) == expected
        seen += [one["sandboxID"] for one in answer.json()]
        token = answer.headers.get("X-Next-Token", "")
    assert not token
    assert seen == made[::-1]
    odd = await world.client.get("/v2/sandboxes?metadata=n%3D1", headers=world.api)
    assert {one["sandboxID"] for one in odd.json()} == {made[1], made[3]}
    for query in (
        "limit=0",
        "limit=101",
        "limit=x",
        "nextToken=!",
        "state=x",
        "order=up",
        "template=a:b",
        "startedAfter=z",
    ):
        answer = await world.client.get(f"/v2/sandboxes?{query}", headers=world.api)
        assert answer.status_code == 400, query


async def test_others_see_nothing(world, box):
    _, other = await world.keys.create("other", tenant="t2")
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("GET", "/metrics")):
        answer = await world.client.request(
            method, f"/sandboxes/{box['sandboxID']}{path}", headers={"X-API-KEY": other}
        )
        assert answer.status_code == 404
        assert (
            answer.json()["message"] == f"Sandbox \"{box['sandboxID']}\" doesn't exist or you don't have access to it"
        )
    assert (await world.client.get("/v2/sandboxes", headers={"X-API-KEY": other})).json() == []


async def test_life(world, box):
    one = f"/sandboxes/{box['sandboxID']}"
    sandbox_id = ids.SandboxId(box["sandboxID"])
    before = world.sandboxes.live(sandbox_id).end_at
    for path, body in (("/v2" + one + "/connect", b""), (one + "/connect", b'{"timeout": 5}')):
        answer = await world.client.post(path, content=body, headers=world.api)
        assert answer.status_code == 200
        assert answer.json()["envdAccessToken"] == box["envdAccessToken"]
    assert (world.sandboxes.live(sandbox_id).end_at - before).total_seconds() < 5
    assert (await world.client.post(one + "/connect", json={}, headers=world.api)).status_code == 400
    assert (await world.client.post(one + "/refreshes", headers=world.api)).status_code == 204
    assert (await world.client.post(one + "/timeout", json={"timeout": 900}, headers=world.api)).status_code == 204
    assert (world.sandboxes.live(sandbox_id).end_at - before).total_seconds() > 500
    assert (await world.client.post(one + "/timeout", json={"timeout": 0}, headers=world.api)).status_code == 204
    assert (await world.client.get(one, headers=world.api)).status_code == 404
    assert (await world.client.delete(one, headers=world.api)).status_code == 404


async def test_metrics(world, box):
    one = f"/sandboxes/{box['sandboxID']}/metrics"
    (sample,) = (await world.client.get(one, headers=world.api)).json()
    assert sample["cpuUsedPct"] == 12.5
    assert sample["memUsed"] == 1000
    assert (await world.client.get(one, params={"end": 1000}, headers=world.api)).json() == []
    many = await world.client.get(
        "/sandboxes/metrics", params={"sandbox_ids": f"{box['sandboxID']},i{'0' * 19},x"}, headers=world.api
    )
    assert list(many.json()["sandboxes"]) == [box["sandboxID"]]
    assert (await world.client.get("/sandboxes/metrics", headers=world.api)).status_code == 400


async def test_logs(world, box):
    one = f"/sandboxes/{box['sandboxID']}/logs"
    old = (await world.client.get(one, headers=world.api)).json()
    assert len(old["logs"]) == len(old["logEntries"]) > 0
    new = (await world.client.get("/v2" + one, headers=world.api)).json()["logs"]
    assert new == old["logEntries"]
    backward = (await world.client.get("/v2" + one + "?direction=backward", headers=world.api)).json()["logs"]
    assert backward == new[::-1]
    assert (await world.client.get("/v2" + one + "?level=error", headers=world.api)).json()["logs"] == []


async def test_network(world, box):
    one = f"/sandboxes/{box['sandboxID']}/network"
    assert (await world.client.put(one, json={"denyOut": ["10.0.0.0/8"]}, headers=world.api)).status_code == 204
    for body in ({"allowOut": ["1.1.1.1"]}, {"allow_internet_access": True}, {"rules": {"x": []}}):
        assert (await world.client.put(one, json=body, headers=world.api)).status_code == 400


async def test_keys_are_for_admins(world):
    assert (await world.client.get("/api-keys", headers=world.api)).status_code == 403
    admin = {"X-API-KEY": world.admin_key}
    made = (await world.client.post("/api-keys", json={"name": "new", "tenant": "t3"}, headers=admin)).json()
    assert made["key"].startswith(made["mask"]["prefix"] + made["mask"]["maskedValuePrefix"])
    assert (await world.client.get("/v2/sandboxes", headers={"X-API-KEY": made["key"]})).status_code == 200
    listed = (await world.client.get("/api-keys", headers=admin)).json()
    assert made["key"] not in str(listed)
    assert made["id"] in [one["id"] for one in listed]
    assert (await world.client.delete(f"/api-keys/{made['id']}", headers=admin)).status_code == 204
    assert (await world.client.get("/v2/sandboxes", headers={"X-API-KEY": made["key"]})).status_code == 401
    assert (await world.client.delete("/api-keys/nope", headers=admin)).status_code == 404
    assert world.audit.actions() == ["key.created", "key.revoked", "auth.refused"]


async def test_templates(world):
    (one,) = (await world.client.get("/templates", headers=world.api)).json()
    assert one["names"] == ["base", "code-interpreter-v1"]
    assert (await world.client.get("/templates/aliases/base", headers=world.api)).json() == {
        "templateID": "tpl1",
        "public": True,
    }
    for name in ("base", "tpl1"):
        found = (await world.client.get(f"/templates/{name}", headers=world.api)).json()
        assert (found["templateID"], found["names"]) == ("tpl1", one["names"])
        assert [build["buildID"] for build in found["builds"]] == [one["buildID"]]
    assert (await world.client.get("/templates/nope", headers=world.api)).status_code == 404
    missing = await world.client.get("/templates/aliases/a%2Fb%3Ac", headers=world.api)
    assert missing.status_code == 404
    assert missing.json()["message"] == "template 'a/b:c' not found"


class TestPause:
    async def ask(self, world, box, what, **body):
        path = f"/sandboxes/{box['sandboxID']}/{what}"
        return await world.client.post(path, json=body, headers=world.api)

    async def test_pause_and_connect(self, world, box):
        assert (await self.ask(world, box, "pause")).status_code == 204
        again = await self.ask(world, box, "pause")
        assert again.status_code == 409
        assert again.json()["message"] == f'Sandbox "{box["sandboxID"]}" is already paused'
        found = (await world.client.get(f"/sandboxes/{box['sandboxID']}", headers=world.api)).json()
        assert found["state"] == "paused"
        resumed = await world.client.post(f"/v2/sandboxes/{box['sandboxID']}/connect", headers=world.api)
        assert resumed.status_code == 201
        assert resumed.json()["envdAccessToken"] == box["envdAccessToken"]
        running = await self.ask(world, box, "connect", timeout=5)
        assert running.status_code == 200
        assert running.json() == resumed.json()

    async def test_a_body_is_not_needed(self, world, box):
        answer = await world.client.post(f"/sandboxes/{box['sandboxID']}/pause", headers=world.api)
        assert answer.status_code == 204

    async def test_legacy_resume(self, world, box):
        assert (await self.ask(world, box, "resume")).status_code == 409
        await self.ask(world, box, "pause")
        answer = await self.ask(world, box, "resume", autoPause=True)
        assert answer.status_code == 201
        assert answer.json() == box
        found = world.sandboxes.live(ids.SandboxId(box["sandboxID"]))
        assert found.auto_pause
        await self.ask(world, box, "timeout", timeout=0)
        assert (await self.ask(world, box, "pause")).status_code == 409

    async def test_keeping_alive_does_not_resume(self, world, box):
        await self.ask(world, box, "pause")
        for what, body in (("refreshes", {"duration": 60}), ("timeout", {"timeout": 60})):
            assert (await self.ask(world, box, what, **body)).status_code == 404

    async def test_what_is_unknown_or_ended(self, world, box):
        await world.client.delete(f"/sandboxes/{box['sandboxID']}", headers=world.api)
        for what in ("pause", "resume"):
            assert (await self.ask(world, box, what)).status_code == 404

    async def test_files_only_is_refused_in_words(self, world, box):
        assert (await self.ask(world, box, "pause", memory=False)).status_code == 501
        assert (await self.ask(world, box, "connect", memory=False, timeout=5)).status_code == 200  # it runs
        assert (await self.ask(world, box, "pause", memory=True)).status_code == 204
        for what in ("connect", "resume"):
            answer = await self.ask(world, box, what, memory=False, timeout=5)
            assert answer.status_code == 501
            assert "memory: false" in answer.json()["message"]
        found = (await world.client.get(f"/sandboxes/{box['sandboxID']}", headers=world.api)).json()
        assert found["state"] == "paused"

    async def test_strictly(self, world, box):
        world.node.fail["check"] = errors.CapacityError("the guest agent did not answer")
        answer = await self.ask(world, box, "pause", requireHealthyGuest=True)
        assert answer.status_code == 503
        assert (await self.ask(world, box, "pause", requireHealthyGuest=True)).status_code == 204

    async def test_list_by_state(self, world, box):
        other = await world.create()
        await self.ask(world, box, "pause")

        async def listed(**query):
            answer = await world.client.get("/v2/sandboxes", params=query, headers=world.api)
            assert answer.headers["X-Total-Running"] == "1"
            return {(one["sandboxID"], one["state"]) for one in answer.json()}

        paused, running = (box["sandboxID"], "paused"), (other["sandboxID"], "running")
        assert await listed(state="paused") == {paused}
        assert await listed(state="running") == {running}
        assert await listed(state="running,paused") == await listed() == {paused, running}
        legacy = await world.client.get("/sandboxes", headers=world.api)
        assert [one["sandboxID"] for one in legacy.json()] == [other["sandboxID"]]

    async def test_what_was_asked_for_is_shown(self, world):
        box = await world.create(autoPause=True, autoResume={"enabled": True})
        found = (await world.client.get(f"/sandboxes/{box['sandboxID']}", headers=world.api)).json()
        assert found["lifecycle"] == {"autoResume": True, "onTimeout": "pause"}

    async def test_both_successes_are_on_the_page(self, world):
        page = (await world.client.get("/openapi.json")).json()
        statuses = page["paths"]["/v2/sandboxes/{sandboxID}/connect"]["post"]["responses"]
        assert {"200", "201", "409", "429"} <= set(statuses)


async def test_what_is_not_served(world, box):
    one = f"/sandboxes/{box['sandboxID']}"
    for method, path in (
        ("POST", one + "/fork"),
        ("POST", "/v3/templates"),
        ("GET", "/volumes"),
    ):
        answer = await world.client.request(method, path, headers=world.api)
        assert answer.status_code == 501
        assert "not served" in answer.json()["message"]
    assert (await world.client.get("/nowhere", headers=world.api)).status_code == 404
    wrong = await world.client.patch(one, headers=world.api)
    assert wrong.status_code == 405
    assert wrong.headers["Allow"] == "DELETE, GET"


async def test_pages_without_a_key(world):
    assert (await world.client.get("/health")).status_code == 204
    page = (await world.client.get("/openapi.json")).json()
    assert set(page["paths"]["/v2/sandboxes"]) == {"get", "post"}
    text = (await world.client.get("/metrics")).text
    assert 'http_request_duration_seconds_count{method="GET",route="/health",status="204"} 1.0' in text


async def test_faults_stay_inside(world, box, monkeypatch):
    async def broken(*args, **kwargs):
        raise RuntimeError("/etc/secret")

    monkeypatch.setattr(world.sandboxes, "list", broken)
    answer = await world.client.get("/v2/sandboxes", headers=world.api)
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] in answer.text
