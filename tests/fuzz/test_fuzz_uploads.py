"""Files that nobody should send to the page: every one becomes an image or one sentence, and never an exception."""

import io
import os
import struct
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from siimcovid.apps.web.request_errors import STATUS, RequestError
from siimcovid.apps.web.uploaded_files import Limits, decode_upload, hold_upload
from support.dicom_files import write
from support.fuzzing import fuzz
from support.png_chunks import COLOUR_TYPES, chunk, png

LIMITS = Limits(images=4, pixels=1_000_000, memory=2 << 30, zip_files=50, unpacked_megabytes=8)
EXAMPLES = 150  # of each test in a short run
SECONDS = 20.0  # that one file may take

GREY = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 16


# --- files -----------------------------------------------------------------------------------------------------------


def saved(kind: str, **options) -> bytes:
    data = io.BytesIO()
    Image.fromarray(GREY).save(data, kind, **options)
    return data.getvalue()


def exif() -> bytes:
    tags = Image.Exif()
    tags[0x0112], tags[0x011A], tags[0x010F] = 6, 72.5, "maker"
    return tags.tobytes()


@pytest.fixture(scope="module")
def seeds(tmp_path_factory) -> list[bytes]:
    """Whole files, small ones, that mutations start from."""
    folder = tmp_path_factory.mktemp("seeds")
    plain = write(folder / "plain.dcm", GREY, 8, WindowCenter=100, WindowWidth=50).read_bytes()
    deep = write(folder / "deep.dcm", DEEP, 12, RescaleSlope=2, RescaleIntercept=-5, PatientName="DOE").read_bytes()
    pictures = [
        saved("PNG"),
        png(DEEP, chunk(b"tEXt", b"k\0text"), chunk(b"eXIf", exif()[6:])),
        png(np.dstack([DEEP] * 3)),
        png(GREY, chunk(b"tRNS", bytes(20)), palette=bytes(768)),
        saved("JPEG", exif=exif(), comment=b"comment"),
        saved("JPEG", progressive=True),
    ]
    archives = [zipped([("a/one.png", pictures[0]), ("a/two.dcm", plain)]), zipped([("one", deep)], zipfile.ZIP_STORED)]
    return [*pictures, plain, deep, *archives]


def zipped(files: list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return data.getvalue()


#: A change to a file: what, where (a share of its length), how long, and bytes for it.
CHANGE = st.tuples(
    st.sampled_from(["set", "flip", "cut", "insert", "repeat", "end"]),
    st.floats(0, 1),
    st.integers(1, 64),
    st.binary(min_size=1, max_size=16) | st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"]),
)


def changed(data: bytes, changes: list) -> bytes:
    for kind, share, length, new in changes:
        at = int(share * max(len(data) - 1, 0))
        rest = data[at + length :]
        if kind == "set":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "flip":
            data = data[:at] + bytes(b ^ new[0] for b in data[at : at + 1]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + rest
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "repeat":
            data = data[: at + length] * 2 + rest
        else:
            data = data[:at]
    return data


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks' checksums fit what stands in them, so that a decoder gets to see it."""
    parts, at = [data[:8]], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        body = data[at + 4 : at + 8 + length]
        parts.append(data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body)))
        at += 12 + length
    return b"".join(parts) + data[at:]


@st.composite
def drawn_pngs(draw) -> bytes:
    """A PNG of any header and chunks, whose checksums are right."""
    size = st.integers(0, 64) | st.sampled_from([32, 40, 2**16, 2**31 - 1, 2**32 - 1])
    small = st.integers(0, 255)
    depth = st.sampled_from([1, 2, 4, 8, 16]) | small
    colour = st.sampled_from([*COLOUR_TYPES.values(), 3]) | small
    header = struct.pack(
        ">IIBBBBB",
        draw(size),
        draw(size),
        draw(depth),
        draw(colour),
        draw(st.just(0) | small),
        0,
        draw(st.integers(0, 2)),
    )
    names = st.sampled_from(
        [b"PLTE", b"tRNS", b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"sBIT", b"acTL", b"IDAT", b"fdAT"]
    )
    extra = draw(st.lists(st.tuples(names, st.binary(max_size=60)), max_size=4))
    pixels = zlib.compress(draw(st.binary(max_size=64)) + bytes(draw(st.sampled_from([0, 2000, 9000, 40000]))))
    chunks = [chunk(b"IHDR", header), *(chunk(*one) for one in extra), chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


DICOM_VALUES = {
    "BitsAllocated": st.sampled_from([1, 8, 12, 16, 32, 0]),
    "BitsStored": st.integers(0, 33),
    "HighBit": st.integers(0, 33),
    "PixelRepresentation": st.integers(0, 2),
    "SamplesPerPixel": st.sampled_from([0, 1, 3, 4, 65535]),
    "Rows": st.sampled_from([0, 1, 32, 40, 41, 65535]),
    "Columns": st.sampled_from([0, 1, 32, 50, 51, 65535]),
    "PhotometricInterpretation": st.sampled_from(["MONOCHROME1", "RGB", "YBR_FULL", "PALETTE COLOR", "", "DOE"]),
    "PlanarConfiguration": st.integers(0, 2),
    "NumberOfFrames": st.sampled_from(["0", "1", "2", "-1", "100000", ""]),
    "WindowCenter": st.sampled_from(["", "0", "-1e30", "1e30", ["1", "2"]]),
    "WindowWidth": st.sampled_from(["", "0", "0.5", "1", "1e30", ["1", "2"]]),
    "RescaleSlope": st.sampled_from(["", "0", "-1", "1e30"]),
    "RescaleIntercept": st.sampled_from(["", "0", "-1e30"]),
    "VOILUTFunction": st.sampled_from(["", "SIGMOID", "LINEAR_EXACT", "DOE"]),
    "PixelData": st.just(None),
}
HEADERS = st.dictionaries(st.sampled_from(sorted(DICOM_VALUES)), st.none(), max_size=4).flatmap(
    lambda names: st.fixed_dictionaries({name: DICOM_VALUES[name] for name in names})
)

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12) | st.sampled_from(
    ["../a", "/a", "C:\\a", "a/..", "__MACOSX/a", ".a", "a.dcm", "DICOMDIR", "a//b", "./a", "a\0b", "x" * 300]
)


