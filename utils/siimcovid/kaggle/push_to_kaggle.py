"""Uploads the built datasets with Kaggle's own client, and pushes the kernel, which runs it.

A dataset is created once and gets a version afterwards.

What was uploaded is remembered beside the bundles, in PUSHED: {"datasets": {id: digest of its files}, "kernels":
{id: version}}. A dataset whose files are the same as last time is not uploaded again.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import siimcovid
from siimcovid.core.errors import InputError
from siimcovid.core.files import sha256, write_json
from siimcovid.kaggle import OWNER_PLACEHOLDER, SLUGS
from siimcovid.kaggle.build_bundles import missing_bundles
from siimcovid.kaggle.kaggle_client import client, require_client, run_client
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE, KERNEL_FILE, check_dataset, check_kernel, read_json
from siimcovid.kaggle.kernel_folder import folder_name

PUSHED = ".pushed.json"

#: States of a dataset from which it does not become ready.
FAILED = ("failed", "deleted")

#: Kaggle unpacks and scans an upload before it can be attached.
SECONDS_TO_BECOME_READY = 900
SECONDS_BETWEEN_POLLS = 10


def push(folder: Path, ending: str = "", log: Callable[[str], None] = print) -> None:
    """Upload the three datasets of `folder`, wait until Kaggle has taken them in, then push a kernel, which runs it.

    Args:
        folder: the built bundles.
        ending: which kernel: "" for the one without, "1", "2" … for a training session, "submit", "smoke".
        log: takes a line of text at a time.

    Raises:
        InputError: a bundle is missing or bad, the client is not installed, or it or Kaggle complains.
    """
    kernel_folder = folder / folder_name(ending)
    datasets, kernel = check_bundles(folder, ending)
    pushed = read_pushed(folder)
    for path, metadata in datasets.items():
        name, digest = metadata["id"], folder_digest(path)
        state = dataset_status(name)
        if state is None:
            log(client("datasets", "create", "--path", str(path)))
        elif state not in FAILED and pushed["datasets"].get(name) == digest:
            log(f"{name} is on Kaggle as it is here")
            continue
        else:
            notes = f"siimcovid {siimcovid.__version__}"
            log(client("datasets", "version", "--path", str(path), "--message", notes))
        pushed["datasets"][name] = digest
        write_json(folder / PUSHED, pushed)
    for metadata in datasets.values():
        wait_until_ready(metadata["id"])
    answer = client("kernels", "push", "--path", str(kernel_folder))
    log(answer)
    version = re.search(r"version (\d+) successfully pushed", answer)
    if version:
        pushed["kernels"][kernel["id"]] = int(version[1])
        write_json(folder / PUSHED, pushed)


def check_bundles(folder: Path, ending: str) -> tuple[dict[Path, dict[str, Any]], dict[str, Any]]:
    """The datasets' metadata by folder, and the kernel's. Raises InputError for what could not be pushed."""
    absent = missing_bundles(folder, folder_name(ending))
    if absent:
        raise InputError(f"{folder} has no built {', '.join(absent)}; run `make kaggle` first")
    require_client()
    datasets = {folder / bundle: read_json(folder / bundle / DATASET_FILE) for bundle in SLUGS}
    for path, metadata in datasets.items():
        check_dataset(metadata, path / DATASET_FILE)
    path = folder / folder_name(ending) / KERNEL_FILE
    kernel = read_json(path)
    check_kernel(kernel, path)
    owners = {str(metadata["id"]).partition("/")[0] for metadata in (*datasets.values(), kernel)}
    if len(owners) > 1 or OWNER_PLACEHOLDER in owners:
        raise InputError(
            f"{folder} was built for {' and '.join(sorted(owners))}; run `make kaggle OWNER=your-kaggle-name`"
        )
    return datasets, kernel


def read_pushed(folder: Path) -> dict[str, dict[str, Any]]:
    """What PUSHED remembers; nothing where it is missing or damaged."""
    try:
        values = json.loads((folder / PUSHED).read_text(encoding="utf-8"))
        return {"datasets": dict(values["datasets"]), "kernels": dict(values["kernels"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"datasets": {}, "kernels": {}}


def folder_digest(folder: Path) -> str:
    """SHA-256 over the names and the bytes of a flat folder's files."""
    lines = [f"{path.name} {sha256(path)}" for path in sorted(folder.iterdir())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def dataset_status(dataset: str) -> str | None:
    """Kaggle's word for a dataset's state ("ready", …), or None where there is none that one may see."""
    code, printed, _ = run_client("datasets", "status", dataset)
    return printed.split()[-1].lower() if printed and not code else None


def wait_until_ready(dataset: str) -> None:
    """Wait until a kernel that is started now gets what was just uploaded. Raises InputError after 15 minutes."""
    end = time.monotonic() + SECONDS_TO_BECOME_READY
    while (found := dataset_status(dataset)) != "ready":
        if found in FAILED or time.monotonic() > end:
            raise InputError(f"Kaggle has not taken in {dataset} (status {found}); look at it there and push again")
        time.sleep(SECONDS_BETWEEN_POLLS)
