"""What a client sends becomes images, or an error with one sentence for the client.

In: open binary streams and `Limits`, of images or of zips of images. Out: uint8 pixels (rows, columns), 0 black,
upright.

A stranger's file is decoded by C and C++ libraries, which may crash, hang or swell. So that happens in a process of its
own, with a limit on its time and memory; the server only sees pixels or an error. The file is held in an unlinked
temporary file that no name leads to and that is gone when its stream closes, or the server ends in whatever way. The
kind of file is known by its content, never by its name. What the decoders report of damaged data may quote the header,
and with it the patient, so only the reader's own sentences are passed on.
"""

import os
import resource
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from typing import Any, BinaryIO

import numpy as np
import pydicom
from PIL import Image

from siimcovid.apps.web.request_errors import RequestError
from siimcovid.apps.web.uploaded_zip import ZipContent, is_zip, list_images, unpack
from siimcovid.core.processes import Lost, run_apart
from siimcovid.data.dicom_image import DicomError, read_image
from siimcovid.data.picture_files import decode_picture, picture_kind

#: Pixels that an image must have on its shorter side: less is an icon.
LEAST_SIDE = 32


@dataclass(frozen=True)
class Limits:
    """What a request may ask for."""

    megabytes: int = 128  # of a whole request; an image of 24 million pixels, uncompressed, has 48
    images: int = 16  # of one study; the competition's largest has 9
    pixels: int = 40_000_000  # of one image; the competition's largest has 24 million
    seconds: float = 60.0  # to decode one image
    memory: int = 4 << 30  # bytes of memory to decode one image in; the largest needs a quarter
    zip_files: int = 1000  # in one zip, other than images too
    unpacked_megabytes: int = 1024  # of one zip


@dataclass(frozen=True)
class UploadedImage:
    """A file that a client sent, or one in a zip, held where the decoding process can open it."""

    path: str
    position: int | None  # in the zip's list of files; None outside a zip
    name: str  # as the client calls it: for its own answer only


@dataclass(frozen=True)
class Upload:
    """What a client sent."""

    images: list[UploadedImage]
    left_out: int  # files in zips that are no images


@contextmanager
def hold_upload(files: Iterable[tuple[BinaryIO, str]], limits: Limits) -> Iterator[Upload]:
    """Hold (stream, name) of each file for the length of the context. Raises RequestError.

    A zip stands for the images in it, in the order of their names.
    """
    images, left_out = [], 0
    with ExitStack() as stack:
        for stream, name in files:
            copy = stack.enter_context(tempfile.TemporaryFile())
            copyfileobj(stream, copy)
            copy.flush()
            copy.seek(0)
            path = f"/proc/{os.getpid()}/fd/{copy.fileno()}"
            if not is_zip(copy.read(4)):
                images.append(UploadedImage(path, None, _shown(name)))
                continue
            content = _run_limited(_list_zip, (path, limits), limits, "The zip")
            images += [UploadedImage(path, i.position, _shown(f"{name}/{i.name}")) for i in content.images]
            left_out += content.left_out
        if not images:
            raise RequestError("no_image", "The zip holds neither DICOM nor PNG nor JPEG: choose another.")
        if len(images) > limits.images:
            message = f"{len(images)} images were sent: send at most {limits.images}, all of one study."
            raise RequestError("too_many_images", message)
        yield Upload(images, left_out)


def decode_upload(upload: Upload, limits: Limits) -> Iterator[np.ndarray]:
    """The images as uint8 (rows, columns), decoded one after the other. Raises RequestError, naming the image."""
    for number, image in enumerate(upload.images, 1):
        label = f"Image {number}" if len(upload.images) > 1 else "The image"
        yield _run_limited(decode, (image.path, image.position, limits, label), limits, label)


def read_upload(stream: BinaryIO, limits: Limits) -> np.ndarray:
    """Read a client's only file as uint8 pixels (rows, columns). Raises RequestError."""
    with hold_upload([(stream, "")], limits) as upload:
        return next(decode_upload(upload, limits))


