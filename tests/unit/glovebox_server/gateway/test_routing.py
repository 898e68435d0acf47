import pytest

from glovebox import errors
from glovebox_server.gateway import routing

ID = "i" + "a" * 19


@pytest.mark.parametrize(
    ("host", "sandbox_id", "port", "expected"),
    [
        ("127.0.0.1:3000", None, None, None),
        ("127.0.0.1:3000", ID, "49983", (ID, 49983)),
        ("[::1]:3000", ID, "3", (ID, 3)),
        ("LOCALHOST", ID, None, (ID, 49983)),
        ("sandbox.example.com", ID, "49999", (ID, 49999)),
        ("api.example.com", ID, "49983", None),  # not a host where headers are believed
        (f"3000-{ID}.example.com", None, None, (ID, 3000)),
        (f"3000-{ID}-deadbeef.example.com:8080", None, None, (ID + "-deadbeef", 3000)),
        (f"3000-{ID}.example.com", "i" + "b" * 19, "49983", (ID, 3000)),  # Host wins over the header
        ("", None, None, None),
        ("sandbox-api.example.com", ID, "1", None),
    ],
)
def test_target(host, sandbox_id, port, expected):
    found = routing.target(host, sandbox_id, port)
    assert (None if found is None else (found.sandbox_id, found.port)) == expected


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "٣", "", "123456"])
def test_bad_port_is_refused(port):
    with pytest.raises(errors.InvalidRequestError):
        routing.target("localhost", ID, port)
