"""The cache holds every readable image once, and says why it lacks the others."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from siimcovid.apps import command_line
from siimcovid.core.errors import InputError
from siimcovid.data import image_cache
from siimcovid.data.dicom_image import read_image
from support.dicom_files import write

SIZE = 32
SHAPES = {"wide": (40, 100), "tall": (100, 40), "square": (64, 64), "small": (20, 30), "thin": (1, 200)}


def make(job):
    """The cache's own function, in a process that dies on one image."""
    if "crash" in job[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return image_cache._make(job)


def make_slowly(job):
    time.sleep(0.05)
    return image_cache._make(job)


def cached_images(folder: Path, shapes: dict[str, tuple[int, int]]) -> pd.DataFrame:
    """Write images of noise; returns the index."""
    folder.mkdir(exist_ok=True)
    for seed, (name, shape) in enumerate(shapes.items()):
        write(folder / f"{name}.dcm", np.random.default_rng(seed).integers(0, 4096, shape), 12)
    return pd.DataFrame([(name, str(folder / f"{name}.dcm")) for name in shapes], columns=["image_id", "path"])


def pictures(folder: Path) -> dict[str, int]:
    """Names and dates of what the cache holds."""
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}


@pytest.fixture
def images(tmp_path) -> pd.DataFrame:
    return cached_images(tmp_path / "cached_images", SHAPES)


def no_work(*arguments):
    raise AssertionError("there is no work to do")


def test_pictures(tmp_path, images):
    failures = image_cache.prepare(images, tmp_path / "cache", SIZE, 2)
    assert failures.empty
    shapes = {name: image_cache.read(tmp_path / "cache", name).shape for name in SHAPES}
    assert shapes == {"wide": (13, 32), "tall": (32, 13), "square": (32, 32), "small": (20, 30), "thin": (1, 32)}
    for image, path in images.itertuples(index=False):
        picture = image_cache.read(tmp_path / "cache", image)
        assert picture.dtype == np.uint8
        np.testing.assert_array_equal(picture, image_cache.fit(read_image(path), SIZE))
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {
        *(f"{name}.png" for name in SHAPES),
        "failures.csv",
        "notices.csv",
        "prepared.csv",
    }


def test_shrinking_takes_the_mean_of_the_area():
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    expected = image.reshape(4, 2, 4, 2).mean((1, 3))
    np.testing.assert_allclose(image_cache.fit(image, 4), expected, atol=0.51)
    assert image_cache.fit(image, 8) is image


def test_failures_are_rows_and_the_run_goes_on(tmp_path, images, monkeypatch):
    folder = tmp_path / "cached_images"
    (folder / "square.dcm").write_bytes((folder / "square.dcm").read_bytes()[:-1000])
    (folder / "text.dcm").write_text("no image")
    (folder / "crash.dcm").write_text("")
    others = [("crash", str(folder / "crash.dcm")), ("text", str(folder / "text.dcm")), ("nowhere", "")]
    images = pd.concat([pd.DataFrame([*others, ("gone", "/gone.dcm")], columns=list(images)), images])
    monkeypatch.setattr(image_cache, "_make", make)
    failures = image_cache.prepare(images, tmp_path / "cache", SIZE, 2)
    assert failures["image_id"].tolist() == ["crash", "text", "nowhere", "gone", "square"]
    reasons = dict(zip(failures["image_id"], failures["reason"], strict=True))
    assert reasons["crash"] == "crashes its decoder (SIGKILL)"
    assert reasons["text"].startswith("is not a DICOM file")
    assert reasons["nowhere"] == "has no file in the competition folder"
    assert reasons["gone"] == "cannot be read from the disk (No such file or directory)"
    assert reasons["square"] == "breaks off: it holds 7,192 of 8,192 bytes of pixel data"
    written = pd.read_csv(tmp_path / "cache" / "failures.csv", keep_default_na=False)
    pd.testing.assert_frame_equal(written, failures, check_dtype=False)
    assert set(pictures(tmp_path / "cache")) == {"wide.png", "tall.png", "small.png", "thin.png"}
    monkeypatch.setattr(image_cache, "run_apart", no_work)  # failures are not tried again either
    pd.testing.assert_frame_equal(image_cache.prepare(images, tmp_path / "cache", SIZE, 2), failures)


