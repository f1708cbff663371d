"""What a client sends becomes images, or an error with one sentence for the client.

In: open binary streams and `Limits`. Out: uint8 pixels (rows, columns), 0 black, upright.

A stranger's file is decoded by C and C++ libraries, which may crash, hang or swell. So that happens in a process of its
own, with a limit on its time and memory; the server only sees pixels or an error. The file is held in an unlinked
temporary file that no name leads to and that is gone when its stream closes, or the server ends in whatever way. The
kind of file is known by its content, never by its name. What the decoders report of damaged data may quote the header,
and with it the patient, so only the reader's own sentences are passed on.
"""

import os
import resource
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

import numpy as np
import pydicom
from PIL import Image

from siimcovid.apps.web.picture_decoder import decode_picture, picture_kind
from siimcovid.apps.web.request_errors import RequestError
from siimcovid.core.processes import Lost, run_apart
from siimcovid.data.dicom_image import DicomError, read_image

#: Pixels that an image must have on its shorter side: less is an icon.
LEAST_SIDE = 32


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    megabytes: int = 128  # of a whole request; an image of 24 million pixels, uncompressed, has 48
    images: int = 8  # of one study
    pixels: int = 40_000_000  # of one image; the competition's largest has 24 million
    seconds: float = 60.0  # to decode one image
    memory: int = 4 << 30  # bytes of address space to decode one image in; the largest needs a quarter


def read_upload(stream: BinaryIO, limits: Limits, name: str = "The image") -> np.ndarray:
    """Read a client's file as uint8 pixels (rows, columns). Raises RequestError, whose sentence `name` begins."""
    with tempfile.TemporaryFile() as copy:
        copyfileobj(stream, copy)
        copy.flush()
        job = (f"/proc/{os.getpid()}/fd/{copy.fileno()}", limits, name)
        return _run_limited(decode, job, limits, name)


def _run_limited(function: Callable[[Any], Any], job: Any, limits: Limits, name: str) -> Any:
    """Call function(job) in a process of its own. Raises RequestError where that is what it returns, or it dies."""
    ((_, answer),) = run_apart(function, [job], workers=1, limit=limits.seconds)
    if isinstance(answer, Lost):
        if "longer" in answer.reason:
            raise RequestError("too_slow", f"{name} took longer than {limits.seconds:g} seconds to decode.")
        raise RequestError("damaged", f"{name} is damaged: its decoder gave up. Export it again.")
    if isinstance(answer, RequestError):
        raise answer
    return answer


def decode(job: tuple[str, Limits, str]) -> np.ndarray | RequestError:
    """Decode one file, in a process of its own: see read_upload."""
    path, limits, name = job
    resource.setrlimit(resource.RLIMIT_AS, (limits.memory, limits.memory))
    try:
        return _decode(Path(path), limits, name)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("damaged", f"{name} needs more memory than an image should.")


def _decode(path: Path, limits: Limits, name: str) -> np.ndarray:
    with open(path, "rb") as stream:
        start = stream.read(132)
    if not start:
        raise RequestError("empty", f"{name} is empty: choose the file again.")
    if kind := picture_kind(start):
        return _decode_picture(path, kind, limits, name)
    return _decode_dicom(path, start[128:] == b"DICM", limits, name)


def _decode_picture(path: Path, kind: str, limits: Limits, name: str) -> np.ndarray:
    try:
        return decode_picture(path, kind, lambda rows, columns: _check_size(rows, columns, limits, name))
    except (RequestError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise RequestError("too_many_pixels", f"{name} has too many pixels: send at most {limits.pixels:,}.") from None
    except Exception:  # a damaged file makes Pillow raise nearly any type
        raise RequestError("damaged", f"{name} is a damaged {kind}, or of a rare kind: export it again.") from None


def _decode_dicom(path: Path, preamble: bool, limits: Limits, name: str) -> np.ndarray:
    stranger = RequestError("not_an_image", f"{name} is neither DICOM nor PNG nor JPEG: choose one of these.")
    try:
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=["Rows", "Columns"])
        rows, columns = int(header.Rows), int(header.Columns)
    except MemoryError:
        raise
    except Exception:
        if not preamble:
            raise stranger from None
        rows = columns = 0  # the reader below says what is wrong
    if rows and columns:
        _check_size(rows, columns, limits, name)
    try:
        return np.ascontiguousarray(read_image(path))
    except DicomError as error:
        if not preamble and error.reason.startswith("is not a DICOM file"):
            raise stranger from None
        # what stands in brackets may be the data's own words
        raise RequestError("damaged", f"{name} {error.reason.split(' (')[0]}; export it again.") from None


def _check_size(rows: int, columns: int, limits: Limits, name: str) -> None:
    size = f"{columns} × {rows} pixels"
    if rows * columns > limits.pixels:
        raise RequestError("too_many_pixels", f"{name} has {size}: send at most {limits.pixels:,} in all.")
    if min(rows, columns) < LEAST_SIDE:
        raise RequestError("too_small", f"{name} has only {size}: send the image itself, not its thumbnail.")
