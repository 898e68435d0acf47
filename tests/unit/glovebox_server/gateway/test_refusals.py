"""Failed authentications are counted and told to the audit trail, and cannot flood it."""

import pytest

from glovebox_server import telemetry
from glovebox_server.gateway import refusals
from glovebox_server.gateway.e2b import signatures
from tests.support import manager_fakes, server

_COUNTED = 'authentication_failures_total{plane="%s"} %s'


def refused(world):
    return [record for record in world.audit.records if record.action == "auth.refused"]


@pytest.mark.parametrize("headers", [{}, {"X-API-KEY": "nonsense"}, {"X-API-KEY": "e2b_" + "0" * 40}])
async def test_keys(world, headers):
    assert (await world.client.get("/v2/sandboxes", headers=headers)).status_code == 401
    (record,) = refused(world)
    assert record.security_events == ("unauthenticated",)
    assert record.detail["route"] == "/v2/sandboxes"
    assert record.detail["client"] == "127.0.0.1"
    assert "e2b_0" not in str(record)
    assert _COUNTED % ("control", "1.0") in (await world.client.get("/metrics")).text


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("POST", "/process.Process/List", server.envd),
        ("GET", "/files?path=a", server.envd),
        ("GET", "/envs", server.envd),
        ("POST", "/execute", server.code),
    ],
)
async def test_tokens(world, box, method, path, headers):
    answer = await world.client.request(method, path, headers=headers(box) | {"X-Access-Token": "wrong"})
    assert answer.status_code == 401
    (record,) = refused(world)
    assert record.sandbox_id == box["sandboxID"]
    assert _COUNTED % ("sandbox", "1.0") in (await world.client.get("/metrics")).text


async def test_signatures(world, box):
    past = "1000"
    signature = signatures.sign("a", "read", "user", box["envdAccessToken"], past)
    query = {"path": "a", "username": "user", "signature": signature, "signature_expiration": past}
    assert (await world.client.get("/files", params=query)).status_code == 401
    assert (await world.client.get("/files", params=query | {"path": "b"})).status_code == 401
    assert [record.detail["reason"] for record in refused(world)] == [
        "signature is already expired",
        "invalid signature",
    ]


async def test_what_is_no_refusal(world, box):
    assert (await world.client.get("/api-keys", headers=world.api)).status_code == 403
    assert (await world.client.post("/process.Process/List", json={}, headers=server.envd(box))).status_code == 200
    assert refused(world) == []


def test_a_flood_is_cut_and_counted():
    audit, now = manager_fakes.ListAudit(), [0.0]
    metrics = telemetry.Telemetry()
    told = refusals.Refusals(audit, metrics, lambda: now[0])
    scope = {"client": ("10.0.0.1", 5)}
    refusals.mark(scope, "wrong")
    for _ in range(1000):
        told.note(scope, "/x", None)
    assert len(audit.records) == 100
    now[0] += 2
    told.note(scope, "/x", None)
    assert audit.records[-1].detail["left_out_before"] == "900"
    assert (_COUNTED % ("control", "1001.0")).encode() in metrics.render()
