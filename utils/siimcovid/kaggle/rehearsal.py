"""Executes the built bundles as Kaggle would, and says whether a valid submission comes out.

For each of Kaggle's layouts the kernel's notebook runs, by papermill as there, in a stand-in for Kaggle's Python
(`image.py`) on a machine without a network, where only /kaggle/working (and Jupyter's own folder) can be written and
HOME is an empty folder (`sandbox.py`, `recover.py`), on a competition whose test folder is not the visible one
(`trial.py`). Bundles that are not built yet are built for the occasion, with small weights that know nothing.
"""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json
from siimcovid.evaluation.submission_validator import validate
from siimcovid.kaggle import CODE_ARCHIVE, KERNEL, NOBODY, SLUGS, network_guard, sandbox, wheels_dataset
from siimcovid.kaggle.build_bundles import PACKAGE, Repository, assembled, build, missing_bundles, size_line
from siimcovid.kaggle.code_dataset import write_code
from siimcovid.kaggle.kaggle_image import make_image
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE, KERNEL_FILE, check_kernel, dataset_metadata, read_json
from siimcovid.kaggle.rehearsal_inputs import (
    LAYOUTS,
    SAMPLE,
    Layout,
    input_folders,
    sample_ids,
    write_hidden_competition,
    write_tiny_weights,
)
from siimcovid.kaggle.repack_wheels import repack

TEST_STUDIES = 6
NOTEBOOK_RUN = "__notebook__.ipynb"


@dataclass
class Verdict:
    """What came of one run: faults, none if all is well, and the seconds it took."""

    layout: str
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Machine:
    """What every run has in common."""

    bundles: Path
    competition: Path
    visible_sample: Path
    python: Path  # of the stand-in for Kaggle's image
    owner: str
    notebook: str
    scratch: Path
    minutes: float


def check(bundles: Path, scratch: Path, say: Callable[[str], None] = print, minutes: float = 30) -> list[Verdict]:
    """Run the bundles in every layout.

    Args:
        bundles: the folder of built bundles; what is missing in it is built in `scratch` and left out of `bundles`.
        scratch: an empty folder for everything that is made on the way.
        minutes: the longest that one run may take.
    """
    begin = time.monotonic()
    chosen = complete(bundles, scratch, say)
    metadata = read_json(chosen / KERNEL / KERNEL_FILE)
    check_kernel(metadata, chosen / KERNEL / KERNEL_FILE)
    competition = scratch / "competition"
    machine = Machine(
        chosen,
        competition,
        write_hidden_competition(competition, TEST_STUDIES),
        make_image(scratch / "image"),
        metadata["id"].partition("/")[0],
        metadata["code_file"],
        scratch,
        minutes,
    )
    if sandbox.available():
        say(f"Sandbox: {' '.join(sandbox.available())}: no network, read-only inputs")
    else:
        say("This machine allows no namespaces: sockets are refused in Python, inputs are read-only copies")
    say(f"Prepared in {time.monotonic() - begin:.0f} s")
    verdicts = []
    for number, layout in enumerate(LAYOUTS):
        verdict = run_layout(machine, layout, scratch / f"run-{number}")
        say(f"{layout.name}: {'; '.join(verdict.faults) or 'valid submission'} ({verdict.seconds:.0f} s)")
        verdicts.append(verdict)
    return verdicts


def complete(bundles: Path, scratch: Path, say: Callable[[str], None]) -> Path:
    """A folder with all four bundles: those of `bundles`, and trial ones where they are not built."""
    absent = missing_bundles(bundles)
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if "wheels" not in absent and not wheels_dataset.fits(
        bundles / "wheels", wheels_dataset.read_pins_of(bundles / "wheels"), here
    ):
        raise InputError(
            f"{bundles / 'wheels'} holds nothing for Python {here}, which this check runs; use {wheels_dataset.PYTHONS}"
        )
    if "code" not in absent and is_stale(bundles / "code" / CODE_ARCHIVE, scratch):
        say(f"{bundles / 'code'} is not the package as it stands now: `make kaggle` builds it again")
    if not absent:
        return bundles
    if "weights" in absent or KERNEL in absent:  # the kernel's parameters fit its weights
        absent = sorted({*absent, "weights", KERNEL})
    say(f"Not built in {bundles}: {', '.join(absent)}; built for this check, with weights that know nothing")
    trial = scratch / "bundles"
    if "wheels" in absent and repacked(trial / "wheels"):
        absent.remove("wheels")
        say(f"{size_line(trial / 'wheels')}, made of what is installed")
    for line in build(trial, NOBODY, write_tiny_weights(scratch / "weights"), absent, pythons=(here,)):
        say(line)
    for bundle in {*SLUGS, KERNEL} - set(absent):
        if not (trial / bundle).exists():
            shutil.copytree(bundles / bundle, trial / bundle)
    return trial


def repacked(folder: Path) -> bool:
    """Make the wheels of what is installed, without a network; False where that is not what is pinned."""
    try:
        with assembled(folder) as new:
            repack(wheels_dataset.read_pins(Repository().lock), new)
            write_json(new / DATASET_FILE, dataset_metadata("wheels", NOBODY))
    except InputError:
        return False
    return True


def is_stale(archive: Path, scratch: Path) -> bool:
    """Whether an archive holds another state of the package than the one that runs this."""
    fresh = scratch / CODE_ARCHIVE
    write_code(PACKAGE, fresh, Repository().licence)
    return fresh.read_bytes() != archive.read_bytes()


