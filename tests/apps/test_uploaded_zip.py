"""A zip of a study: its images in any layout, and one sentence for each zip that is refused."""

import io
import json
import mmap
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MediaStorageDirectoryStorage

from siimcovid.apps.web.request_errors import RequestError
from siimcovid.apps.web.result_files import MEDIA_TYPES, result_file
from siimcovid.apps.web.uploaded_files import Limits, decode, decode_upload, hold_upload
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.processes import run_apart
from support.dicom_files import write
from support.png_chunks import png

LIMITS = Limits(images=4, pixels=1_000_000, memory=1 << 30, zip_files=20, unpacked_megabytes=2)


def grey(value: int) -> np.ndarray:
    """An image (40, 50) that can be told from others: its brightest pixel is 255, the first one `value`."""
    pixels = np.full((40, 50), 255, np.uint8)
    pixels[0, 0], pixels[1, 1] = value, 0
    return pixels


@pytest.fixture
def dicom(tmp_path):
    def of(value: int, **tags) -> bytes:
        return write(tmp_path / "image.dcm", grey(value), 8, **tags).read_bytes()

    return of


def zipped(files: Mapping[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as archive:
        for name, content in dict(files).items() if isinstance(files, Mapping) else files:
            archive.writestr(name, content)
    return data.getvalue()


def read(*files: tuple[bytes, str], limits: Limits = LIMITS) -> tuple[list[int], list[str], int]:
    """The first pixel of each image, their names, and how many files were left out."""
    with hold_upload([(io.BytesIO(data), name) for data, name in files], limits) as upload:
        pixels = [int(image[0, 0]) for image in decode_upload(upload, limits)]
        return pixels, [image.name for image in upload.images], upload.left_out


def decode_beside_other_memory(job: tuple) -> np.ndarray | RequestError:
    """As `decode`, in a process that holds more address space than an image may take, as a fork server with torch."""
    held = mmap.mmap(-1, 2 * LIMITS.memory)
    try:
        return decode(job)
    finally:
        held.close()


def without_pixels() -> bytes:
    """A DICOM file without pixels."""
    header = Dataset()
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    header.file_meta.MediaStorageSOPClassUID, header.file_meta.MediaStorageSOPInstanceUID = (
        MediaStorageDirectoryStorage,
        "1.2.3",
    )
    header.PatientName = "DOE"
    data = io.BytesIO()
    header.save_as(data, enforce_file_format=True)
    return data.getvalue()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_images_of_every_kind_in_any_layout(dicom, method):
    """By content, in the order of the names, whatever lies beside them."""
    jpeg = io.BytesIO()
    Image.fromarray(np.full((40, 50), 9, np.uint8)).save(jpeg, "JPEG")
    data = zipped(
        {
            "CD/STUDY/IM10": dicom(10),
            "CD/STUDY/IM2": dicom(2),
            "CD/über äöü/a.exe": png(grey(3)),
            "photo": jpeg.getvalue(),
            "CD/DICOMDIR": without_pixels(),
            "CD/report.dcm": without_pixels(),
            "CD/viewer/icon.png": png(grey(0)[:20, :20]),
            "CD/viewer/viewer.exe": b"MZ" + bytes(5000),
            "__MACOSX/CD/STUDY/._IM2": dicom(7),
            "CD/.DS_Store": b"Bud1",
            "CD/inner.zip": zipped({"a.png": png(grey(1))}),
            "CD/empty.txt": b"",
        },
        method,
    )
    pixels, names, left_out = read((data, "cd.zip"))
    assert pixels == [2, 10, 3, 9]
    assert names == [f"cd.zip/{name}" for name in ("CD/STUDY/IM2", "CD/STUDY/IM10", "CD/über äöü/a.exe", "photo")]
    assert left_out == 8


def test_zip_beside_files(dicom):
    data = zipped({"a.png": png(grey(1)), "b.png": png(grey(2))})
    pixels, names, _ = read((dicom(5), "x.dcm"), (data, "s.zip"), (png(grey(6)), "y.png"))
    assert (pixels, names) == ([5, 1, 2, 6], ["x.dcm", "s.zip/a.png", "s.zip/b.png", "y.png"])


def with_name(name: str) -> bytes:
    """A zip in which a file has a name that zipfile would not write."""
    placeholder = "x" * len(name.encode())
    return zipped({placeholder: png(grey(1))}).replace(placeholder.encode(), name.encode())


def with_flag(flag: int) -> bytes:
    """A zip whose files are marked, in its directory and before the file itself."""
    data = bytearray(zipped({"a.png": png(grey(1))}))
    data[6] |= flag
    data[data.index(b"PK\1\2") + 8] |= flag
    return bytes(data)


def with_method(method: int) -> bytes:
    data = bytearray(zipped({"a.png": png(grey(1))}))
    data[8:10] = struct.pack("<H", method)
    at = data.index(b"PK\1\2") + 10
    data[at : at + 2] = struct.pack("<H", method)
    return bytes(data)


def claiming(size: int) -> bytes:
    """A zip of 40 MB whose header claims fewer bytes."""
    data = bytearray(zipped({"a.dcm": bytes(128) + b"DICM" + bytes(40 << 20)}))
    for at in (data.index(b"PK\3\4") + 22, data.index(b"PK\1\2") + 24):
        data[at : at + 4] = struct.pack("<I", size)
    return bytes(data)


def damaged(position: int) -> bytes:
    data = bytearray(zipped({"a.png": png(grey(1)), "b.png": png(grey(2))}))
    data[position] ^= 0xFF
    return bytes(data)


BAD = {
    "bomb": (lambda: zipped({"a.dcm": bytes(40 << 20)}), "too_large", "unpacks to more than 2 MB"),
    "bomb of many": (lambda: zipped({f"{n}.png": bytes(1 << 20) for n in range(9)}), "too_large", "unpacks to more"),
    "bomb that lies": (lambda: claiming(1000), "bad_zip", "damaged"),
    "many files": (lambda: zipped({f"{n}.txt": b"x" for n in range(21)}), "too_large", "holds 21 files"),
    "many images": (lambda: zipped({f"{n}.png": png(grey(n)) for n in range(5)}), "too_many_images", "5 images"),
    "empty": (lambda: zipped({}), "no_image", "neither DICOM nor PNG nor JPEG"),
    "no image": (lambda: zipped({"word/document.xml": b"<w/>"}), "no_image", "neither DICOM"),
    "zip in a zip": (lambda: zipped({"inner.zip": zipped({"a.png": png(grey(1))})}), "no_image", "neither DICOM"),
    "parent": (lambda: with_name("../../evil.png"), "bad_zip", "outside its own folder"),
    "parent inside": (lambda: with_name("a/../../evil.png"), "bad_zip", "outside"),
    "absolute": (lambda: with_name("/etc/passwd"), "bad_zip", "outside"),
    "backslashes": (lambda: with_name("..\\evil.png"), "bad_zip", "outside"),
    "drive": (lambda: with_name("C:\\evil.png"), "bad_zip", "outside"),
    "share": (lambda: with_name("\\\\host\\evil.png"), "bad_zip", "outside"),
    "zero byte": (lambda: with_name("a\0b.png"), "bad_zip", "outside"),
    "password": (lambda: with_flag(1), "bad_zip", "locked with a password"),
    "unknown method": (lambda: with_method(98), "bad_zip", "not known here"),
    "breaks off": (lambda: zipped({"a.png": png(grey(1))})[:-30], "bad_zip", "damaged"),
    "damaged bytes": (lambda: damaged(60), "bad_zip", "damaged"),
    "noise": (lambda: b"PK\3\4" + bytes(range(256)) * 4, "bad_zip", "damaged"),
    "damaged image": (
        lambda: zipped({"a.png": png(grey(1)), "b.png": png(grey(2))[:-40]}),
        "damaged",
        "Image 2 is a damaged PNG",
    ),
    "empty image": (lambda: zipped({"a.png": png(grey(1)), "text.dcm": b"Dear doctor"}), "not_an_image", "Image 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_zip(name):
    make, code, said = BAD[name]
    with pytest.raises(RequestError) as raised:
        read((make(), "study.zip"))
    assert raised.value.code == code
    assert said in raised.value.message
    assert len(raised.value.message) < 150
    assert "study" not in raised.value.message.replace("one study", "").replace("one study alone", "")


def test_zip_made_on_windows_is_read():
    assert read((with_name("a\\b\\image.png"), "z"))[0] == [1]


def test_nothing_is_unpacked_under_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read((zipped({"a/b.png": png(grey(1))}), "z"))
    assert list(tmp_path.iterdir()) == []


def test_counts_are_limits_of_all_files_together():
    data = zipped({f"{n}.png": png(grey(n)) for n in range(3)})
    assert len(read((data, "a"))[0]) == 3
    with pytest.raises(RequestError, match="6 images were sent: send at most 4"):
        read((data, "a"), (data, "b"))
    assert len(read((data, "a"), (data, "b"), limits=replace(LIMITS, images=6))[0]) == 6


# --- the result as files ---------------------------------------------------------------------------------------------

BOX = {"score": 0.5, "left": 1.25, "top": 2.0, "right": 11.5, "bottom": 22.0}
PROBABILITIES = dict(zip(STUDY_LABELS, (0.1, 0.2, 0.3, 0.4), strict=True))
RESULT = {
    "version": "1",
    "notice": "Research software, not for diagnosis.",
    "models": ["rcnn", "ensemble"],
    "study_probabilities": PROBABILITIES,
    "images": [
        {
            "name": 'a, "b".png',
            "rows": 40,
            "columns": 50,
            "study_probabilities": PROBABILITIES,
            "notice": "It is odd.",
            "none": {"rcnn": 0.4, "ensemble": 0.6},
            "boxes": {"rcnn": [BOX, {**BOX, "score": 0.25}], "ensemble": [BOX]},
        },
        {
            "name": "c",
            "rows": 30,
            "columns": 20,
            "study_probabilities": PROBABILITIES,
            "notice": "",
            "none": {"rcnn": 1.0, "ensemble": 1.0},
            "boxes": {"rcnn": [], "ensemble": []},
        },
    ],
}


def test_predictions_csv():
    table = pd.read_csv(io.StringIO(result_file("predictions.csv", RESULT)))
    assert table["name"].tolist() == ['a, "b".png', "c"]
    assert table[["image", "rows", "columns", "none", "boxes"]].to_numpy().tolist() == [
        [1, 40, 50, 0.6, 1],
        [2, 30, 20, 1.0, 0],
    ]
    assert set(table["model"]) == {"ensemble"}
    assert table["notice"].tolist() == [f"{RESULT['notice']} It is odd.", RESULT["notice"]]
    for label, value in PROBABILITIES.items():
        assert table[label].tolist() == table[f"image_{label}"].tolist() == [value, value]


def test_boxes_csv():
    table = pd.read_csv(io.StringIO(result_file("boxes.csv", RESULT)))
    assert table.columns.tolist() == ["image", "name", "model", "score", "xmin", "ymin", "xmax", "ymax", "notice"]
    assert set(table["notice"]) == {RESULT["notice"]}
    assert table["model"].tolist() == ["rcnn", "rcnn", "ensemble"]
    assert table[["score", "xmin", "ymin", "xmax", "ymax"]].to_numpy().tolist() == [
        [0.5, 1.25, 2.0, 11.5, 22.0],
        [0.25, 1.25, 2.0, 11.5, 22.0],
        [0.5, 1.25, 2.0, 11.5, 22.0],
    ]


def test_coco_json(tmp_path):
    """pycocotools reads it, and finds the ensemble's box."""
    coco = pytest.importorskip("pycocotools.coco").COCO
    path = Path(tmp_path, "coco.json")
    path.write_text(result_file("coco.json", RESULT), encoding="utf-8")
    found = coco(str(path))
    assert [image["file_name"] for image in found.loadImgs([1, 2])] == ['a, "b".png', "c"]
    (box,) = found.loadAnns(found.getAnnIds(imgIds=[1]))
    assert (box["bbox"], box["area"], box["score"]) == ([1.25, 2.0, 10.25, 20.0], 205.0, 0.5)
    assert found.getAnnIds(imgIds=[2]) == []
    assert json.loads(path.read_text())["info"]["model"] == "ensemble"


def test_result_without_study_model_or_detector():
    study = {**RESULT, "models": [], "images": [{**i, "none": {}, "boxes": {}} for i in RESULT["images"]]}
    boxes = {
        **RESULT,
        "study_probabilities": None,
        "images": [{**i, "study_probabilities": None} for i in RESULT["images"]],
    }
    for name in MEDIA_TYPES:
        assert result_file(name, study)
        assert result_file(name, boxes)
    table = pd.read_csv(io.StringIO(result_file("predictions.csv", study)))
    assert table[["none", "boxes", "model"]].isna().all(axis=None)
    table = pd.read_csv(io.StringIO(result_file("predictions.csv", boxes)))
    assert table[list(STUDY_LABELS)].isna().all(axis=None)


def test_memory_is_counted_from_where_the_process_begins(tmp_path):
    """What the fork server holds for others is no part of an image; what the image needs is limited all the same."""
    path = tmp_path / "image.png"
    path.write_bytes(png(np.full((8000, 8000), 7, np.uint8)))  # more than may lie free in the process already
    large = replace(LIMITS, pixels=100_000_000)
    jobs = [(str(path), None, limits, "The image") for limits in (large, replace(large, memory=1 << 10))]
    results = dict(run_apart(decode_beside_other_memory, jobs[:1], workers=1, limit=60))
    assert results[jobs[0]][0, 0] == 7
    ((_, refused),) = run_apart(decode_beside_other_memory, jobs[1:], workers=1, limit=60)
    assert "more memory" in refused.message
