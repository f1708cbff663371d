"""What the doctor finds in surroundings that are made for it."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib import metadata

import pytest

from siimcovid.apps.command_line import main
from siimcovid.apps.doctor import PEOPLE, as_text, check_folders, check_kaggle, check_machine, check_software, examine
from siimcovid.apps.doctor.check_result import MISSING, NOTE, OK, Surroundings
from siimcovid.core.files import sha256, write_json
from siimcovid.kaggle import CODE_ARCHIVE, SLUGS, WHEEL_LIST


@pytest.fixture
def around(tmp_path):
    """A repository with nothing in it, a home without credentials, no Kaggle."""
    return Surroundings(tmp_path / "repository", tmp_path / "home", {}, tmp_path / "input")


def weights(folder, *stages):
    folder.mkdir(parents=True)
    manifest = {}
    for stage in stages:
        (folder / f"{stage}.safetensors").write_bytes(stage.encode())
        manifest[f"{stage}.safetensors"] = {"stage": stage, "sha256": sha256(folder / f"{stage}.safetensors")}
    write_json(folder / "manifest.json", manifest)
    return folder


def states(findings):
    return [finding.state for finding in findings]


@pytest.mark.parametrize("person", PEOPLE)
def test_everything_missing_has_a_way_out(person, around, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)

    def no_package(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", no_package)
    monkeypatch.setattr("sys.version_info", (3, 9, 1))
    findings = examine(person, around)
    missing = [finding for finding in findings if finding.state == MISSING]
    assert len(missing) > 4
    assert all(finding.way_out and "\n" not in finding.way_out + finding.said for finding in missing)
    text = as_text(person, findings)
    assert text.count("\n  missing ") == len(missing)
    assert text.endswith(f"{len(missing)} things are missing.")


def test_versions_that_do_not_fit(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: ["numpy>=99", "nowhere>=1 ; extra == 'web'", "pandas>=1"])
    (finding,) = check_software.packages(Surroundings())
    assert (finding.state, finding.said) == (MISSING, f"package numpy {metadata.version('numpy')}: it must be >=99")
    assert [f.said.split(":")[0].split()[1] for f in check_software.all_packages(Surroundings())] == [
        "numpy",
        "nowhere",
    ]


def test_lock(around):
    around.root.mkdir()
    here = metadata.version("pandas")
    (around.root / "requirements.lock").write_text(f"# tested\npandas=={here}\nnumpy==0.1  # old\n")
    (finding,) = check_software.lock(around)
    assert finding.state == NOTE
    assert "1 packages differ" in finding.said
    assert "(locked 0.1)" in finding.said
    (around.root / "requirements.lock").write_text(f"pandas=={here}\nnumpy==0.1 ; python_version < '3'\n")
    assert check_software.lock(around)[0].said == "1 packages as in requirements.lock"


def test_an_interpreter_that_is_newer_than_the_tested_ones(monkeypatch):
    monkeypatch.setattr("sys.version_info", (3, 15, 0))
    assert states(check_software.python(Surroundings())) == [NOTE]
    monkeypatch.setattr("sys.version_info", (3, 9, 0))
    assert states(check_software.python(Surroundings())) == [MISSING]


def test_a_codec_without_a_wheel_for_this_python_is_optional(monkeypatch):
    installed = {"python-gdcm": "3.2", "pylibjpeg": "2.1", "pylibjpeg-openjpeg": "2.6"}

    def version(name):
        if name in installed:
            return installed[name]
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    needs = ["dicomsdl ; python_version < '3'", "pylibjpeg-libjpeg ; python_version < '3'", "pylibjpeg-openjpeg"]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    found = check_software.codecs(Surroundings())
    assert states(found) == [OK, NOTE, NOTE]
    assert "python-gdcm 3.2" in found[0].said
    assert "dicomsdl (JPEG Lossless, fast): optional" in found[1].said
    del installed["pylibjpeg-openjpeg"]  # which every Python has
    assert states(check_software.codecs(Surroundings())) == [NOTE, NOTE, MISSING]


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ({"opencv-python-headless"}, OK),
        ({"opencv-python-headless", "opencv-python"}, NOTE),
        ({"opencv-python"}, NOTE),
        (set(), MISSING),
    ],
)
def test_the_build_of_opencv(installed, state, monkeypatch):
    monkeypatch.setattr(check_software, "_installed", installed.__contains__)
    monkeypatch.setattr(metadata, "version", lambda name: "5.0")
    (finding,) = check_software.opencv(Surroundings())
    assert finding.state == state
    assert bool(finding.way_out) == (state != OK)


def test_graphics_cards(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'Tesla T4, 15360'\necho 'Small, Card, 4096'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    versions = {"torch": "2.5.0+cpu"}
    monkeypatch.setattr(metadata, "version", versions.get)
    found = check_machine.gpus(Surroundings())
    assert [(f.state, f.said.split(":")[0]) for f in found] == [
        (OK, "GPU Tesla T4, 15 GB"),
        (NOTE, "GPU Small, Card, 4 GB"),
        (MISSING, "torch is the build without CUDA, so the GPU would idle"),
    ]
    versions["torch"] = "2.5.0+cu124"
    assert states(check_machine.gpus(Surroundings())) == [OK, NOTE]
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert states(check_machine.gpus(Surroundings())) == [NOTE]


def test_little_memory_and_disk(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(check_machine, "CGROUP_LIMIT", limit)
    assert states(check_machine.memory(Surroundings())) == [OK]
    for text, state in (("max", OK), (str(3 << 30), MISSING)):
        limit.write_text(text)
        assert states(check_machine.memory(Surroundings())) == [state]
    assert check_machine.memory(Surroundings())[0].said.startswith("3 GB")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 9 << 30}))
    assert states(check_machine.disk(Surroundings())) == [MISSING]


def test_weights_found_and_verified(around):
    assert states(check_folders.trained_weights(around)) == [MISSING]
    weights(around.root / "runs" / "imagenet", "backbone")
    assert states(check_folders.trained_weights(around)) == [NOTE]  # enough to fine-tune
    assert check_folders.starting_weights(around)[0].said.endswith("(backbone), checksums hold")
    trained = weights(around.kaggle_input / "anybody" / "weights", "rcnn", "yolo", "study")
    (finding,) = check_folders.trained_weights(around)
    assert (finding.state, str(trained) in finding.said) == (OK, True)
    (trained / "yolo.safetensors").write_bytes(b"other")
    found = check_folders.trained_weights(around)
    assert states(found) == [NOTE, NOTE]
    assert "yolo.safetensors is damaged" in found[1].said
    (trained / "manifest.json").write_text("[]")
    assert "damaged" in check_folders.trained_weights(around)[1].said
    named = weights(around.home / "mine", "rcnn", "yolo", "study")
    assert states(check_folders.trained_weights(replace(around, weights=named))) == [OK]


def test_competition_folder(around):
    assert states(check_folders.competition(around)) == [MISSING]
    demo = around.root / "runs" / "competition-0"
    demo.mkdir(parents=True)
    (demo / "sample_submission.csv").touch()
    assert "only synthetic images" in check_folders.competition(around)[0].said
    mine = replace(around, data=around.home / "images")
    assert "no folder" in check_folders.competition(mine)[0].said
    (mine.data / "train" / "study").mkdir(parents=True)
    for name in ("train_image_level.csv.gz", "sample_submission.csv"):
        (mine.data / name).touch()
    assert "no train_study_level.csv" in check_folders.competition(mine)[0].said
    (mine.data / "train_study_level.csv").touch()
    assert check_folders.competition(mine)[0].said.endswith("1 train studies")
    (mine.data / "train" / "study").rmdir()
    assert "empty" in check_folders.competition(mine)[0].said


@pytest.mark.parametrize(
    ("environment", "file", "state"),
    [
        ({}, None, MISSING),
        ({"KAGGLE_USERNAME": "someone"}, None, MISSING),
        ({"KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "hush"}, None, OK),
        ({"KAGGLE_API_TOKEN": "hush"}, None, OK),
        ({}, ".kaggle/kaggle.json", OK),
        ({}, ".config/kaggle/access_token", OK),
        ({"KAGGLE_CONFIG_DIR": "/nowhere"}, ".kaggle/kaggle.json", MISSING),
    ],
)
def test_credentials_are_seen_and_never_shown(around, environment, file, state):
    around = replace(around, environment=environment)
    if file:
        path = around.home / file
        path.parent.mkdir(parents=True)
        path.write_text("hush")
        path.chmod(0o600)
    (finding,) = check_kaggle.credentials(around)
    assert finding.state == state
    assert "hush" not in finding.said + finding.way_out
    assert "someone" not in finding.said + finding.way_out
    if file and state == OK:
        path.chmod(0o644)
        assert check_kaggle.credentials(around)[0].way_out == f"chmod 600 {path}"


def test_bundles(around):
    shelf = around.root / "datasets"
    assert states(check_kaggle.bundles(around)) == [MISSING] * 4
    for name, files in (("code", [CODE_ARCHIVE]), ("weights", ["manifest.json"]), ("wheels", [WHEEL_LIST, "a.whl"])):
        (shelf / name).mkdir(parents=True)
        for file in (*files, "dataset-metadata.json"):
            (shelf / name / file).write_text("x")
    kernel = {"id": "someone/kernel", "code_file": "n.ipynb", "enable_internet": False}
    write_json(shelf / "kernel" / "kernel-metadata.json", kernel)
    (shelf / "kernel" / "n.ipynb").write_text("{}")
    found = check_kaggle.bundles(around)
    assert states(found) == [OK] * 4
    assert SLUGS["code"] in found[0].said
    assert found[3].said == "kernel: someone/kernel, internet off"
    for change in ({"enable_internet": True}, {"id": "your-kaggle-name/kernel"}, {"code_file": "m.ipynb"}):
        write_json(shelf / "kernel" / "kernel-metadata.json", kernel | change)
        assert states(check_kaggle.bundles(around)) == [OK, OK, OK, MISSING]
    (shelf / "wheels" / "a.whl").unlink()
    module = around.root / "utils" / "siimcovid" / "newer.py"
    module.parent.mkdir(parents=True)
    module.touch()
    (shelf / "code" / CODE_ARCHIVE).touch()
    import os

    os.utime(shelf / "code" / CODE_ARCHIVE, (1, 1))
    assert states(check_kaggle.bundles(around)) == [NOTE, OK, MISSING, MISSING]


def test_command(monkeypatch, capsys):
    """0 where nothing is missing, 1 otherwise; without a person all three are examined."""
    state = {"kaggle": OK, "train": NOTE, "change": MISSING}

    def found(person, around):
        from siimcovid.apps.doctor.check_result import Finding

        return [Finding(state[person], f"{person} at {around.data}", "do it")]

    monkeypatch.setattr("siimcovid.apps.doctor.examine", found)
    assert main(["doctor", "--kaggle"]) == 0
    assert main(["doctor", "--train", "--data", "images"]) == 0
    assert "train at images" in capsys.readouterr().out
    assert main(["doctor", "--change"]) == 1
    assert main(["doctor"]) == 1
    assert [title in capsys.readouterr().out for title in ("To submit on Kaggle",)] == [True]


def test_nothing_heavy_is_imported_and_nobody_is_called():
    """On the real machine: whatever it finds, it says so without torch, pandas or a socket."""
    code = (
        "import socket, sys, json\n"
        "def refuse(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from siimcovid.apps.command_line import main\n"
        "code = main(['doctor'])\n"
        "print(json.dumps([code, [m for m in ('torch', 'pandas', 'numpy', 'cv2') if m in sys.modules]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, last = done.stdout.splitlines()
    assert json.loads(last)[1] == []
    assert sum(line.startswith("To ") for line in lines) == 3
