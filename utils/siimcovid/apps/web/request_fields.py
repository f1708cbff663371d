"""The fields of the form that a client sends, checked. Each function raises RequestError for a bad value."""

from flask import Request
from werkzeug.datastructures import FileStorage

from siimcovid.apps.web.request_errors import RequestError
from siimcovid.apps.web.result_files import MEDIA_TYPES


def read_files(request: Request) -> list[FileStorage]:
    """The files of the field `images`."""
    files = [file for file in request.files.getlist("images") if file.filename]  # no name: none was chosen
    if not files:
        raise RequestError("no_image", "No image was sent: choose at least one file.")
    return files


def read_model(request: Request, offered: list[str]) -> str | None:
    """The field `model`, one of `offered`; None where it is absent or empty."""
    name = request.form.get("model") or None
    if name is not None and name not in offered:
        names = ", ".join(offered) or "none, since this server has no detector"
        raise RequestError("bad_value", f"There is no such model here: choose one of {names}.")
    return name


def read_format(request: Request) -> str | None:
    """The field `format`, the name of a result file; None for JSON, also where it is absent or empty."""
    name = request.form.get("format") or "json"
    if name != "json" and name not in MEDIA_TYPES:
        raise RequestError("bad_value", f"There is no such format: choose one of json, {', '.join(MEDIA_TYPES)}.")
    return None if name == "json" else name


def read_threshold(request: Request, default: float) -> float:
    """The field `threshold`, a score from 0 to 1."""
    text = request.form.get("threshold") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise RequestError("bad_value", "The threshold must be a number from 0 to 1.")
    return value


def read_flag(request: Request, name: str) -> bool:
    """A field that is 0 or 1; absent is 0."""
    text = request.form.get(name) or "0"
    if text not in ("0", "1"):
        raise RequestError("bad_value", f"The field {name} must be 0 or 1.")
    return text == "1"
