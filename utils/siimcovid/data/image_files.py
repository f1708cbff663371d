"""The image files that people name: files, folders of any layout and zip archives, of DICOM, PNG and JPEG.

In: paths. Out: an `ImageFile` for each image, in an order that depends on the names alone, and a reason for each file
that is none. `place` then puts an image where it can be read under a plain name, out of an archive too.
"""

import os
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from shutil import copyfileobj

import numpy as np
from PIL import ExifTags, Image
from pydicom import dcmread

from siimcovid.core.errors import InputError
from siimcovid.core.processes import run_apart
from siimcovid.data.dicom_headers import read_header
from siimcovid.data.dicom_image import read_image
from siimcovid.data.picture_files import read_picture

#: First bytes of a file -> the ending under which image_cache reads it.
SIGNATURES = {b"\x89PNG\r\n\x1a\n": ".png", b"\xff\xd8\xff": ".jpg"}

#: Endings that make a file an image whatever it holds: one that cannot be read is then reported, not passed over.
ENDINGS = (".dcm", ".dicom", ".png", ".jpg", ".jpeg")

#: What an archive or a damaged file may raise when a member is read.
DAMAGE = (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error)

#: Seconds in which a file that could not be read is read once more to see where it fails.
TRACEBACK_LIMIT = 60.0

#: Characters of an image's name that become part of the files written for it.
LONGEST_NAME = 120


@dataclass(frozen=True)
class ImageFile:
    """One image that was found.

    Attributes:
        image_id: unique, fit for a file's name: the file's own name without ending, with its folders where several
            files have the same.
        shown: its path in UTF-8, in an archive "<archive>/<member>", for tables and messages.
        path: of the file, or of the archive.
        member: its name in the archive; "" for a file.
        fingerprint: what tells whether it has changed: length and date, or the archive's checksum.
    """

    image_id: str
    shown: str
    path: Path
    member: str
    fingerprint: tuple[int, int]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the folders that it lies in, then its own without ending."""
        inside = PurePath(self.shown)
        return (*inside.parts[:-1], inside.stem)


def find_images(paths: Sequence[Path | str]) -> tuple[list[ImageFile], list[tuple[str, str]]]:
    """All images of files, folders and zip archives, each once, and (path, reason) of what could not be opened.

    Of a folder or archive, files whose ending or first bytes say DICOM, PNG or JPEG are taken, and files of a folder
    without an ending whose header is a DICOM's; hidden ones are not. A file that is named itself is always taken.
    Raises InputError for a path that does not exist.
    """
    found: dict[tuple[str, str], tuple[str, Path, str, tuple[int, int]]] = {}
    failures: list[tuple[str, str]] = []
    for path in paths:
        path = Path(path).expanduser()
        if not path.exists():
            raise InputError(f"{_utf8(path)} does not exist; name image files, folders or zip archives")
        for file in _files(path, failures):
            if file.suffix.lower() == ".zip" or (file == path and zipfile.is_zipfile(file)):
                entries = _members(file, failures)
            elif file != path and not _is_image(file):
                continue
            else:
                entries = _single(file, failures)
            for member, fingerprint in entries:
                shown = f"{_utf8(file)}/{member}" if member else _utf8(file)
                found.setdefault((os.path.realpath(file), member), (shown, file, member, fingerprint))
    entries = sorted(found.values(), key=lambda entry: entry[0])
    names = _unique_names([entry[0] for entry in entries])
    return [ImageFile(name, *entry) for name, entry in zip(names, entries, strict=True)], failures


def place(image: ImageFile, folder: Path) -> Path:
    """Put an image into a folder as <image_id> with the ending that its content has; a file becomes a link.

    Raises InputError, without the path, for one that cannot be read.
    """
    try:
        if image.member:
            with zipfile.ZipFile(image.path) as archive, archive.open(image.member) as stream:
                target = folder / f"{image.image_id}{_ending(stream.read(8))}"
            with zipfile.ZipFile(image.path) as archive, archive.open(image.member) as stream, target.open("wb") as out:
                copyfileobj(stream, out)
            return target
        with open(image.path, "rb") as stream:
            target = folder / f"{image.image_id}{_ending(stream.read(8))}"
        target.symlink_to(os.path.realpath(image.path))
    except DAMAGE as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"cannot be read ({reason})") from None
    return target


def read_image_file(path: Path | str) -> np.ndarray:
    """A DICOM, PNG or JPEG file as uint8 (rows, columns), 0 black and upright, whatever its name.

    The decoders run in this process; `image_cache.prepare` runs them in processes that may crash. Raises InputError for
    a file that is missing or cannot be read.
    """
    path = Path(path).expanduser()
    try:
        with open(path, "rb") as stream:
            picture = _ending(stream.read(8)) != ".dcm"
    except OSError as error:
        raise InputError(f"{_utf8(path)} cannot be read ({error.strerror}); name an image file") from None
    return read_picture(path)[0] if picture else read_image(path)


def tracebacks(images: Sequence[ImageFile]) -> Iterator[tuple[str, str]]:
    """Where the reading of each image fails: (shown path, traceback), for those that raise something.

    Each is read in a process of its own, which may crash; then there is no traceback.
    """
    for image in images:
        with tempfile.TemporaryDirectory(prefix="siimcovid-") as folder:
            try:
                file = place(image, Path(folder))
            except InputError as error:
                yield image.shown, "".join(traceback.format_exception(error))
                continue
            ((_, text),) = run_apart(_traceback, [str(file)], workers=1, limit=TRACEBACK_LIMIT)
        if text and isinstance(text, str):  # neither nothing nor Lost
            yield image.shown, text


def _traceback(path: str) -> str:
    """The traceback of reading a file, "" where nothing is raised, in a worker process."""
    try:
        read_image_file(path)
    except Exception:
        return traceback.format_exc()
    return ""


def original_size(path: Path) -> tuple[int, int]:
    """(rows, columns) of an upright image by its header alone; (0, 0) where it does not say."""
    if path.suffix == ".dcm":
        header = read_header(path)
        return header.rows, header.columns
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 0


def study_uid(path: Path) -> str:
    """A DICOM file's StudyInstanceUID; "" where it has none, and for other files."""
    if path.suffix != ".dcm":
        return ""
    try:
        header = dcmread(path, stop_before_pixels=True, force=True, specific_tags=["StudyInstanceUID"])
        return str(header.get("StudyInstanceUID") or "").strip()
    except Exception:  # a damaged header makes pydicom raise nearly anything
        return ""


