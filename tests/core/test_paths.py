"""Folder discovery: every mount that Kaggle has used, and that no image folder is walked."""

import os
from pathlib import Path

import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.paths import COMPETITION_SLUG, find_competition, find_weights, scratch_folder


def make(folder: Path, *names: str) -> Path:
    """A folder with empty files of these names, and folders where a name ends in a slash."""
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.touch()
    return folder


@pytest.mark.parametrize(
    "mount",
    [".", "some-slug", "competitions/some-slug", "datasets/owner/some-slug", "datasets/owner/some-slug/unpacked"],
)
@pytest.mark.parametrize("beside", ["train_image_level.csv", "train_image_level.csv.gz", "train/", "test/"])
def test_competition_is_found_on_every_mount(tmp_path, mount, beside):
    folder = make(tmp_path / mount, "sample_submission.csv", beside)
    assert find_competition(root=tmp_path) == folder
    assert find_competition(folder) == folder


@pytest.mark.parametrize("mount", ["weights", "datasets/owner/weights"])
def test_weights_are_found_on_every_mount(tmp_path, mount):
    make(tmp_path / "other", "manifest.json")
    folder = make(tmp_path / mount, "manifest.json", "rcnn.safetensors")
    assert find_weights(root=tmp_path) == folder
    assert find_weights(folder) == folder


def test_deeper_than_any_mount_is_not_searched(tmp_path):
    make(tmp_path / "a/b/c/d/e", "sample_submission.csv", "test/")
    with pytest.raises(InputError, match="no competition folder below"):
        find_competition(root=tmp_path)


def test_of_several_the_competition_itself_is_taken(tmp_path):
    make(tmp_path / "a-copy", "sample_submission.csv", "test/")
    make(tmp_path / "demo", "sample_submission.csv", "test/")
    with pytest.raises(InputError, match=r"several competition folders \(.*a-copy, .*demo\): name the one"):
        find_competition(root=tmp_path)
    folder = make(tmp_path / "competitions" / COMPETITION_SLUG, "sample_submission.csv", "test/")
    assert find_competition(root=tmp_path) == folder


def test_image_folders_are_never_listed(tmp_path, monkeypatch):
    make(tmp_path / "competition", "sample_submission.csv", "train/study/series/")
    make(tmp_path / "narrower", "train/study/series/", "test/study/series/", "images/a/")
    make(tmp_path / "wide", *(f"{number}/inside/" for number in range(201)))
    make(tmp_path / "narrow", "1/inside/")
    listed, scandir = [], os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    find_competition(root=tmp_path)
    # pathlib's glob of some Python versions lists through os.scandir as well, so only folder names count
    names = {Path(folder).relative_to(tmp_path).as_posix() for folder in listed}
    assert names == {".", "narrower", "wide", "narrow", "narrow/1", "narrow/1/inside"}


@pytest.mark.parametrize(
    ("find", "folder", "message"),
    [
        (find_competition, "absent", "no folder .*absent: give the competition folder, which holds sample_submission"),
        (find_competition, "empty", "empty is no competition folder: give the folder that holds sample_submission"),
        (find_competition, None, f"no competition folder below .*: attach the competition {COMPETITION_SLUG}"),
        (find_weights, "absent", "no folder .*absent: give the folder of weights"),
        (find_weights, "empty", "empty is no folder of weights: give the folder that holds manifest.json"),
        (find_weights, None, "no weights below .*: attach the dataset with manifest.json"),
    ],
)
def test_a_missing_input_says_what_to_do(tmp_path, find, folder, message):
    make(tmp_path, "empty/")
    with pytest.raises(InputError, match=message):
        find(folder and tmp_path / folder, root=tmp_path)
    with pytest.raises(InputError):
        find(root=tmp_path / "no such mount")


def test_what_nobody_wants_after_the_run_stays_out_of_kaggles_output(tmp_path, monkeypatch):
    monkeypatch.setattr("siimcovid.core.paths.KAGGLE_WORKING", tmp_path / "working")
    monkeypatch.setattr("siimcovid.core.paths.KAGGLE_TEMP", tmp_path / "temp")
    assert scratch_folder(tmp_path / "runs" / "demo") == tmp_path / "runs" / "demo"
    assert scratch_folder(tmp_path / "working") == tmp_path / "temp"
    assert scratch_folder(tmp_path / "working" / "run") == tmp_path / "temp"
    assert (tmp_path / "temp").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setattr("siimcovid.core.paths.KAGGLE_TEMP", tmp_path / "file" / "temp")  # cannot be made
    assert not scratch_folder(tmp_path / "working").is_relative_to(tmp_path / "working")
