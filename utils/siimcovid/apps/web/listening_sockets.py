"""The sockets that the page is served on."""

import errno
import socket

from siimcovid.core.errors import InputError

#: Families of addresses that this machine may lack: then a name's other addresses do.
LACKING = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT}

#: How often a free port is drawn anew because it is taken on the next address.
ATTEMPTS = 10


def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Bind a socket to each address of `host`: a name, an IPv4 or IPv6 address, or * for all of this machine.

    port: 0 to 65535; 0 takes a free one, the same for all addresses. Raises InputError where the host is not known or
    no address can be bound.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port {port} is no port: choose one from 1 to 65535, or 0 for a free one")
    addresses = _resolve(host, port)
    for attempt in range(ATTEMPTS):
        try:
            return _bind(addresses, port)
        except OSError as error:
            if port == 0 and error.errno == errno.EADDRINUSE and attempt < ATTEMPTS - 1:
                continue
            if error.errno in LACKING:
                raise InputError(f"--host {host} is no address of this machine: use 127.0.0.1, or * for all") from None
            reason = error.strerror or error
            raise InputError(f"cannot listen on {host}, port {port} ({reason}): choose another --port") from None
    raise AssertionError("the loop returns or raises")


def url(bound: socket.socket) -> str:
    """The address of a socket as a browser takes it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolve(host: str, port: int) -> list[tuple]:
    """(family, address) of each address of a host, IPv4 first."""
    name = None if host == "*" else host.strip("[]")
    try:
        found = socket.getaddrinfo(name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError):  # a ValueError where the text cannot be a name, such as "a..b"
        found = []
    if not found or not host:
        raise InputError(
            f"--host {host!r} is not known: use 127.0.0.1, an address or name of this machine, or * for all"
        )
    wanted = (socket.AF_INET, socket.AF_INET6)
    unique = dict.fromkeys((family, address) for family, _, _, _, address in found if family in wanted)
    return sorted(unique, key=lambda entry: wanted.index(entry[0]))


def _bind(addresses: list[tuple], port: int) -> list[socket.socket]:
    """Bind all addresses that this machine has. Raises OSError where one is taken, or none is there."""
    bound: list[socket.socket] = []
    lacking = OSError(errno.EADDRNOTAVAIL, "no address")
    for family, (name, _, *scope) in addresses:
        try:
            bound.append(_bind_one(family, (name, port, *scope)))
        except OSError as error:
            if error.errno not in LACKING:
                for one in bound:
                    one.close()
                raise
            lacking = error
        else:
            port = bound[-1].getsockname()[1]
    if not bound:
        raise lacking
    return bound


def _bind_one(family: socket.AddressFamily, address: tuple) -> socket.socket:
    one = socket.socket(family, socket.SOCK_STREAM)
    try:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(address)
    except OSError:
        one.close()
        raise
    return one
