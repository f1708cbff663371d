"""One rehearsal of the kernel: its notebook runs as on Kaggle, and what it left is held against the rules.

papermill executes the notebook, as Kaggle does, in a Python like Kaggle's (docker_image.py), where only
/kaggle/working, /kaggle/temp, /tmp and Jupyter's own folder can be written, HOME is an empty folder, and there is no
network (sandbox.py, network_guard.py). The competition's test folder is not the visible one (rehearsal_inputs.py).
"""

import json
import os
import shutil
import subprocess
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from siimcovid.evaluation.submission_validator import validate
from siimcovid.kaggle import CODE_ARCHIVE, KERNEL, network_guard, sandbox
from siimcovid.kaggle.kaggle_metadata import read_json
from siimcovid.kaggle.rehearsal_inputs import SAMPLE, Layout, input_folders, sample_ids

NOTEBOOK_RUN = "__notebook__.ipynb"

#: Folders of /kaggle that a run may write: its output, what is thrown away after it, Jupyter's own files.
WRITABLE = ("working", "temp", "jupyter")


@dataclass
class Verdict:
    """The outcome of one run: its faults (none if all is well) and the seconds it took."""

    layout: str
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Rehearsal:
    """What all runs of a check have in common."""

    bundles: Path  # the three datasets, and the kernel's folder
    competition: Path  # with the hidden test set in place of the visible one
    visible_sample: Path  # the sample submission of the visible test set
    python: Path  # of the environment like Kaggle's
    owner: str
    notebook: str  # file name in the kernel's folder
    scratch: Path
    minutes: float  # the longest that a run may take
    ranks: int = 0  # processes that train together on the CPU; 0: as many as there are GPUs


def run_layout(rehearsal: Rehearsal, layout: Layout, folder: Path) -> Verdict:
    """Run the notebook once, with the inputs mounted as `layout` says, and list the faults."""
    places = input_folders(layout, rehearsal.bundles, rehearsal.competition, rehearsal.owner, folder)
    made = {name: folder / name for name in (*WRITABLE, "home", "guard")}
    for path in made.values():
        path.mkdir(parents=True)
    shutil.copyfile(network_guard.__file__, made["guard"] / "sitecustomize.py")
    begin = time.monotonic()
    run = run_isolated if sandbox.available() else run_guarded
    try:
        report = run(rehearsal, places, made, folder)
    except subprocess.TimeoutExpired:
        report = {"exit": 0, "unreachable": 0, "late": True}
    verdict = Verdict(layout.name, seconds=time.monotonic() - begin)
    verdict.faults += find_faults(rehearsal, made["working"], report)
    verdict.faults += find_connections(made["jupyter"] / "attempts.jsonl", report["unreachable"])
    return verdict


def find_faults(rehearsal: Rehearsal, working: Path, report: dict) -> list[str]:
    """What is wrong with a finished run: its exit code, what was degraded, its output, its submission."""
    faults = []
    if report.get("late"):
        faults.append(f"not done after {rehearsal.minutes:g} minutes")
    if report["exit"]:
        faults.append(f"the notebook ended with {report['exit']}: {last_line(working.parent / 'log.txt')}")
    run = working / "run.json"
    degraded = read_json(run).get("degraded") or [] if run.is_file() else []
    faults += [f"{entry.get('step')} was degraded: {entry.get('reason')}" for entry in degraded]
    if (working / "cache").is_dir() and any((working / "cache").iterdir()):
        faults.append("the prepared images lie in /kaggle/working, so Kaggle would keep them as the kernel's output")
    submission, index = working / "submission.csv", working / "index.csv"
    if not submission.is_file():
        return [*faults, "no submission.csv was written"]
    faults += validate(submission, rehearsal.competition / SAMPLE, index if index.is_file() else None).faults[:3]
    if sample_ids(submission) & sample_ids(rehearsal.visible_sample):
        faults.append("the submission answers the visible test, not the hidden one")
    return faults


def find_connections(attempts: Path, unreachable: int) -> list[str]:
    """The connections that were attempted: those that network_guard.py wrote down, and those that only Linux saw."""
    lines = sorted(set(attempts.read_text(encoding="utf-8").splitlines())) if attempts.is_file() else []
    faults = []
    for attempt in map(json.loads, lines):
        place = " < ".join(reversed(attempt["from"]))
        faults.append(f"a connection to {attempt['target']} was attempted ({place})")
    if unreachable and not lines:
        faults.append(f"{unreachable} connections were attempted outside Python")
    return faults


