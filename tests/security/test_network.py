"""There is no network but the sandbox's own loopback."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest
from e2b_code_interpreter import Sandbox

from tests.support import inside, servers

REACH = """
import socket
def reach(address, port):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as one:
        one.settimeout(10)
        return tried(one.connect, (address, port))
"""


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A service of the host, on every address that it has."""
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        yield listener.getsockname()[1]


def addresses_of_the_host() -> list[str]:
    return subprocess.run(["hostname", "-I"], capture_output=True, text=True).stdout.split()


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "8.8.8.8",
        "10.0.0.1",
        "172.17.0.1",
        "192.168.0.1",
        "100.100.100.200",
        "224.0.0.1",
        "255.255.255.255",
        "fd00:ec2::254",
        "2001:4860:4860::8888",
        "::ffff:169.254.169.254",
        "fe80::1",
    ],
)
def test_nothing_outside_can_be_reached(sandbox: Sandbox, address: str) -> None:
    """No route: refused by the sandbox's own kernel at once. With a route it would answer or run into the timeout."""
    source = f"{REACH}print(json.dumps(reach({address!r}, 80)))"
    assert inside.python(sandbox, source) in ("ENETUNREACH", "EACCES", "EINVAL", "EADDRNOTAVAIL", "EHOSTUNREACH")


def test_addresses_of_the_host_cannot_be_reached(sandbox: Sandbox) -> None:
    with listening() as port:
        for address in ["0.0.0.0", "127.0.0.1", "::1", *addresses_of_the_host()]:
            source = f"{REACH}print(json.dumps(reach({address!r}, {port})))"
            assert inside.on_host(source) == "done"
            assert inside.python(sandbox, source) in ("ECONNREFUSED", "ENETUNREACH", "EHOSTUNREACH")


def test_the_server_itself_cannot_be_reached(sandbox: Sandbox, server: servers.Server) -> None:
    port = int(server.url.rpartition(":")[2])
    source = f'{REACH}print(json.dumps([reach(a, {port}) for a in ("127.0.0.1", "::1", "0.0.0.0")]))'
    assert set(inside.python(sandbox, source)) == {"ECONNREFUSED"}


def test_datagrams_go_nowhere(sandbox: Sandbox) -> None:
    source = """
import socket
def send(address, family):
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        return tried(one.sendto, b"x", (address, 53))
print(json.dumps([send(a, socket.AF_INET) for a in ("8.8.8.8", "255.255.255.255", "224.0.0.251", "169.254.169.254")]
                 + [send(a, socket.AF_INET6) for a in ("ff02::1", "2001:4860:4860::8888")]))
"""
    for came in inside.python(sandbox, source):
        assert came in ("ENETUNREACH", "EADDRNOTAVAIL", "EHOSTUNREACH")


def test_names_fail_at_once(sandbox: Sandbox) -> None:
    """A program must not hang for half a minute on each name."""
    started = time.monotonic()
    source = """
import socket
try:
    print(json.dumps(socket.getaddrinfo("example.com", 80)))
except socket.gaierror as error:
    print(json.dumps("no"))
"""
    assert inside.python(sandbox, source) == "no"
    assert time.monotonic() - started < 10


def test_only_loopback_is_there(sandbox: Sandbox) -> None:
    source = "import socket\nprint(json.dumps([name for _, name in socket.if_nameindex()]))"
    assert inside.python(sandbox, source) == ["lo"]
    routes = inside.run(sandbox, "tail -n +2 /proc/net/route; grep -v ' lo$' /proc/net/ipv6_route").stdout
    assert routes == ""


def test_the_network_cannot_be_configured(sandbox: Sandbox) -> None:
    """Root inside does not own its network namespace: no new links, addresses or routes, whatever the filter lets through."""
    for command in ("ip link add d0 type dummy", "ip addr add 10.0.0.1/8 dev lo", "ip route add default dev lo"):
        ended = inside.run(sandbox, command)
        assert ended.exit_code != 0, command


def test_loopback_works(sandbox: Sandbox) -> None:
    source = """
import socket
def echo(family, address):
    with socket.create_server((address, 80), family=family) as listener:
        with socket.create_connection((address, 80), timeout=10) as client:
            server, _ = listener.accept()
            client.sendall(b"hello")
            return server.recv(5).decode()
print(json.dumps([echo(socket.AF_INET, "127.0.0.1"), echo(socket.AF_INET6, "::1")]))
"""
    assert inside.python(sandbox, source, user="user") == ["hello", "hello"]
