"""Image files are found in folders of any layout and in archives, once each, under names that fit a file."""

import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from siimcovid.core.errors import InputError
from siimcovid.data.image_files import find_images, original_size, place, read_image_file

PIXELS = np.arange(64 * 48, dtype=np.uint32).reshape(64, 48).astype(np.uint8)


def png() -> bytes:
    return cv2.imencode(".png", PIXELS)[1].tobytes()


@pytest.fixture
def folder(tmp_path) -> Path:
    top = tmp_path / "päth with spaces"
    for name in ("a/one.png", "b/one.png", "b/two.PNG", "b/noending", "b/.hidden.png", ".cache/x.png", "b/table.csv"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(png() if "csv" not in name else b"id,boxes\n")
    (top / "b" / "broken.dcm").write_bytes(b"nothing")
    (top / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    with zipfile.ZipFile(top / "study.zip", "w") as archive:
        archive.writestr("series/three.png", png())
        archive.writestr("__MACOSX/series/._three.png", b"dropping")
        archive.writestr("readme.txt", b"text")
        archive.writestr("../../escape.png", png())
    return top


def test_every_image_once(folder):
    found, failures = find_images([folder, folder / "a" / "one.png", folder / "study.zip"])
    assert failures == []
    names = {image.image_id: Path(image.shown).name for image in found}
    files = ["broken.dcm", "escape.png", "noending", "one.png", "one.png", "three.png", "two.PNG"]
    assert sorted(names.values()) == files
    assert {"two", "three", "noending", "broken", "escape"} <= set(names)
    assert {name for name in names if "one" in name} == {f"{folder.name}_a_one", f"{folder.name}_b_one"}
    assert [image.shown for image in found] == sorted(image.shown for image in found)


def test_placed_under_their_own_name_with_the_ending_of_the_content(folder, tmp_path):
    found, _ = find_images([folder])
    target = tmp_path / "placed"
    target.mkdir()
    for image in found:
        path = place(image, target)
        assert path.parent == target
        assert path.name == f"{image.image_id}{'.dcm' if image.image_id == 'broken' else '.png'}"
        if path.suffix == ".png":
            assert (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) == PIXELS).all()
            assert original_size(path) == (64, 48)
    assert not (tmp_path.parent / "escape.png").exists()
    assert len(list(target.iterdir())) == len(found)


def test_names_that_are_no_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/f\xfcr \xe9.png"
    Path(os.fsdecode(path)).write_bytes(png())
    (found,), _ = find_images([tmp_path])
    found.shown.encode()
    (tmp_path / "placed").mkdir()
    assert place(found, tmp_path / "placed").read_bytes() == png()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", "cut"])
def test_a_damaged_archive_is_a_failure(tmp_path, content):
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.png", png())
    path.write_bytes(path.read_bytes()[:-30] if content == "cut" else content)
    found, failures = find_images([tmp_path])
    assert found == []
    assert len(failures) == 1
    assert "damaged zip archive" in failures[0][1]


def test_a_damaged_member_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "study.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("one.png", png())
    data = bytearray(path.read_bytes())
    data[data.index(b"\x89PNG") + 60] ^= 255
    path.write_bytes(bytes(data))
    (image,), _ = find_images([path])
    (tmp_path / "placed").mkdir()
    with pytest.raises(InputError, match=r"cannot be read .*CRC"):
        place(image, tmp_path / "placed")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="absent does not exist; name image files"):
        find_images([tmp_path / "absent"])


@pytest.mark.parametrize(("orientation", "size"), [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_the_size_is_that_of_the_upright_image(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", exif=exif)
    assert original_size(tmp_path / "a.jpg") == size
    assert read_image_file(tmp_path / "a.jpg").shape == size


def test_real_files_are_found_without_an_ending(real):
    found, failures = find_images([real / "dicom"])
    assert failures == []
    assert len(found) == 24