def test_only_what_changed_is_made_again(tmp_path, images, monkeypatch):
    folder = tmp_path / "cache"
    image_cache.prepare(images, folder, SIZE, 1)
    before = pictures(folder)

    def made_again(size: int = SIZE) -> set[str]:
        nonlocal before
        old, failed = before, image_cache.prepare(images, folder, size, 1)
        before = pictures(folder)
        return {name.removesuffix(".png") for name in before if before[name] != old.get(name)} | set(failed["image_id"])

    with monkeypatch.context() as patch:
        patch.setattr(image_cache, "run_apart", no_work)
        assert made_again() == set()
    write(tmp_path / "cached_images" / "tall.dcm", np.eye(50), 12)
    assert made_again() == {"tall"}
    np.testing.assert_array_equal(
        image_cache.read(folder, "tall"), image_cache.fit(np.eye(50, dtype=np.uint8) * 255, SIZE)
    )
    (folder / "small.png").unlink()
    os.utime(tmp_path / "cached_images" / "wide.dcm")
    assert made_again() == {"small", "wide"}
    assert made_again(24) == set(SHAPES)
    assert image_cache.read(folder, "square").shape == (24, 24)
    (tmp_path / "cached_images" / "thin.dcm").write_text("no image any more")
    assert made_again(24) == {"thin"}
    assert not (folder / "thin.png").exists()


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    images = cached_images(tmp_path / "cached_images", {f"image{k:03d}": (30, 20) for k in range(150)})
    images.to_csv(tmp_path / "index.csv", index=False)
    folder = tmp_path / "cache"
    code = f"""
import pandas
from siimcovid.data import image_cache
from test_image_cache import make_slowly
if __name__ == "__main__":
    image_cache._make = make_slowly
    image_cache.prepare(pandas.read_csv({str(tmp_path / "index.csv")!r}), {str(folder)!r}, 32, 2, progress=False)
"""
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    run = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": paths}
    )
    until = time.monotonic() + 60
    while len(pictures(folder)) < 10 and time.monotonic() < until:
        time.sleep(0.01)
    run.kill()
    run.wait()
    time.sleep(0.2)  # its processes finish the images they have, and end
    before = pictures(folder)
    assert 10 <= len(before) < 150
    with open(folder / "prepared.csv", "a") as journal:
        journal.write("film149,12")  # a line that was torn
    abandoned = folder / ".image149.1.ab.png"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    assert image_cache.prepare(images, folder, 32, 2).empty
    after = pictures(folder)
    assert len(after) == 150
    assert sum(after[name] != date for name, date in before.items()) <= 4  # those that were made but not noted yet
    assert not abandoned.exists()
    assert len((folder / "prepared.csv").read_text().splitlines()) == 151


def test_reading_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"a\.png is missing: prepare"):
        image_cache.read(tmp_path, "a")
    for content in (b"", b"no picture"):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png is damaged: delete it"):
            image_cache.read(tmp_path, "a")


def test_wrong_arguments(tmp_path, images):
    with pytest.raises(InputError, match="size 0"):
        image_cache.prepare(images, tmp_path / "cache", 0, 1)
    with pytest.raises(InputError, match="workers 0"):
        image_cache.prepare(images, tmp_path / "cache", SIZE, 0)
    with pytest.raises(InputError, match="'wide' is there twice"):
        image_cache.prepare(pd.concat([images, images[:1]]), tmp_path / "cache", SIZE, 1)