def last_line(log: Path) -> str:
    """The last line of a log that is not blank."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def environment(kaggle: str, ranks: int = 0) -> dict[str, str]:
    """The variables of the run, below the folder that stands for /kaggle."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    if ranks:
        kept |= {"SIIMCOVID_PROCESSES": str(ranks), "GLOO_SOCKET_IFNAME": "lo"}
    return {
        **kept,
        "PATH": f"{kaggle}/image/bin:/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": f"{kaggle}/home",
        "PYTHONPATH": f"{kaggle}/guard",
        "SIIMCOVID_ATTEMPTS": f"{kaggle}/jupyter/attempts.jsonl",
        "JUPYTER_RUNTIME_DIR": f"{kaggle}/jupyter/runtime",
        "JUPYTER_CONFIG_DIR": f"{kaggle}/jupyter/config",
        "JUPYTER_DATA_DIR": f"{kaggle}/jupyter/data",
        "IPYTHONDIR": f"{kaggle}/jupyter/ipython",
        "KAGGLE_KERNEL_RUN_TYPE": "Batch",
        "KAGGLE_IS_COMPETITION_RERUN": "1",
    }


def command(python: str, notebook: str, kaggle: str) -> list[str]:
    """papermill on the kernel's notebook, without parameters, as Kaggle runs it."""
    working = f"{kaggle}/working"
    options = ["-k", "python3", "--log-output", "--no-progress-bar", "--cwd", working]
    return [python, "-m", "papermill", notebook, f"{working}/{NOTEBOOK_RUN}", *options]


def run_isolated(rehearsal: Rehearsal, places: dict[str, Path], made: dict[str, Path], folder: Path) -> dict[str, int]:
    """In the sandbox: /kaggle is /kaggle."""
    mounts = [sandbox.Mount(str(source), f"/kaggle/input/{place}") for place, source in places.items()]
    mounts += [sandbox.Mount(str(path), f"/kaggle/{name}", name in WRITABLE) for name, path in made.items()]
    mounts += [
        *sandbox.python_mounts(rehearsal.python),
        sandbox.Mount(str(rehearsal.python.parents[1]), "/kaggle/image"),
        sandbox.Mount(str(rehearsal.bundles / KERNEL), "/kaggle/kernel"),
    ]
    line = command("/kaggle/image/bin/python", f"/kaggle/kernel/{rehearsal.notebook}", "/kaggle")
    variables = environment("/kaggle", rehearsal.ranks)
    return sandbox.run(line, mounts, variables, "/kaggle/working", folder, rehearsal.minutes * 60)


def run_guarded(rehearsal: Rehearsal, places: dict[str, Path], made: dict[str, Path], folder: Path) -> dict[str, int]:
    """Without a sandbox: copies in which /kaggle is called `folder`, read-only as far as permissions reach."""
    inputs = folder / "input"
    for place, source in places.items():
        shutil.copytree(source, inputs / place)
    shutil.copytree(rehearsal.bundles / KERNEL, folder / KERNEL)
    _move_kaggle((*inputs.rglob("*.py"), folder / KERNEL / rehearsal.notebook), inputs.rglob(CODE_ARCHIVE), folder)
    (folder / "image").symlink_to(rehearsal.python.parents[1])
    frozen = [path for top in (inputs, made["home"], made["guard"]) for path in (top, *top.rglob("*"))]
    for path in frozen:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with (folder / "log.txt").open("w") as log:
            line = command(str(rehearsal.python), str(folder / KERNEL / rehearsal.notebook), str(folder))
            done = subprocess.run(
                line,
                env=environment(str(folder), rehearsal.ranks),
                cwd=made["working"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=rehearsal.minutes * 60,
                check=False,
            )
    finally:
        for path in frozen:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return {"exit": done.returncode, "unreachable": 0}


def _move_kaggle(texts, archives, folder: Path) -> None:
    """Replace Kaggle's folders by those below `folder`, in text files and in the code archives."""

    def moved(data: bytes) -> bytes:
        for name in (b"/kaggle/input", b"/kaggle/working", b"/kaggle/temp"):
            data = data.replace(name, os.fsencode(folder) + name.removeprefix(b"/kaggle"))
        return data

    for path in texts:
        path.write_bytes(moved(path.read_bytes()))
    for path in archives:
        with zipfile.ZipFile(path) as stream:
            entries = [(entry, stream.read(entry)) for entry in stream.infolist()]
        with zipfile.ZipFile(path, "w") as stream:
            for entry, data in entries:
                stream.writestr(entry, moved(data))
