"""Runs one command on a machine like Kaggle's: no network, nothing writable but the folders that are named.

bubblewrap (`bwrap`, a package of every Linux distribution) makes the mount, process and network namespaces. This
machine's folders are shown read-only, Kaggle's are added at their places, /tmp is empty and kept in memory. Inside,
this file runs as a program around the command and counts what was sent where no route leads. Standard library only.
Where bubblewrap is missing or may not make namespaces, `available` is False and rehearsal.py makes do with read-only
copies.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

#: Not shown: /tmp, where everybody may write, and /kaggle, which `mounts` makes up.
HIDDEN_FOLDERS = ("tmp", "kaggle")

#: Asking this nameserver (an address reserved for documentation) is counted, and never answered. The machine's own name
#: needs none, as in a container.
HOSTNAME = "kaggle"
FILES = {
    "/etc/resolv.conf": "nameserver 192.0.2.1\n",
    "/etc/hosts": f"127.0.0.1 localhost {HOSTNAME}\n::1 localhost {HOSTNAME}\n",
}

ISOLATE = ("--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--hostname", HOSTNAME)
ISOLATE += ("--die-with-parent", "--proc", "/proc", "--dev", "/dev")


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine at a place of the sandbox."""

    source: str
    target: str
    writable: bool = False


@cache
def available() -> bool:
    """Whether bubblewrap is installed and this machine lets it make namespaces."""
    if not shutil.which("bwrap"):
        return False
    trial = ["bwrap", "--ro-bind", "/", "/", *ISOLATE, "true"]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


def run(
    command: Sequence[str],
    mounts: Sequence[Mount],
    environment: Mapping[str, str],
    directory: str,
    scratch: Path,
    timeout: float,
) -> dict[str, int]:
    """Run a command in the sandbox; its output goes to `scratch`/log.txt.

    Args:
        command: program and arguments, as seen inside.
        mounts: what is added to this machine's folders. The running Python's own folders always are.
        environment: the only variables.
        directory: the working directory, inside.
        scratch: a folder of this machine, made where it is missing.
        timeout: seconds; subprocess.TimeoutExpired after them.

    Returns:
        {"exit": the command's exit code, "unreachable": how often something was sent where no route leads}.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    report = scratch / "report.json"
    report.write_text("")
    own = [
        *python_mounts(),
        Mount(__file__, "/sandbox/sandbox.py"),
        Mount(str(report), "/sandbox/report.json", writable=True),
    ]
    for place, text in FILES.items():
        if os.path.exists(place):
            file = scratch / Path(place).name
            file.write_text(text)
            own.append(Mount(str(file), os.path.realpath(place)))
    line = ["bwrap", *ISOLATE, *_show_machine()]
    for mount in (*own, *mounts):
        line += ["--bind" if mount.writable else "--ro-bind", mount.source, mount.target]
    line += ["--remount-ro", "/", "--chdir", directory, "--clearenv"]
    for name, value in environment.items():
        line += ["--setenv", name, value]
    line += ["--", sys.executable, "-I", "/sandbox/sandbox.py", "/sandbox/report.json", *command]
    with (scratch / "log.txt").open("w") as log:
        done = subprocess.run(
            line, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
    written = report.read_text()
    return json.loads(written) if written else {"exit": done.returncode or 1, "unreachable": 0}


def python_mounts(python: Path | str = sys.executable) -> list[Mount]:
    """The folders of a Python (the running one by default) that lie where the sandbox would not show them."""
    folders = dict.fromkeys((Path(python).absolute().parents[1], Path(python).resolve().parents[1]))
    if python == sys.executable:
        folders |= dict.fromkeys(Path(prefix).resolve() for prefix in (sys.prefix, sys.base_prefix))
    return [Mount(str(folder), str(folder)) for folder in folders if folder.parts[1] in HIDDEN_FOLDERS]


def _show_machine() -> list[str]:
    """bubblewrap's options that show this machine's root read-only, an empty /tmp and an empty /kaggle."""
    options = []
    for entry in sorted(Path("/").iterdir()):
        if entry.is_symlink():
            options += ["--symlink", os.readlink(entry), str(entry)]
        elif entry.is_dir() and entry.name not in (*HIDDEN_FOLDERS, "proc", "dev"):
            options += ["--ro-bind", str(entry), str(entry)]
    return [*options, "--tmpfs", "/tmp"]


def unroutable_packets() -> int:
    """How often, in this network namespace, something was sent where no route leads (IPv4 and IPv6)."""
    names, values = (line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line.startswith("Ip:"))
    count = int(values[names.index("OutNoRoutes")])
    six = Path("/proc/net/snmp6")
    if six.is_file():
        count += sum(int(line.split()[1]) for line in six.read_text().splitlines() if line.startswith("Ip6OutNoRoutes"))
    return count


def main(report: str, *command: str) -> int:
    """Inside the namespaces: run the command, and write its exit code and the count."""
    before = unroutable_packets()
    code = subprocess.run(command, check=False).returncode
    Path(report).write_text(json.dumps({"exit": code, "unreachable": unroutable_packets() - before}))
    return code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