def _files(path: Path, failures: list[tuple[str, str]]) -> Iterator[Path]:
    """The file itself, or all files below a folder; a folder that cannot be listed is a failure."""
    if not path.is_dir():
        yield path
        return

    def report(error: OSError) -> None:
        failures.append((_utf8(error.filename), f"cannot be listed ({error.strerror})"))

    for folder, folders, names in os.walk(path, onerror=report):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with open(path, "rb") as stream:
            start = stream.read(132)
    except OSError:
        return False
    nameless = path.suffix == "" or path.suffix[1:].isdigit()  # scanners name files by their UID
    return _starts_as_image(start) or (nameless and len(start) == 132 and not read_header(path).fault)


def _starts_as_image(start: bytes) -> bool:
    return start[128:132] == b"DICM" or any(start.startswith(signature) for signature in SIGNATURES)


def _ending(start: bytes) -> str:
    return next((ending for signature, ending in SIGNATURES.items() if start.startswith(signature)), ".dcm")


def _single(file: Path, failures: list[tuple[str, str]]) -> list[tuple[str, tuple[int, int]]]:
    if file.name == "DICOMDIR":  # a table of contents, which has no pixels
        return []
    try:
        state = file.stat()
    except OSError as error:  # a link to nowhere
        failures.append((_utf8(file), f"cannot be read from the disk ({error.strerror})"))
        return []
    return [("", (state.st_size, state.st_mtime_ns))]


def _members(file: Path, failures: list[tuple[str, str]]) -> list[tuple[str, tuple[int, int]]]:
    """Names and (length, checksum) of an archive's images."""
    entries = []
    try:
        with zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                inside = PurePath(info.filename)
                hidden = any(part.startswith((".", "__MACOSX")) and part != ".." for part in inside.parts)
                if info.is_dir() or hidden or inside.name == "DICOMDIR":
                    continue
                if inside.suffix.lower() not in ENDINGS:
                    try:
                        with archive.open(info) as stream:
                            if not _starts_as_image(stream.read(132)):
                                continue
                    except DAMAGE:
                        continue
                entries.append((info.filename, (info.file_size, info.CRC)))
    except DAMAGE as error:
        failures.append((_utf8(file), f"is a damaged zip archive ({' '.join(str(error).split())})"))
    return entries


def _unique_names(shown: Sequence[str]) -> list[str]:
    """A name for each path: its own without ending, or where several share that, with its folders; else numbered."""
    stems = [PurePath(path).stem for path in shown]
    counts = Counter(stems)
    taken: set[str] = set()
    names = []
    for path, stem in zip(shown, stems, strict=True):
        name = stem
        if counts[stem] > 1:
            name = "_".join((*PurePath(path).parts[-3:-1], stem))
        name = _file_name(name)
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        names.append(unique)
    return names


def _file_name(name: str) -> str:
    """A name without what a file name cannot hold or what tables and commands trip over."""
    name = "".join(letter if letter.isprintable() and letter not in '/\\"' else "_" for letter in name)
    name = name.lstrip(".") or "image"
    while len(name.encode()) > LONGEST_NAME:
        name = name[1:]
    return name


def _utf8(path: Path | str) -> str:
    """A path as text that every encoding of Unicode can write: bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
