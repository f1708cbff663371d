"""A pushed kernel on Kaggle, through Kaggle's own client: how far its run is, its output, its submission.

In: the built bundles, whose metadata names the kernel. Out: a state, a folder of downloaded files, a submission.
"""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

from siimcovid.core.errors import InputError
from siimcovid.core.paths import COMPETITION_SLUG
from siimcovid.kaggle.kaggle_client import client, require_client, run_client
from siimcovid.kaggle.kaggle_metadata import KERNEL_FILE, check_kernel, read_json
from siimcovid.kaggle.kernel_folder import folder_name
from siimcovid.kaggle.push_to_kaggle import read_pushed

#: Kaggle's words for a run that goes on.
UNFINISHED = ("queued", "running", "new_script", "cancel_requested")

SECONDS_BETWEEN_POLLS = 60

#: Prepared images and Python's caches stay on Kaggle.
WANTED_FILES = r"^(?!(.*/)?(cache|__pycache__|repaired)/)"


def kernel_id(bundles: Path, ending: str = "") -> str:
    """owner/slug of a built kernel. Raises InputError where it is not built."""
    require_client()
    path = bundles / folder_name(ending) / KERNEL_FILE
    metadata = read_json(path)
    check_kernel(metadata, path)
    return str(metadata["id"])


def kernel_status(kernel: str) -> tuple[str, str]:
    """Kaggle's word for the state of the kernel's last run ("complete", "error", …), and why it failed ("")."""
    _, printed, everything = run_client("kernels", "status", kernel)  # a run's own error is no complaint of the client
    state = re.search(r'has status "(?:\w+\.)?(\w+)"', printed)
    reason = re.search(r'Failure message: "(.*)"', printed, re.DOTALL)
    if not state:
        raise InputError(f"`kaggle kernels status {kernel}` answered: {everything}")
    return state[1].lower(), reason[1] if reason else ""


def wait_until_done(kernel: str, log: Callable[[str], None] = print, minutes: float = 12 * 60) -> tuple[str, str]:
    """The same once the run has ended, which is looked after every minute."""
    end, before = time.monotonic() + minutes * 60, ""
    while (found := kernel_status(kernel))[0] in UNFINISHED and time.monotonic() < end:
        if found[0] != before:
            log(f"{kernel}: {found[0]}")
        before = found[0]
        time.sleep(SECONDS_BETWEEN_POLLS)
    return found


def download_output(kernel: str, folder: Path, log: Callable[[str], None] = print) -> Path:
    """Download what the kernel's last run left, and its log, into `folder`; says what the run itself says was wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["--path", str(folder), "--force", "--page-size", "200", "--file-pattern", WANTED_FILES]
    client("kernels", "output", kernel, *options)
    files = [path for path in folder.rglob("*") if path.is_file()]
    log(f"{folder}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:.1f} MB")
    try:
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        degraded = [f"DEGRADED {entry['step']}: {entry['reason']}" for entry in record["degraded"]]
        dropped = [f"dropped: {line}" for line in record["dropped"]]
    except (OSError, ValueError, KeyError, TypeError):
        log("It holds no run.json, so the notebook did not start: read the .log file")
        return folder
    for line in degraded + dropped:
        log(line)
    return folder


def submit(bundles: Path, ending: str, message: str, version: int | None = None) -> str:
    """Submit a finished kernel's submission.csv to the competition, where Kaggle runs it again on the hidden test set.

    Args:
        bundles: the built bundles, which remember the version that was pushed last.
        ending: which kernel, as in push.
        message: what the list of submissions shows.
        version: another version of the kernel.

    Raises:
        InputError: the version is not known, the run has not ended well, or Kaggle refuses.
    """
    kernel = kernel_id(bundles, ending)
    number = version or read_pushed(bundles)["kernels"].get(kernel)
    if not number:
        raise InputError(f"{bundles} does not know a pushed version of {kernel}; give it with --version")
    state, reason = kernel_status(kernel)
    if state != "complete":
        raise InputError(f"{kernel} is {state}{f' ({reason})' if reason else ''}; only a complete run can be submitted")
    options = ["--kernel", kernel, "--version", str(number), "--file", "submission.csv", "--message", message]
    return client("competitions", "submit", COMPETITION_SLUG, *options)