# --- what happens to them --------------------------------------------------------------------------------------------


def outcome(data: bytes) -> str:
    """What the page makes of a file: "image", or an error's code. Raises whatever a person should not see."""
    try:
        with hold_upload([(io.BytesIO(data), "name")], LIMITS) as upload:
            for pixels in decode_upload(upload, LIMITS):
                assert pixels.dtype == np.uint8
                assert pixels.ndim == 2
                assert min(pixels.shape) >= 32
        return "image"
    except RequestError as caught:
        error = caught
    assert error.code in STATUS
    assert error.code != "internal"
    assert len(error.message) < 150
    assert error.message.endswith(".")
    assert "\n" not in error.message
    assert "DOE" not in error.message
    return error.code


def prepare_process() -> None:
    """Decode here instead of in a process for each file, which would take most of the time."""
    from siimcovid.apps.web import uploaded_files

    uploaded_files.run_apart = lambda function, jobs, **_: [(job, function(job)) for job in jobs]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


class Decoder:
    """A process that decodes file after file, and its successor where a file kills it."""

    def __init__(self):
        self.pool, self.outcomes = None, {}

    def __call__(self, data: bytes) -> str:
        self.pool = self.pool or ProcessPoolExecutor(1, get_context("forkserver"), prepare_process)
        try:
            found = self.pool.submit(outcome, data).result(SECONDS)
        except BrokenProcessPool:  # the page says that its decoder gave up
            self.pool, found = None, "crash"
        self.outcomes[found] = self.outcomes.get(found, 0) + 1
        return found


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder()
    yield decoder
    if decoder.pool:
        decoder.pool.shutdown()
    print(f"\n{sum(decoder.outcomes.values())} files: {decoder.outcomes}")


def test_damaged_files(seeds, decoder):
    """Real files with bytes changed, cut, repeated or put in; PNG with checksums that fit all the same."""

    def damage(seed, changes, mend):
        data = changed(seed, changes)
        decoder(with_checksums(data) if mend and seed.startswith(b"\x89PNG") else data)

    changes = st.lists(CHANGE, min_size=1, max_size=4)
    fuzz(damage, EXAMPLES, seed=st.sampled_from(seeds), changes=changes, mend=st.booleans())


def test_drawn_pngs(decoder):
    fuzz(decoder, EXAMPLES, data=drawn_pngs())


def test_drawn_dicom_headers(decoder, tmp_path):
    def draw(tags):
        try:
            path = write(tmp_path / "drawn.dcm", DEEP, 12, **tags)
        except Exception:  # pydicom writes no such value
            return
        decoder(Path(path).read_bytes())

    fuzz(draw, EXAMPLES, tags=HEADERS)


def test_drawn_zips(seeds, decoder):
    def draw(files, method, changes):
        decoder(changed(zipped(files, method), changes))

    fuzz(
        draw,
        EXAMPLES,
        files=st.lists(st.tuples(NAMES, st.sampled_from(seeds) | st.binary(max_size=200)), max_size=6),
        method=st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
        changes=st.lists(CHANGE, max_size=3),
    )


def test_drawn_forms(monkeypatch):
    """Any text in any field is a result or one of the errors that docs/web.md names, and never our own failure."""
    from siimcovid.apps.web import web_app  # not above: the decoding process imports this file, and needs no torch

    preset = SimpleNamespace(fusion=SimpleNamespace(detectors=("rcnn",), hflip_tta=True))
    model = SimpleNamespace(models={"rcnn": None, "study": None}, preset=preset, notices=())
    result = {
        "version": "",
        "notice": "",
        "models": ["rcnn", "ensemble"],
        "study_probabilities": None,
        "highest": None,
        "images": [],
        "files_left_out": 0,
    }
    monkeypatch.setattr(web_app, "warm_up", lambda service: None)
    monkeypatch.setattr(web_app, "predict_files", lambda *_, **__: result)
    client = web_app.create_app(model, LIMITS).test_client()
    text = st.text(max_size=20) | st.sampled_from(
        ["nan", "inf", "1e999", "-0", "0x1", "１", "rcnn", "boxes.csv", "1", "0.3"]
    )
    fields = st.dictionaries(
        st.sampled_from(["model", "threshold", "pictures", "heat", "format", "images", "other"]), text, max_size=4
    )

    def send(path, form, names):
        files = [(io.BytesIO(png(GREY)), name) for name in names]
        data = {**form, **({"images": files} if files else {})}
        answer = client.post(path, data=data, content_type="multipart/form-data")
        assert answer.status_code == 200 or answer.status_code in STATUS.values()
        assert answer.status_code != 500

    names = st.lists(st.text(max_size=20), max_size=3)
    fuzz(send, EXAMPLES, path=st.sampled_from(["/", "/api/predict"]), form=fields, names=names)
