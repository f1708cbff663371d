"""Executes the built bundles as Kaggle would, and tells whether a valid submission comes out.

`check` runs the kernel's notebook once for each of Kaggle's ways to mount inputs (rehearsal_run.py). Bundles that are
not built yet are built for the occasion, with small random weights. `image` chooses the Python: one like Kaggle's of
that date, or this environment without what Kaggle's lacks. `ranks` trains in several processes on the CPU, which talk
over gloo, as the kernel does on several GPUs.
"""

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json
from siimcovid.kaggle import CODE_ARCHIVE, KERNEL, OWNER_PLACEHOLDER, SLUGS, sandbox, wheels_dataset
from siimcovid.kaggle.build_bundles import PACKAGE, Repository, assembled, build, missing_bundles, size_line
from siimcovid.kaggle.code_dataset import write_code
from siimcovid.kaggle.docker_image import KaggleImage, here, install_image, link_environment
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE, KERNEL_FILE, check_kernel, dataset_metadata, read_json
from siimcovid.kaggle.kernel_folder import write_kernel
from siimcovid.kaggle.rehearsal_inputs import (
    LAYOUTS,
    TINY_SIDE,
    tiny_overrides,
    write_hidden_competition,
    write_tiny_weights,
)
from siimcovid.kaggle.rehearsal_run import Rehearsal, Verdict, run_layout
from siimcovid.kaggle.repack_wheels import repack

TEST_STUDIES = 6


def check(
    bundles: Path,
    scratch: Path,
    log: Callable[[str], None] = print,
    minutes: float = 30,
    image: KaggleImage | None = None,
    images: Path = Path("runs/kaggle-images"),
    ranks: int = 0,
    all_layouts: bool = True,
) -> list[Verdict]:
    """Run the bundles; with `ranks`, training on small images instead of loading weights.

    Args:
        bundles: the folder of built bundles; what is missing in it is built in `scratch` and left out of `bundles`.
        scratch: an empty folder for everything that is made on the way.
        log: takes a line of text at a time.
        minutes: the longest that one run may take.
        image: which of Kaggle's images to imitate; None for the running environment.
        images: where the images' virtual environments are kept.
        ranks: processes that train together; 0 leaves it to the number of GPUs.
        all_layouts: try all of Kaggle's ways to mount inputs (without `ranks`), not only the first.
    """
    begin = time.monotonic()
    python = install_image(image, images, log) if image else link_environment(scratch / "image")
    log(f"Python: {describe(python)}{f', the image of {image.name}' if image else ', this environment'}")
    chosen = complete(bundles, scratch, image.python if image else here(), log)
    if ranks:
        chosen = training_bundles(chosen, scratch)
    metadata = read_json(chosen / KERNEL / KERNEL_FILE)
    check_kernel(metadata, chosen / KERNEL / KERNEL_FILE)
    competition = scratch / "competition"
    visible_sample = write_hidden_competition(competition, TEST_STUDIES)
    owner, notebook = metadata["id"].partition("/")[0], metadata["code_file"]
    rehearsal = Rehearsal(chosen, competition, visible_sample, python, owner, notebook, scratch, minutes, ranks)
    if sandbox.available():
        log("Sandbox: bubblewrap: no network, read-only inputs")
    else:
        log("No bubblewrap (apt-get install bubblewrap): sockets are refused in Python, inputs are read-only copies")
    log(f"Prepared in {time.monotonic() - begin:.0f} s")
    verdicts = []
    for number, layout in enumerate(LAYOUTS if all_layouts and not ranks else LAYOUTS[:1]):
        verdict = run_layout(rehearsal, layout, scratch / f"run-{number}")
        log(f"{layout.name}: {'; '.join(verdict.faults) or 'valid submission'} ({verdict.seconds:.0f} s)")
        verdicts.append(verdict)
    return verdicts


def describe(python: Path) -> str:
    """The versions of a Python and of the libraries that matter most."""
    code = (
        "import platform, importlib.metadata as m\n"
        "names = ('torch', 'torchvision', 'numpy', 'pandas', 'scikit-learn', 'opencv-python-headless')\n"
        "print(platform.python_version(), *(f'{n} {m.version(n)}' for n in names), sep=', ')"
    )
    return subprocess.run(
        [str(python), "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/"
    ).stdout.strip()


def complete(bundles: Path, scratch: Path, python: str, log: Callable[[str], None]) -> Path:
    """A folder with all four bundles: those of `bundles`, and trial ones where they are not built.

    python: "3.12", for which wheels are needed.
    """
    absent = missing_bundles(bundles)
    if "wheels" not in absent and not wheels_dataset.fits(
        bundles / "wheels", wheels_dataset.read_pins_of(bundles / "wheels"), python
    ):
        raise InputError(f"{bundles / 'wheels'} holds no wheels for Python {python}; build it again with `make kaggle`")
    if "code" not in absent and is_stale(bundles / "code" / CODE_ARCHIVE, scratch):
        log(f"{bundles / 'code'} is not the package as it stands now: `make kaggle` builds it again")
    if not absent:
        return bundles
    if "weights" in absent or KERNEL in absent:  # the kernel's parameters fit its weights
        absent = sorted({*absent, "weights", KERNEL})
    log(f"Not built in {bundles}: {', '.join(absent)}; built for this check, with random weights")
    trial = scratch / "bundles"
    if "wheels" in absent and python == here() and repacked(trial / "wheels"):
        absent.remove("wheels")
        log(f"{size_line(trial / 'wheels')}, made of what is installed")
    for line in build(trial, OWNER_PLACEHOLDER, write_tiny_weights(scratch / "weights"), absent, pythons=(python,)):
        log(line)
    for bundle in {*SLUGS, KERNEL} - set(absent):
        if not (trial / bundle).exists():
            shutil.copytree(bundles / bundle, trial / bundle)
    return trial


def training_bundles(bundles: Path, scratch: Path) -> Path:
    """The same code and wheels with a kernel that trains every stage for an epoch on small images."""
    folder = scratch / "training"
    for bundle in ("code", "wheels"):
        shutil.copytree(bundles / bundle, folder / bundle)
    repository = Repository()
    parameters = {"PRESET": "demo", "MODE": "finetune", "OVERRIDES": tiny_overrides(TINY_SIDE)}
    weights = write_tiny_weights(scratch / "start")
    build(folder, OWNER_PLACEHOLDER, weights, ("weights",), repository)
    with assembled(folder / KERNEL) as new:
        write_kernel(repository.notebook, repository.kernel_template, OWNER_PLACEHOLDER, parameters, new)
    return folder


def repacked(folder: Path) -> bool:
    """Make the wheels of what is installed, without a network; False where that is not what is pinned."""
    try:
        with assembled(folder) as new:
            repack(wheels_dataset.read_pins(Repository().lock), new)
            write_json(new / DATASET_FILE, dataset_metadata("wheels", OWNER_PLACEHOLDER))
    except InputError:
        return False
    return True


def is_stale(archive: Path, scratch: Path) -> bool:
    """Whether an archive holds another state of the package than the one that runs this."""
    fresh = scratch / CODE_ARCHIVE
    write_code(PACKAGE, fresh, Repository().licence)
    return fresh.read_bytes() != archive.read_bytes()
