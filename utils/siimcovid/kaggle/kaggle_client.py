"""Runs Kaggle's own command line client, and reads what it prints: it mostly ends with 0 where something went wrong."""

import importlib.metadata
import re
import subprocess
import sys

from siimcovid.core.errors import InputError

#: How the client's complaints read.
COMPLAINT = re.compile(
    r"error|unsuccessful|not valid|skipping|does not resolve|could not|cannot|invalid|upload failed", re.IGNORECASE
)
NO_CREDENTIALS = re.compile(r"authentication required|kaggle auth login", re.IGNORECASE)


def is_installed() -> bool:
    """Whether Kaggle's client is: a folder of that name beside the script is none."""
    try:
        importlib.metadata.distribution("kaggle")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_client() -> None:
    """Raise InputError where Kaggle's client is not installed."""
    if not is_installed():
        raise InputError("Kaggle's client is not installed; pip install kaggle (it needs Python 3.11)")


def client(*arguments: str) -> str:
    """Run `kaggle …` and return what it printed. Raises InputError for any complaint in that."""
    code, printed, everything = run_client(*arguments)
    if code or COMPLAINT.search(printed):
        raise InputError(f"`kaggle {' '.join(arguments)}` did not go well:\n{everything}")
    return printed


def run_client(*arguments: str) -> tuple[int, str, str]:
    """Run `kaggle …`: (exit code, what it printed, the same with what it wrote to the error stream).

    Raises InputError where it finds no credentials, or Kaggle refuses them.
    """
    command = [sys.executable, "-m", "kaggle", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    printed, errors = done.stdout.strip(), done.stderr.strip()
    if done.returncode and NO_CREDENTIALS.search(printed):
        raise InputError(
            "Kaggle's client has no valid credentials: log in with `kaggle auth login`, or save an API token of your "
            "account's settings page as ~/.kaggle/access_token"
        )
    return done.returncode, printed, f"{printed}\n{errors}".strip()
