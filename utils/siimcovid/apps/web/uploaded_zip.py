"""A zip file of a whole study: which of its files are images, and the bytes of one of them.

In: the path of a zip file that a stranger made. Out: `ZipContent`, and unpacked files. Nothing is unpacked under the
name that stands in the zip, but a zip whose names lead outside a folder is refused all the same: nobody made it with
good intentions. These functions run where a crash does no harm: see uploaded_files.py.
"""

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from shutil import copyfileobj
from typing import BinaryIO

import pydicom
from PIL import Image

from siimcovid.apps.web.request_errors import RequestError
from siimcovid.data.picture_files import picture_kind

#: First bytes of a zip file, and of one without any file in it.
SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")

#: Endings of DICOM files without the preamble by which the others are known.
DICOM_ENDINGS = {"", ".dcm", ".dicom", ".dic", ".ima"}


@dataclass(frozen=True)
class ZipImage:
    """An image in a zip file."""

    position: int  # in the zip's list of files
    name: str  # with its folders


@dataclass(frozen=True)
class ZipContent:
    """What a zip file holds."""

    images: list[ZipImage]  # by name, numbers in it by their value
    left_out: int  # other files


def is_zip(start: bytes) -> bool:
    """Whether a file is a zip, by its first bytes."""
    return start.startswith(SIGNATURES)


def list_images(path: Path | str, files: int, unpacked: int, least_side: int) -> ZipContent:
    """Find the images of a zip by their content, in folders of any layout.

    What is no image is left out: hidden files, DICOM without pixels (DICOMDIR, reports), pictures with a side of less
    than `least_side` pixels (a viewer's icons), zips. files, unpacked: most files and bytes that the zip may hold.
    Raises RequestError.
    """
    images, left_out = [], 0
    with _open(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if len(entries) > files:
            raise RequestError("too_large", f"The zip holds {len(entries)} files: send the images of one study alone.")
        if sum(entry.file_size for entry in entries) > unpacked:
            raise RequestError("too_large", f"The zip unpacks to more than {unpacked >> 20} MB: send less at once.")
        if any(_leads_outside(entry.orig_filename) for entry in entries):
            raise RequestError("bad_zip", "The zip names files outside its own folder: pack the images again.")
        if any(entry.flag_bits & 1 for entry in entries):
            raise RequestError("bad_zip", "The zip is locked with a password: pack the images without one.")
        for position, entry in enumerate(archive.infolist()):
            if entry.is_dir():
                continue
            if _is_image(archive, entry, least_side):
                images.append(ZipImage(position, entry.filename))
            else:
                left_out += 1
    return ZipContent(sorted(images, key=lambda image: _natural(image.name)), left_out)


def unpack(path: Path | str, position: int, target: BinaryIO, unpacked: int) -> None:
    """Write the file at a place of the zip's list to `target`, at most `unpacked` bytes. Raises RequestError."""
    with _open(path) as archive:
        entry = archive.infolist()[position]
        if entry.file_size > unpacked:  # zipfile gives no byte more than stands here
            raise RequestError("too_large", f"The zip unpacks to more than {unpacked >> 20} MB: send less at once.")
        with archive.open(entry) as stream:
            copyfileobj(stream, target)
    target.flush()


@contextmanager
def _open(path: Path | str) -> Iterator[zipfile.ZipFile]:
    """The zip file; what is wrong with it while it is used becomes a RequestError."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (RequestError, MemoryError):
        raise
    except RuntimeError:  # of a compression that zipfile does not know, or an encrypted file without its flag
        raise RequestError("bad_zip", "The zip is packed in a way that is not known here: pack it anew.") from None
    except Exception:  # a damaged file makes zipfile and its decompressors raise nearly any type
        raise RequestError("bad_zip", "The zip is damaged: pack the images again.") from None


def _leads_outside(name: str) -> bool:
    """Whether a name is absolute, names a drive, holds a zero byte or steps out of its folder."""
    parts = re.split(r"[/\\]", name)
    return not parts[0] or ".." in parts or "\0" in name or bool(re.match("[A-Za-z]:", name))


def _is_image(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, least_side: int) -> bool:
    """Whether a file should be an image, by its content; a damaged image is one."""
    name = PurePosixPath(entry.filename.replace("\\", "/"))
    if any(part.startswith(".") or part == "__MACOSX" for part in name.parts):
        return False
    with archive.open(entry) as stream:
        start = stream.read(132)
        if kind := picture_kind(start):
            return _is_large(stream, kind, least_side)
        preamble, ending = start[128:] == b"DICM", name.suffix.lower()
        if not start or is_zip(start) or not (preamble or ending in DICOM_ENDINGS):
            return False
        return _has_pixels(stream, assume=preamble or ending != "")


def _is_large(stream: BinaryIO, kind: str, least_side: int) -> bool:
    """Whether a picture's sides have least_side pixels or more; yes where its header is damaged."""
    stream.seek(0)
    try:
        with Image.open(stream, formats=[kind]) as picture:
            return min(picture.size) >= least_side
    except Exception:
        return True


def _has_pixels(stream: BinaryIO, assume: bool) -> bool:
    """Whether a DICOM file gives its image a size; `assume` where it cannot be read."""
    stream.seek(0)
    try:
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True, specific_tags=["Rows", "Modality"])
    except MemoryError:
        raise
    except Exception:
        return assume
    return "Rows" in header or (assume and not header.file_meta and not header)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """A key that sorts numbers in names by their value: image2 before image10."""
    parts = re.split(r"(\d+)", name.casefold())
    return [(1, int(part), "") if part.isdecimal() and len(part) < 100 else (0, 0, part) for part in parts]