def _shown(name: str) -> str:
    """A client's name for a file without what cannot be printed, its last 200 characters."""
    return "".join(letter for letter in name if letter.isprintable())[-200:]


def _run_limited(function: Callable[[Any], Any], job: Any, limits: Limits, label: str) -> Any:
    """Call function(job) in a process of its own. Raises RequestError where that is what it returns, or it dies."""
    ((_, answer),) = run_apart(function, [job], workers=1, limit=limits.seconds)
    if isinstance(answer, Lost):
        if "longer" in answer.reason:
            raise RequestError("too_slow", f"{label} took longer than {limits.seconds:g} seconds to decode.")
        raise RequestError("damaged", f"{label} is damaged: its decoder gave up. Export it again.")
    if isinstance(answer, RequestError):
        raise answer
    return answer


def decode(job: tuple[str, int | None, Limits, str]) -> np.ndarray | RequestError:
    """Decode one file, (path, position in a zip, limits, label), in a process of its own: see decode_upload."""
    path, position, limits, label = job
    _limit_memory(limits)
    try:
        if position is None:
            return _decode(Path(path), limits, label)
        with tempfile.TemporaryFile() as unpacked:
            unpack(path, position, unpacked, limits.unpacked_megabytes << 20)
            return _decode(Path(f"/proc/self/fd/{unpacked.fileno()}"), limits, label)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("damaged", f"{label} needs more memory than an image should.")


def _list_zip(job: tuple[str, Limits]) -> ZipContent | RequestError:
    """The images of a zip, in a process of its own: see hold_upload."""
    path, limits = job
    _limit_memory(limits)
    try:
        return list_images(path, limits.zip_files, limits.unpacked_megabytes << 20, LEAST_SIDE)
    except RequestError as error:
        return error
    except MemoryError:
        return RequestError("bad_zip", "The zip needs more memory than it should: pack the images again.")


def _limit_memory(limits: Limits) -> None:
    """Limit what this process may come to hold besides what it began with: the libraries that its fork server had
    imported for others (torch alone maps gigabytes) are no part of the image."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    most, hard = pages * resource.getpagesize() + limits.memory, resource.getrlimit(resource.RLIMIT_AS)[1]
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _decode(path: Path, limits: Limits, label: str) -> np.ndarray:
    with open(path, "rb") as stream:
        start = stream.read(132)
    if not start:
        raise RequestError("empty", f"{label} is empty: choose the file again.")
    if kind := picture_kind(start):
        return _decode_picture(path, kind, limits, label)
    return _decode_dicom(path, start[128:] == b"DICM", limits, label)


def _decode_picture(path: Path, kind: str, limits: Limits, label: str) -> np.ndarray:
    try:
        return decode_picture(path.read_bytes(), kind, lambda *size: _check_size(*size, limits, label))[0]
    except (RequestError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise RequestError("too_many_pixels", f"{label} has too many pixels: send at most {limits.pixels:,}.") from None
    except Exception:  # a damaged file makes Pillow raise nearly any type
        raise RequestError("damaged", f"{label} is a damaged {kind}, or of a rare kind: export it again.") from None


def _decode_dicom(path: Path, preamble: bool, limits: Limits, label: str) -> np.ndarray:
    stranger = RequestError("not_an_image", f"{label} is neither DICOM nor PNG nor JPEG: choose one of these.")
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
        _check_size(rows, columns, limits, label)
    try:
        return np.ascontiguousarray(read_image(path))
    except DicomError as error:
        if not preamble and error.reason.startswith("is not a DICOM file"):
            raise stranger from None
        # what stands in brackets may be the data's own words
        raise RequestError("damaged", f"{label} {error.reason.split(' (')[0]}; export it again.") from None


def _check_size(rows: int, columns: int, limits: Limits, label: str) -> None:
    size = f"{columns} × {rows} pixels"
    if rows * columns > limits.pixels:
        raise RequestError("too_many_pixels", f"{label} has {size}: send at most {limits.pixels:,} in all.")
    if min(rows, columns) < LEAST_SIDE:
        raise RequestError("too_small", f"{label} has only {size}: send the image itself, not its thumbnail.")
