"""Hands the built bundles to Kaggle's own client: a dataset is created the first time and gets a version afterwards.

The client says what went wrong in words and mostly ends with 0 all the same, so its words are read.
"""

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import siimcovid
from siimcovid.core.errors import InputError
from siimcovid.kaggle import KERNEL, NOBODY, SLUGS
from siimcovid.kaggle.build_bundles import missing_bundles
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE, KERNEL_FILE, check_dataset, check_kernel, read_json

#: How the client's complaints read.
COMPLAINT = re.compile(r"error|unsuccessful|not valid|skipping|does not resolve|could not|invalid", re.IGNORECASE)
NO_CREDENTIALS = re.compile(r"authentication required|kaggle auth login", re.IGNORECASE)

#: States of a dataset from which it does not become ready.
FAILED = ("failed", "deleted")

#: Kaggle unpacks and scans an upload before it can be attached.
SECONDS_TO_BECOME_READY = 900
SECONDS_BETWEEN_LOOKS = 10


def push(folder: Path, say: Callable[[str], None] = print) -> None:
    """Upload the three datasets of `folder`, wait until Kaggle has taken them in, then push the kernel.

    Raises InputError where a bundle is missing or bad, the client is not installed, or it or Kaggle complains.
    """
    absent = missing_bundles(folder)
    if absent:
        raise InputError(f"{folder} has no built {', '.join(absent)}; run `make kaggle` first")
    if importlib.util.find_spec("kaggle") is None:
        raise InputError("Kaggle's client is not installed; pip install kaggle")
    datasets = {folder / bundle: read_json(folder / bundle / DATASET_FILE) for bundle in SLUGS}
    for path, metadata in datasets.items():
        check_dataset(metadata, path / DATASET_FILE)
    kernel = read_json(folder / KERNEL / KERNEL_FILE)
    check_kernel(kernel, folder / KERNEL / KERNEL_FILE)
    owners = {str(metadata["id"]).partition("/")[0] for metadata in (*datasets.values(), kernel)}
    if len(owners) > 1 or NOBODY in owners:
        raise InputError(
            f"{folder} was built for {' and '.join(sorted(owners))}; run `make kaggle OWNER=your-kaggle-name`"
        )

    for path, metadata in datasets.items():
        if status(metadata["id"]) is None:
            say(client("datasets", "create", "--path", str(path)))
        else:
            notes = f"siimcovid {siimcovid.__version__}"
            say(client("datasets", "version", "--path", str(path), "--message", notes))
    for metadata in datasets.values():
        wait_until_ready(metadata["id"])
    say(client("kernels", "push", "--path", str(folder / KERNEL)))


def status(dataset: str) -> str | None:
    """What Kaggle says of a dataset ("ready", …), or None where there is none that one may see."""
    code, said, _ = _run("datasets", "status", dataset)
    return said.split()[-1].lower() if said and not code else None


def wait_until_ready(dataset: str) -> None:
    """Wait until the kernel would get what was just uploaded."""
    end = time.monotonic() + SECONDS_TO_BECOME_READY
    while (found := status(dataset)) != "ready":
        if found in FAILED or time.monotonic() > end:
            raise InputError(f"Kaggle has not taken in {dataset} (status {found}); look at it there and push again")
        time.sleep(SECONDS_BETWEEN_LOOKS)


def client(*arguments: str) -> str:
    """Run `kaggle …` and return its words. Raises InputError for any complaint among them."""
    code, said, everything = _run(*arguments)
    if code or COMPLAINT.search(said):
        raise InputError(f"`kaggle {' '.join(arguments)}` did not go well:\n{everything}")
    return said


def _run(*arguments: str) -> tuple[int, str, str]:
    """Run `kaggle …`: (exit code, its words, its words and what it wrote to the error stream).

    Raises InputError where it finds no credentials, or Kaggle refuses them.
    """
    command = [sys.executable, "-m", "kaggle", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    said, errors = done.stdout.strip(), done.stderr.strip()
    if done.returncode and NO_CREDENTIALS.search(said):
        raise InputError(
            "Kaggle's client has no valid credentials: log in with `kaggle auth login`, or save an API token of your "
            "account's settings page as ~/.kaggle/access_token"
        )
    return done.returncode, said, f"{said}\n{errors}".strip()
