import pytest

from glovebox import errors
from glovebox_server.gateway.e2b import signatures

TOKEN = "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0"


@pytest.mark.parametrize(
    ("path", "user", "token", "expected"),
    [
        ("hello.txt", "user", TOKEN, "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"),
        ("hello.txt", "root", TOKEN, "v1_L6BLpSFZ4erpM7k1y1Z8n/iTxhp2HuTk3ZVsMQd1Pw8"),
        ("hello.txt", "", TOKEN, "v1_SnvZASdG5vD8p9rpaldX3434NfwgRVsYsvzCBL6oZbc"),
        ("a.txt", "", "tok", "v1_gDv73H8R9a10OdCSX0/JNMqMYLPpmCQAYJY+U68oQjM"),
    ],
)
def test_vectors(path, user, token, expected):
    assert signatures.sign(path, "read", user, token) == expected


def query(expiration=None, path="a", operation="read", **changes):
    found = {"path": path, "signature": signatures.sign(path, operation, "", TOKEN, expiration)}
    if expiration is not None:
        found["signature_expiration"] = expiration
    return found | changes


@pytest.mark.parametrize("good", [query(), query("1000"), query("1001")])
def test_good(good):
    signatures.check(good, "GET", TOKEN, 1000.9)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"path": "a"}, "missing signature query parameter"),
        (query(path="a") | {"path": "b"}, "invalid signature"),
        (query(operation="write"), "invalid signature"),
        (query(username="root"), "invalid signature"),
        (query(signature_expiration="2000"), "invalid signature"),
        (query("2000") | {"signature_expiration": "3000"}, "invalid signature"),
        (query("999"), "signature is already expired"),
        (query("-5"), "signature is already expired"),
        (query("soon"), "invalid signature"),
        (query(signature="v1_é"), "invalid signature"),
    ],
)
def test_bad(bad, message):
    with pytest.raises(errors.AuthenticationError, match=message):
        signatures.check(bad, "GET", TOKEN, 1000)


@pytest.mark.parametrize(
    ("header", "user"),
    [(None, None), ("Basic cm9vdDo=", "root"), ("basic dTpw", "u"), ("Bearer x", None), ("Basic Og==", None)],
)
def test_basic_user(header, user):
    assert signatures.basic_user(header) == user


@pytest.mark.parametrize("header", ["Basic !!", "Basic /w=="])
def test_bad_basic_user(header):
    with pytest.raises(errors.AuthenticationError):
        signatures.basic_user(header)