def test_the_command(tmp_path, capsys):
    for image in ("a", "b"):
        series = tmp_path / "test" / "s" / image
        series.mkdir(parents=True)
        write(series / f"{image}.dcm", np.random.default_rng(0).integers(0, 4096, (50, 40)), 12, PatientID="p")
    (tmp_path / "test" / "s" / "b" / "b.dcm").write_text("no image")
    (tmp_path / "sample_submission.csv").write_text("id,PredictionString\ns_study,\na_image,\nb_image,\nc_image,\n")
    out = tmp_path / "cache"
    assert command_line.main(["prepare", str(tmp_path), "--out", str(out), "--size", "25", "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{out}: 1 images of 3\n{out / 'failures.csv'}: 2 cannot be read (b, c)\n"
    assert image_cache.read(out, "a").shape == (25, 20)


def test_parts_make_the_same_as_one(tmp_path, images):
    """Two machines with one folder: each makes its images, and a last call has nothing to do but to join the tables."""
    whole = image_cache.prepare(images, tmp_path / "whole", 64, workers=1, progress=False)
    for part in (0, 1):
        image_cache.prepare(images, tmp_path / "shared", 64, workers=1, progress=False, part=(part, 2))
        journal = (tmp_path / "shared" / f"prepared-{part}-of-2.csv").read_text().splitlines()[1:]
        mine = set(images["image_id"].iloc[part::2])
        assert {line.split(",")[0] for line in journal} <= set(images["image_id"])
        assert mine - set(whole["image_id"]) <= {line.split(",")[0] for line in journal}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").glob("*.png")}
    joined = image_cache.prepare(images, tmp_path / "shared", 64, workers=1, progress=False)
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "shared").glob("*.png")}
    assert joined.to_dict("records") == whole.to_dict("records")
    names = sorted(path.name for path in (tmp_path / "whole").glob("*.png"))
    assert names == sorted(path.name for path in stamps)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".JPEG"])
def test_images_that_are_pictures(tmp_path, ending):
    pixels = np.tile(np.arange(0, 240, 2, dtype=np.uint8), (80, 1))
    cv2.imwrite(str(tmp_path / f"image{ending}"), cv2.merge([pixels] * 3))
    (tmp_path / f"broken{ending}").write_bytes(b"nothing")
    rows = [{"image_id": name, "path": str(tmp_path / f"{name}{ending}")} for name in ("image", "broken")]
    failures = image_cache.prepare(pd.DataFrame(rows), tmp_path / "cache", 120, workers=1, progress=False)
    assert failures["image_id"].tolist() == ["broken"]
    assert "no whole PNG or JPEG" in failures["reason"].iloc[0]
    assert np.abs(image_cache.read(tmp_path / "cache", "image").astype(int) - pixels).max() <= (
        0 if ending == ".png" else 3
    )


def test_notices_are_rows(tmp_path, monkeypatch):
    """They stay when nothing has to be made again, and are only those of the images that were asked for."""
    for name, tags in {
        "outside": {"WindowCenter": 9999, "WindowWidth": 2},
        "two": {"WindowCenter": 9999, "WindowWidth": 2, "RescaleSlope": 0, "RescaleIntercept": 0},
        "fine": {},
    }.items():
        write(tmp_path / f"{name}.dcm", np.eye(30) * 500, 12, **tags)
    (tmp_path / "none.dcm").write_text("no image")
    names = ["outside", "two", "fine", "none"]
    images = pd.DataFrame([(name, str(tmp_path / f"{name}.dcm")) for name in names], columns=["image_id", "path"])
    assert image_cache.read_notices(tmp_path / "cache").empty
    assert tuple(image_cache.read_notices(tmp_path / "cache")) == image_cache.NOTICE_COLUMNS
    outside = "the window of centre 9999 and width 2 is ignored: it lies outside the values, 0 to 500"
    rescale = "RescaleSlope 0 with RescaleIntercept 0 is ignored: it makes every value the same"
    for _ in range(2):
        image_cache.prepare(images, tmp_path / "cache", SIZE, 1)
        noticed = image_cache.read_notices(tmp_path / "cache")
        assert noticed.to_numpy().tolist() == [["outside", outside], ["two", rescale], ["two", outside]]
        monkeypatch.setattr(image_cache, "run_apart", no_work)
    image_cache.prepare(images[1:], tmp_path / "cache", SIZE, 1)
    assert set(image_cache.read_notices(tmp_path / "cache")["image_id"]) == {"two"}


def test_names_that_are_not_utf_8(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9t\xe9.dcm")
    write(tmp_path / "a.dcm", np.eye(30) * 500, 12, WindowCenter=9999, WindowWidth=2).rename(path)
    images = pd.DataFrame({"image_id": [Path(path).stem, "\udcff"], "path": [path, "/gone.dcm"]})
    for _ in range(2):
        failures = image_cache.prepare(images, tmp_path / "cache", SIZE, 1)
        assert failures["image_id"].tolist() == ["\udcff"]
        assert image_cache.read_notices(tmp_path / "cache")["image_id"].tolist() == ["\\udce9t\\udce9"]  # escapes
    assert image_cache.read(tmp_path / "cache", Path(path).stem).shape == (30, 30)
