"""Where the page listens: every form of a host's name or address, and a sentence for each that is none."""

import socket
from contextlib import ExitStack

import pytest

from siimcovid.apps.web import listening_sockets
from siimcovid.apps.web.listening_sockets import open_sockets, url
from siimcovid.core.errors import InputError

#: Whether this machine has IPv6 at all.
IPV6 = socket.has_ipv6
try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
except OSError:
    IPV6 = False
needs_ipv6 = pytest.mark.skipif(not IPV6, reason="this machine has no IPv6")


@pytest.fixture
def opened():
    """open_sockets, whose sockets are closed in the end."""
    with ExitStack() as stack:

        def of(host: str, port: int = 0) -> list[socket.socket]:
            return [stack.enter_context(one) for one in open_sockets(host, port)]

        yield of


def answers(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as client:
        return client.connect_ex((address, port)) == 0


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("localhost", ["127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("127.1", ["127.0.0.1"]),
        pytest.param("::1", ["::1"], marks=needs_ipv6),
        pytest.param("[::1]", ["::1"], marks=needs_ipv6),
        pytest.param("::", ["::1"], marks=needs_ipv6),
        pytest.param("*", ["127.0.0.1", "::1"], marks=needs_ipv6),
    ],
)
def test_host_is_reached_at_one_port(host, reached, opened):
    sockets = opened(host)
    for one in sockets:
        one.listen()
    (port,) = {one.getsockname()[1] for one in sockets}
    assert all(answers(address, port) for address in reached)


def resolving(monkeypatch, *addresses: str) -> None:
    """Let every name resolve to these addresses."""
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (a, 0, 0, 0))
        if ":" in a
        else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 0))
        for a in addresses
    ]
    monkeypatch.setattr(listening_sockets.socket, "getaddrinfo", lambda *_, **__: found)


@needs_ipv6
@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["::1", "127.0.0.1"], ["127.0.0.1", "[::1]"]),
        (["::1"], ["[::1]"]),
        (["127.0.0.1", "127.0.0.1"], ["127.0.0.1"]),
        (["127.0.0.1", "2001:db8::1"], ["127.0.0.1"]),  # not this machine's, but the other one is
    ],
    ids=str,
)
def test_name_with_several_addresses(addresses, expected, opened, monkeypatch):
    resolving(monkeypatch, *addresses)
    sockets = opened("a-name")
    port = sockets[0].getsockname()[1]
    assert [url(one) for one in sockets] == [f"http://{host}:{port}" for host in expected]


@pytest.mark.parametrize("host", ["", "nowhere.invalid", "127.0.0.1:80", "a..b", "x" * 300, "192.0.2.1", "ü*"])
def test_unknown_host_is_a_sentence(host):
    with pytest.raises(InputError, match=r"--host .* use 127\.0\.0\.1"):
        open_sockets(host, 0)


@pytest.mark.parametrize("port", [-1, 65536])
def test_impossible_port_is_a_sentence(port):
    with pytest.raises(InputError, match=f"--port {port} is no port"):
        open_sockets("127.0.0.1", port)


def test_taken_port_is_a_sentence(opened):
    (one,) = opened("127.0.0.1")
    one.listen()
    port = one.getsockname()[1]
    with pytest.raises(InputError, match=rf"port {port} \(Address already in use\): choose another --port"):
        open_sockets("127.0.0.1", port)