def run_layout(machine: Machine, layout: Layout, folder: Path) -> Verdict:
    """Run the notebook once and look at what it left."""
    places = input_folders(layout, machine.bundles, machine.competition, machine.owner, folder)
    made = {name: folder / name for name in ("working", "home", "jupyter", "recover")}
    for path in made.values():
        path.mkdir(parents=True)
    shutil.copyfile(network_guard.__file__, made["recover"] / "sitecustomize.py")
    attempts = made["jupyter"] / "attempts.jsonl"
    begin = time.monotonic()
    run = run_isolated if sandbox.available() else run_guarded
    try:
        report = run(machine, places, made, folder)
    except subprocess.TimeoutExpired:
        report = {"exit": 0, "unreachable": 0, "late": True}
    verdict = Verdict(layout.name, seconds=time.monotonic() - begin)
    verdict.faults += find_faults(machine, made["working"], report)
    tried = attempts.read_text(encoding="utf-8").splitlines() if attempts.is_file() else []
    for line in sorted(set(tried)):
        attempt = json.loads(line)
        verdict.faults.append(
            f"a connection to {attempt['target']} was attempted ({' < '.join(reversed(attempt['from']))})"
        )
    if report["unreachable"] and not tried:
        verdict.faults.append(f"{report['unreachable']} connections were attempted outside Python")
    return verdict


def find_faults(machine: Machine, working: Path, report: dict) -> list[str]:
    """What is wrong with a finished run: its exit, what it degraded, its submission."""
    faults = []
    if report.get("late"):
        faults.append(f"not done after {machine.minutes:g} minutes")
    if report["exit"]:
        faults.append(f"the notebook ended with {report['exit']}: {last_words(working.parent / 'log.txt')}")
    run = working / "run.json"
    degraded = read_json(run).get("degraded") or [] if run.is_file() else []
    faults += [f"{entry.get('step')} was degraded: {entry.get('reason')}" for entry in degraded]
    submission, index = working / "submission.csv", working / "index.csv"
    if not submission.is_file():
        return [*faults, "no submission.csv was written"]
    faults += validate(submission, machine.competition / SAMPLE, index if index.is_file() else None).faults[:3]
    if sample_ids(submission) & sample_ids(machine.visible_sample):
        faults.append("the submission answers the visible test, not the hidden one")
    return faults


def last_words(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def environment(kaggle: str) -> dict[str, str]:
    """The variables of the run, below the folder that stands for /kaggle."""
    kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
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


def command(machine: Machine, python: str, notebook: str, kaggle: str) -> list[str]:
    """papermill on the kernel's notebook, without parameters, as Kaggle runs it."""
    working = f"{kaggle}/working"
    options = ["-k", "python3", "--log-output", "--no-progress-bar", "--cwd", working]
    return [python, "-m", "papermill", notebook, f"{working}/{NOTEBOOK_RUN}", *options]


def run_isolated(machine: Machine, places: dict[str, Path], made: dict[str, Path], folder: Path) -> dict:
    """In namespaces: /kaggle is /kaggle, and nothing else can be written."""
    mounts = [sandbox.Mount(str(source), f"/kaggle/input/{place}") for place, source in places.items()]
    mounts += [sandbox.Mount(str(made[name]), f"/kaggle/{name}", name in ("working", "jupyter")) for name in made]
    mounts += [
        sandbox.Mount(str(machine.python.parents[1]), "/kaggle/image"),
        sandbox.Mount(str(machine.bundles / KERNEL), "/kaggle/kernel"),
    ]
    line = command(machine, "/kaggle/image/bin/python", f"/kaggle/kernel/{machine.notebook}", "/kaggle")
    return sandbox.run(line, mounts, environment("/kaggle"), "/kaggle/working", folder, machine.minutes * 60)


def run_guarded(machine: Machine, places: dict[str, Path], made: dict[str, Path], folder: Path) -> dict:
    """Without namespaces: copies in which /kaggle is called `folder`, made read-only as far as permissions reach."""
    inputs = folder / "input"
    for place, source in places.items():
        shutil.copytree(source, inputs / place)
    shutil.copytree(machine.bundles / KERNEL, folder / KERNEL)
    for path in (*inputs.rglob("*.py"), folder / KERNEL / machine.notebook):
        path.write_bytes(path.read_bytes().replace(b"/kaggle/input", os.fsencode(inputs)))
    for path in inputs.rglob(CODE_ARCHIVE):
        with zipfile.ZipFile(path) as stream:
            entries = [(entry, stream.read(entry)) for entry in stream.infolist()]
        with zipfile.ZipFile(path, "w") as stream:
            for entry, data in entries:
                stream.writestr(entry, data.replace(b"/kaggle/input", os.fsencode(inputs)))
    (folder / "image").symlink_to(machine.python.parents[1])
    frozen = [path for top in (inputs, made["home"], made["recover"]) for path in (top, *top.rglob("*"))]
    for path in frozen:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        with (folder / "log.txt").open("w") as log:
            line = command(machine, str(machine.python), str(folder / KERNEL / machine.notebook), str(folder))
            done = subprocess.run(
                line,
                env=environment(str(folder)),
                cwd=made["working"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=machine.minutes * 60,
                check=False,
            )
    finally:
        for path in frozen:
            path.chmod(0o755 if path.is_dir() else 0o644)
    return {"exit": done.returncode, "unreachable": 0}
