"""A machine like Kaggle's around one command: no network, everything read-only but the folders that are named.

`run` starts this file as a program inside new mount and network namespaces (`unshare`, of util-linux). There it builds
a root of its own, in which the present one is mounted read-only and Kaggle's folders are added, and runs the command in
it. Memory files in /dev/shm stay writable, and /tmp is read-only and empty, but for the running Python's environment
where that lies in it. Standard library only. Where the machine allows no namespaces, `available` is None and `check.py`
makes do with copies and the guard.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

#: Mounted as they are: devices, processes and the kernel's own files are no storage.
LIVE = ("dev", "proc", "sys")

#: Not shown: the folder in which everybody may write, and Kaggle's own, which `mounts` makes up.
UNSHOWN = ("tmp", "kaggle")


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a place of the sandbox."""

    source: str
    target: str
    writable: bool = False


@cache
def available() -> tuple[str, ...] | None:
    """The `unshare` command that this machine allows, None where it allows none."""
    if not shutil.which("unshare") or not shutil.which("mount"):
        return None
    for options in (("--mount", "--net"), ("--map-root-user", "--mount", "--net")):
        command = ("unshare", *options)
        trial = [*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        if subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return command
    return None


def run(
    command: Sequence[str],
    mounts: Sequence[Mount],
    environment: Mapping[str, str],
    directory: str,
    scratch: Path,
    timeout: float,
) -> dict[str, int]:
    """Run a command in the sandbox; its output goes to `scratch`/log.txt.

    Returns {"exit": its exit code, "unreachable": how often something tried to send where no route leads}.
    """
    root, report = scratch / "root", scratch / "report.json"
    root.mkdir(parents=True, exist_ok=True)
    specification = scratch / "sandbox.json"
    specification.write_text(
        json.dumps(
            {
                "root": str(root),
                "mounts": [asdict(mount) for mount in (*own_python(), *mounts)],
                "command": list(command),
                "environment": dict(environment),
                "directory": directory,
                "report": str(report),
            }
        )
    )
    with (scratch / "log.txt").open("w") as log:
        done = subprocess.run(
            [*available(), sys.executable, "-I", __file__, str(specification)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    return json.loads(report.read_text()) if report.is_file() else {"exit": done.returncode or 1, "unreachable": 0}


def own_python() -> list[Mount]:
    """The running Python's folders, each at its own place, where the sandbox would not show them."""
    prefixes = [Path(prefix).resolve() for prefix in dict.fromkeys((sys.base_prefix, sys.prefix))]
    return [Mount(str(prefix), str(prefix)) for prefix in prefixes if prefix.parts[1] in UNSHOWN]


def main(specification: str) -> int:
    """Inside the namespaces: build the root, enter it, run the command and report."""
    wanted = json.loads(Path(specification).read_text())
    root = Path(wanted["root"])
    _mount("--make-rprivate", "/")
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(root))
    for entry in sorted(Path("/").iterdir()):
        _show(entry, root)
    nowhere = root / "nameserver"
    nowhere.write_text("nameserver 192.0.2.1\n")  # an address for documentation: asking it is counted, never answered
    resolver = root / os.path.realpath("/etc/resolv.conf").lstrip("/")
    if resolver.exists():
        _mount("--bind", str(nowhere), str(resolver))
    (root / "tmp").mkdir(exist_ok=True)
    writable = set()
    for mount in wanted["mounts"]:
        source, target = Path(mount["source"]), root / mount["target"].lstrip("/")
        if source.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        _mount("--bind", str(source), str(target))
        if mount["writable"]:
            writable.add(str(target))
    _make_read_only(root, writable)
    _raise_loopback()
    with open(wanted["report"], "w") as report:
        os.chroot(root)
        os.chdir(wanted["directory"])
        before = unreachable()
        code = subprocess.run(wanted["command"], env=wanted["environment"], check=False).returncode
        json.dump({"exit": code, "unreachable": unreachable() - before}, report)
    return code


def _show(entry: Path, root: Path) -> None:
    """Show one entry of the machine's root in the sandbox's."""
    target = root / entry.name
    if entry.is_symlink():
        target.symlink_to(os.readlink(entry))
    elif entry.is_dir() and entry.name not in UNSHOWN:
        target.mkdir()
        _mount("--rbind", str(entry), str(target))


def _make_read_only(root: Path, writable: set[str]) -> None:
    """Remount everything below `root` read-only, with its other options, which a user namespace may not drop."""
    live = tuple(f"{root}/{name}" for name in LIVE)
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split(" ")
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        inside = place == str(root) or place.startswith(f"{root}/")
        if inside and place not in writable and not place.startswith(live):
            kept = [option for option in fields[5].split(",") if option not in ("rw", "ro")]
            _mount("-o", ",".join(["remount", "bind", "ro", *kept]), place)


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


def _raise_loopback() -> None:
    """Switch 127.0.0.1 on, which Jupyter talks over; a new network namespace has it switched off."""
    request = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, request)  # SIOCSIFFLAGS


def unreachable() -> int:
    """How often, in this network namespace, something tried to send where no route leads (IPv4 and IPv6)."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    count = int(values[names.index("OutNoRoutes")])
    six = Path("/proc/net/snmp6")
    if six.is_file():
        count += sum(int(line.split()[1]) for line in six.read_text().splitlines() if line.startswith("Ip6OutNoRoutes"))
    return count


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
