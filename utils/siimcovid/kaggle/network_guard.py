"""Refuses and records every attempt at a connection. Copied as `sitecustomize.py`, which Python imports at its start.

Python announces sockets to audit hooks, whatever library uses them; what is attempted in other languages is counted by
the kernel of the network namespace (see `sandbox.py`). Jupyter's own messages go through zmq and are not announced.
Standard library only.

In: the environment variable SIIMCOVID_ATTEMPTS, the file to write to. Out: a line of JSON for each attempt.
"""

import errno
import json
import os
import socket
import sys
import traceback

#: Names and addresses that are resolved without a network.
OWN_NAMES = {None, "", "127.0.0.1", "::1", "::", "0.0.0.0", "localhost", b"localhost"}
CONNECTING = ("socket.connect", "socket.sendto", "socket.sendmsg")
LOOKING_UP = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo")


def attempt_of(event: str, arguments: tuple) -> str | None:
    """What an audit event tries to reach, or None where that is nothing outside this process's own machine files."""
    if event in CONNECTING:
        address = arguments[1]  # a path or bytes is a socket in the file system; None sends to who is connected already
        return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else None
    if event in LOOKING_UP:
        name = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        return None if name in OWN_NAMES or name == socket.gethostname() else str(name)
    return None


def callers() -> list[str]:
    """The last places on the way to the attempt, outermost first, that are not Python's own library."""
    frames = [(frame.filename, f"{frame.filename}:{frame.lineno}") for frame in traceback.extract_stack()[:-2]]
    own = os.path.dirname(os.__file__)
    foreign = [place for file, place in frames if not file.startswith((own, "<frozen")) or "site-packages" in file]
    return foreign[-4:]


def install(path: str) -> None:
    """Add the hook; it cannot be removed again."""

    def hook(event: str, arguments: tuple) -> None:
        if not event.startswith("socket."):
            return
        target = attempt_of(event, arguments)
        if target is None:
            return
        with open(path, "a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": event, "target": target, "from": callers()}) + "\n")
        if event in LOOKING_UP:
            raise socket.gaierror(socket.EAI_AGAIN, "there is no network")
        raise OSError(errno.ENETUNREACH, "there is no network")

    sys.addaudithook(hook)


if "SIIMCOVID_ATTEMPTS" in os.environ:
    install(os.environ["SIIMCOVID_ATTEMPTS"])
