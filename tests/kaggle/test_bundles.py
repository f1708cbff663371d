"""The bundles for Kaggle: metadata that its client takes, whole folders or none, wheels that need no network."""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from siimcovid.core.errors import InputError
from siimcovid.kaggle import CODE_MARKER, KERNEL, OWNER_PLACEHOLDER, SLUGS, WHEEL_LIST, install_wheels, wheels_dataset
from siimcovid.kaggle.build_bundles import PACKAGE, Repository, assembled, build, missing_bundles
from siimcovid.kaggle.code_dataset import write_code
from siimcovid.kaggle.kaggle_account import REMEMBERED, find_owner
from siimcovid.kaggle.kaggle_metadata import (
    DATASET_FILE,
    DATASETS,
    KERNEL_FILE,
    check_dataset,
    check_kernel,
    dataset_metadata,
    kernel_metadata,
)
from siimcovid.kaggle.kernel_folder import (
    built_pretraining,
    pretraining_kernel,
    pretraining_notebook,
    session_kernels,
    smoke_notebook,
    with_parameters,
)
from siimcovid.kaggle.weights_dataset import kernel_parameters
from siimcovid.kaggle.weights_dataset import write_weights as bundle_weights
from support.bundle_files import PINS, write_bundles, write_repository, write_weights, write_wheel, write_wheels

ROOT = Path(__file__).parents[2]
TAGS = [f"cp{python.replace('.', '')}" for python in wheels_dataset.PYTHONS]


# metadata


@pytest.mark.parametrize("bundle", DATASETS)
def test_dataset_metadata_is_what_kaggle_takes(bundle):
    metadata = dataset_metadata(bundle, "some-body")
    assert metadata["id"] == f"some-body/siimcovid-{bundle}"
    assert 6 <= len(metadata["title"]) <= 50
    assert 20 <= len(metadata["subtitle"]) <= 80
    assert [list(licence) for licence in metadata["licenses"]] == [["name"]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"title": "short"}, "title"),
        ({"title": "x" * 51}, "title"),
        ({"subtitle": "too short"}, "subtitle"),
        ({"id": "somebody/short"[:14]}, "slug"),
        ({"id": "somebody/" + "x" * 51}, "slug"),
        ({"id": "Some Body/siimcovid-code"}, "Some Body"),
        ({"id": "siimcovid-code"}, "owner/slug"),
        ({"licenses": []}, "exactly one"),
        ({"licenses": [{"name": "GPL-3.0"}, {"name": "other"}]}, "exactly one"),
    ],
)
def test_bad_dataset_metadata_is_refused_by_name(change, said):
    with pytest.raises(InputError, match=said):
        check_dataset({**dataset_metadata("code", "somebody"), **change})


def test_the_repository_has_valid_kernel_metadata_with_a_placeholder():
    metadata = json.loads((ROOT / KERNEL_FILE).read_text())
    check_kernel(metadata)
    assert metadata["id"].startswith(f"{OWNER_PLACEHOLDER}/")
    assert (ROOT / metadata["code_file"]).is_file()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"enable_internet": None}, "enable_internet"),  # the client's own default is true
        ({"enable_internet": True}, "enable_internet"),
        ({"enable_gpu": False}, "enable_gpu"),
        ({"machine_shape": None}, 'machine_shape must be written out as "NvidiaTeslaT4"'),
        ({"machine_shape": "NvidiaTeslaP100"}, "machine_shape"),
        ({"kernel_sources": ["a slug"]}, "a slug"),
        ({"title": "Another title"}, "title"),
        ({"competition_sources": []}, "competition_sources"),
        ({"dataset_sources": ["a/siimcovid-code", "a/siimcovid-weights"]}, "siimcovid-wheels"),
        ({"code_file": "kernel.py"}, "code_file"),
    ],
)
def test_bad_kernel_metadata_is_refused_by_name(change, said):
    with pytest.raises(InputError, match=said):
        check_kernel({**json.loads((ROOT / KERNEL_FILE).read_text()), **change})


# owner


@pytest.fixture
def account(tmp_path, monkeypatch) -> Path:
    """The folder of Kaggle's client, empty, in a home of its own."""
    for name in ("KAGGLE_USERNAME", "KAGGLE_CONFIG_DIR", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / ".kaggle"
    folder.mkdir(parents=True)
    return folder


def test_owner_comes_from_the_nearest_source_and_is_remembered(account, tmp_path, monkeypatch):
    out = tmp_path / "datasets"
    with pytest.raises(InputError, match="OWNER="):
        find_owner(out)
    (account / "kaggle.json").write_text('{"username": "From-File", "key": "x"}')
    assert find_owner(out) == "from-file"
    assert (out / REMEMBERED).read_text() == "from-file\n"
    (account / "kaggle.json").unlink()
    assert find_owner(out) == "from-file"  # asked once
    monkeypatch.setenv("KAGGLE_USERNAME", "from-environment")
    assert find_owner(out) == "from-environment"
    assert find_owner(out, "from-argument") == "from-argument"
    monkeypatch.delenv("KAGGLE_USERNAME")
    assert find_owner(out) == "from-argument"


@pytest.mark.parametrize("name", ["a b", "a_b", "../a", OWNER_PLACEHOLDER, "-a"])
def test_impossible_owners_are_refused(account, tmp_path, name):
    with pytest.raises(InputError, match="no Kaggle name"):
        find_owner(tmp_path, name)
    assert not (tmp_path / REMEMBERED).exists()


# code


def test_code_archive_holds_the_package_and_is_the_same_every_time(tmp_path):
    for name in ("one.zip", "two.zip"):
        write_code(PACKAGE, tmp_path / name, ROOT / "LICENSE")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    names = set(zipfile.ZipFile(tmp_path / "one.zip").namelist())
    assert {"siimcovid/__init__.py", CODE_MARKER, "siimcovid/kaggle/install_wheels.py", "LICENSE"} <= names
    assert "siimcovid/kaggle/docker_images/2026-06.txt" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_another_folder_is_no_package(tmp_path):
    with pytest.raises(InputError, match="no siimcovid package"):
        write_code(tmp_path, tmp_path / "x.zip")


# weights


def test_weights_are_copied_as_the_manifest_lists_them(tmp_path):
    source, target = write_weights(tmp_path / "from"), tmp_path / "to"
    (source / "notes.txt").write_text("stays")
    target.mkdir()
    bundle_weights(source, target)
    expected = {f"{stage}.{suffix}" for stage in ("rcnn", "yolo", "study") for suffix in ("safetensors", "json")}
    assert {path.name for path in target.iterdir()} == expected | {"manifest.json"}


def _damage(folder: Path) -> None:
    (folder / "yolo.safetensors").write_bytes(b"other bytes")


def _remove(folder: Path) -> None:
    (folder / "study.safetensors").unlink()


def _climb(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({"../rcnn.safetensors": manifest["rcnn.safetensors"]}))


def _forget(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _empty(folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_damage, r"yolo\.safetensors is damaged"),
        (_remove, r"study\.safetensors is missing"),
        (_climb, "must lie in the folder itself"),
        (_forget, "no manifest.json"),
        (_empty, "lists no files"),
    ],
)
def test_bad_weights_leave_what_was_built_before(tmp_path, fault, said):
    folder = write_weights(tmp_path / "weights")
    out = tmp_path / "datasets"
    arguments = {"bundles": ("weights",), "repository": write_repository(tmp_path / "repository")}
    build(out, "somebody", folder, **arguments)
    before = {path.name: path.read_bytes() for path in (out / "weights").iterdir()}
    fault(folder)
    with pytest.raises(InputError, match=said):
        build(out, "somebody", folder, **arguments)
    assert {path.name: path.read_bytes() for path in (out / "weights").iterdir()} == before
    assert [path.name for path in out.iterdir()] == ["weights"]


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (("rcnn", "yolo", "study"), {"PRESET": "demo", "MODE": "infer"}),
        (("backbone",), {"PRESET": "demo", "MODE": "finetune"}),
        (("rcnn", "yolo"), {"PRESET": "demo", "MODE": "finetune"}),
    ],
)
def test_the_kernel_is_set_to_what_its_weights_allow(tmp_path, stages, expected):
    assert kernel_parameters(write_weights(tmp_path, stages)) == expected


# kernel


def test_parameters_follow_the_parameters_cell_and_nothing_else_changes():
    notebook = json.loads((ROOT / "notebooks" / "siim_covid19.ipynb").read_text())
    changed = with_parameters(notebook, {"PRESET": "demo", "MODE": "finetune"}, "x")
    at = next(i for i, cell in enumerate(notebook["cells"]) if "parameters" in cell["metadata"].get("tags", []))
    assert changed["cells"][: at + 1] + changed["cells"][at + 2 :] == notebook["cells"]
    values: dict = {}
    for cell in changed["cells"][at : at + 2]:
        exec("".join(cell["source"]), values)
    assert (values["PRESET"], values["MODE"], values["OUTPUT_DIR"]) == ("demo", "finetune", ".")
    with pytest.raises(InputError, match="no parameter PRESETS"):
        with_parameters(notebook, {"PRESETS": "demo"}, "x")


def test_the_kernels_of_a_session_follow_those_before_it():
    training, submitting = session_kernels(3)
    assert (training.folder, training.earlier) == ("kernel-3", ["2", "1"])
    assert training.parameters == {"MODE": "finetune", "SESSIONS": 3}
    assert (submitting.folder, submitting.earlier) == ("kernel-submit", ["3", "2", "1"])
    assert submitting.parameters == {"MODE": "infer"}
    assert session_kernels(1)[0].parameters["SESSIONS"] == 2  # above 1 nothing is cut to fit the hours
    assert session_kernels(1, 4)[0].parameters["SESSIONS"] == 4
    with pytest.raises(InputError, match="SESSION must be 1 or more"):
        session_kernels(0)


def test_a_pretraining_kernel_mounts_the_other_data_sets_and_those_before_it(tmp_path):
    """And a training session after it mounts its output, the latest first."""
    first, second = pretraining_kernel(1), pretraining_kernel(2)
    assert (first.folder, first.earlier) == ("kernel-pre-1", [])
    assert (second.folder, second.earlier) == ("kernel-pre-2", ["pre-1"])
    with pytest.raises(InputError, match="PRETRAIN must be 1 or more"):
        pretraining_kernel(0)
    metadata = kernel_metadata(ROOT / KERNEL_FILE, "somebody", "a.ipynb", second.ending, second.earlier)
    check_kernel(metadata)
    assert metadata["competition_sources"] == ["rsna-pneumonia-detection-challenge"]
    assert metadata["dataset_sources"] == [*(f"somebody/{slug}" for slug in SLUGS.values()), "nih-chest-xrays/data"]
    assert metadata["kernel_sources"] == ["somebody/siim-covid19-two-detectors-one-study-model-pre-1"]
    for wrong in ({"competition_sources": ["siim-covid19-detection"]}, {"dataset_sources": ["nih-chest-xrays/data"]}):
        with pytest.raises(InputError, match="sources must"):
            check_kernel(metadata | wrong)
    with pytest.raises(InputError, match=r"dataset_sources must|slug must"):  # of any other kernel
        check_kernel(
            kernel_metadata(ROOT / KERNEL_FILE, "somebody", "a.ipynb", "1")
            | {"dataset_sources": metadata["dataset_sources"]}
        )
    assert built_pretraining(tmp_path) == []
    for ending in ("pre-2", "pre-10", "pre-x", "1"):
        (tmp_path / f"kernel-{ending}").mkdir()
        (tmp_path / f"kernel-{ending}" / KERNEL_FILE).write_text("{}")
    (tmp_path / "kernel-pre-3").mkdir()  # not built
    assert built_pretraining(tmp_path) == ["pre-10", "pre-2"]
    assert session_kernels(2, 2, ["pre-1"])[0].earlier == ["1", "pre-1"]
    assert session_kernels(2, 2, ["pre-1"])[1].earlier == ["2", "1"]


def test_the_pretraining_kernel_finds_the_package_and_pretrains():
    notebook = json.loads((ROOT / "notebooks" / "siim_covid19.ipynb").read_text())
    cells = pretraining_notebook(notebook, "x", {"PRESET": "best"})["cells"]
    assert ["install_wheels()" in "".join(cell["source"]) for cell in cells] == [True, False]
    compile(cells[1]["source"], "pretrain", "exec")
    assert "pretrain(preset='best', output_dir='.', hours=9.0)" in cells[1]["source"]


@pytest.mark.parametrize("ending", ["1", "12", "submit", "smoke", "pre-1"])
def test_each_kernel_has_a_title_that_gives_its_slug(ending):
    metadata = kernel_metadata(ROOT / KERNEL_FILE, "somebody", "a.ipynb", ending, ["1"])
    check_kernel(metadata)
    assert metadata["id"].endswith(f"-{ending}")
    assert len(metadata["title"]) <= 50
    assert metadata["kernel_sources"] == ["somebody/siim-covid19-two-detectors-one-study-model-1"]
    assert metadata["machine_shape"] == "NvidiaTeslaT4"


def test_the_smoke_kernel_finds_the_package_and_tries_the_machine():
    notebook = json.loads((ROOT / "notebooks" / "siim_covid19.ipynb").read_text())
    cells = smoke_notebook(notebook, "x", {"PRESET": "full", "MODE": "infer"})["cells"]
    assert ["install_wheels()" in "".join(cell["source"]) for cell in cells] == [True, False]
    compile(cells[1]["source"], "smoke", "exec")
    assert "smoke_test(preset='full', output_dir='.')" in cells[1]["source"]


# all four


def test_four_flat_folders_for_one_owner(tmp_path):
    out = write_bundles(tmp_path, "somebody")
    assert missing_bundles(out) == []
    for name in (*SLUGS, KERNEL):
        assert all(path.is_file() for path in (out / name).iterdir())  # the client skips subfolders
    for bundle in SLUGS:
        check_dataset(json.loads((out / bundle / DATASET_FILE).read_text()))
    kernel = json.loads((out / KERNEL / KERNEL_FILE).read_text())
    check_kernel(kernel)
    assert (out / KERNEL / kernel["code_file"]).is_file()
    assert kernel["dataset_sources"] == [f"somebody/{slug}" for slug in SLUGS.values()]


def test_a_failure_half_way_keeps_the_old_folder(tmp_path):
    folder = tmp_path / "code"
    with assembled(folder) as new:
        (new / "a").write_text("old")
    with pytest.raises(FileNotFoundError), assembled(folder) as new:
        (new / "absent").read_text()
    assert (folder / "a").read_text() == "old"
    with pytest.raises(InputError, match="subfolders"), assembled(folder) as new:
        (new / "inner").mkdir()
    with assembled(folder) as new:
        (new / "b").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["code", "b"]


@pytest.mark.skipif(shutil.which("git") is None, reason="no git: apt-get install git")
def test_git_ignores_what_is_built_and_keeps_the_explanation():
    names = [f"datasets/{name}/file" for name in (*SLUGS, KERNEL)]
    names += [f"datasets/{name}/{DATASET_FILE}" for name in SLUGS]
    names += [f"datasets/{KERNEL}/{KERNEL_FILE}", f"datasets/{REMEMBERED}", "datasets/.code.abc/file"]
    command = ["git", "check-ignore", *names, "datasets/README.md"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        pytest.skip("this copy is no git repository")
    assert done.stdout.split() == names


# wheels


def test_everything_that_kaggle_lacks_is_pinned():
    pins = wheels_dataset.read_pins(Repository().lock)
    assert set(pins) == {*wheels_dataset.LACKING, "setuptools"}
    assert int(pins["setuptools"].split(".")[0]) < 82  # which dropped pkg_resources


def test_a_missing_pin_is_named(tmp_path):
    (tmp_path / "requirements.lock").write_text("yolov5==7.0.14\n")
    with pytest.raises(InputError, match=r"pins no version of .*dicomsdl"):
        wheels_dataset.read_pins(tmp_path / "requirements.lock")


@pytest.mark.parametrize("python", wheels_dataset.PYTHONS)
def test_the_download_is_of_wheels_alone_for_kaggles_python(python):
    command = wheels_dataset.download_command(["a==1", "b==2"], python, Path("out"))
    assert command[1:4] == ["-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "--dest=out"} <= set(command)
    assert command[command.index("--python-version") + 1] == python
    assert "manylinux_2_35_x86_64" in command  # Kaggle's C library
    assert "manylinux_2_36_x86_64" not in command
    assert command[-2:] == ["a==1", "b==2"]


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that is all pip can see: no network."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_wheels_are_gathered_for_each_python_and_listed_with_checksums(shelf, tmp_path):
    names = [write_wheel(shelf, "plain").name, write_wheel(shelf, "other", "9.9").name]
    names += [write_wheel(shelf, "binary", tag=f"{tag}-{tag}-manylinux_2_28_x86_64").name for tag in TAGS]
    names.remove("other-9.9-py3-none-any.whl")
    pins, out = {"plain": "1.0", "binary": "1.0"}, tmp_path / "out"
    out.mkdir()
    assert wheels_dataset.gather(pins, out) == []
    assert sorted(path.name for path in out.glob("*.whl")) == sorted(names)
    lines = (out / WHEEL_LIST).read_text().splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["plain==1.0", "binary==1.0"]
    for name in names:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() in "".join(lines)
    assert wheels_dataset.is_current(out, pins)
    assert not wheels_dataset.is_current(out, {**pins, "plain": "2.0"})
    assert not wheels_dataset.is_current(out, pins, ("3.14",))
    (out / names[0]).write_bytes(b"damaged")
    assert not wheels_dataset.is_current(out, pins)


def test_a_decoder_without_a_wheel_for_one_python_is_done_without(shelf, tmp_path):
    out, pins = tmp_path / "out", {"plain": "1.0", "dicomsdl": "1.0", "python-gdcm": "1.0"}
    write_wheel(shelf, "plain")
    write_wheel(shelf, "dicomsdl", tag="cp312-cp312-manylinux_2_28_x86_64")
    write_wheel(shelf, "python-gdcm", tag="cp312-abi3-manylinux_2_28_x86_64")  # of 3.12 and newer ones
    out.mkdir()
    notes = wheels_dataset.gather(pins, out, ("3.12", "3.13"))
    assert notes == ["dicomsdl==1.0 has no wheel for Python 3.13: other decoders read its images there"]
    assert wheels_dataset.usable(out, "3.12") == set(pins)
    assert wheels_dataset.usable(out, "3.13") == {"plain", "python-gdcm"}
    assert wheels_dataset.usable(out, "3.11") == {"plain"}
    assert wheels_dataset.is_current(out, pins, ("3.12", "3.13"))  # and it is not downloaded again


def test_a_package_without_a_wheel_is_built_into_one(shelf, tmp_path):
    backend = (
        "import shutil\n"
        "def build_wheel(folder, *_):\n"
        "    shutil.copy('made.whl', f'{folder}/source_only-1.0-py3-none-any.whl')\n"
        "    return 'source_only-1.0-py3-none-any.whl'\n"
    )
    project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    files = {"backend.py": backend, "pyproject.toml": project, "PKG-INFO": "Metadata-Version: 2.1\nName: source-only\n"}
    made = write_wheel(tmp_path, "source-only")
    with tarfile.open(shelf / "source_only-1.0.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            (tmp_path / name).write_text(text)
            archive.add(tmp_path / name, f"source_only-1.0/{name}")
        archive.add(made, "source_only-1.0/made.whl")
    out = tmp_path / "out"
    out.mkdir()
    wheels_dataset.gather({"source-only": "1.0"}, out, ("3.12",))
    assert [path.name for path in out.glob("*.whl")] == ["source_only-1.0-py3-none-any.whl"]


def test_a_package_that_cannot_be_had_is_named(shelf, tmp_path):
    with pytest.raises(InputError, match=r"no wheel of nowhere==1\.0 for Python 3\.12"):
        wheels_dataset.gather({"nowhere": "1.0"}, tmp_path, ("3.12",))


# the first cell

INSTALL = (
    "import json, sys\n"
    "from siimcovid.kaggle.install_wheels import install_wheels\n"
    "before = list(sys.path)\n"
    "said = install_wheels(sys.argv[1])\n"
    "assert sys.path[:len(before)] == before\n"
    "found = {}\n"
    "for name in sys.argv[2:]:\n"
    "    try: found[name] = __import__(name).VERSION\n"
    "    except (ImportError, AttributeError): found[name] = None\n"
    "print(json.dumps({'said': said, 'found': found}))\n"
)


def install_in_new_python(root: Path, *modules: str) -> dict:
    """install_wheels in a Python of its own, then the versions of these modules."""
    command = [sys.executable, "-c", INSTALL, str(root), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    return json.loads(done.stdout.splitlines()[-1])


def test_only_what_is_missing_is_installed_and_never_in_front(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = tmp_path / "input" / "datasets" / "somebody" / "siimcovid-wheels"
    write_wheels(folder, {"absent-one": "1.0", "packaging": "0.1", "setuptools": "1.0"})  # the latter two are there
    result = install_in_new_python(tmp_path / "input", "absent_one", "packaging")
    assert result["found"] == {"absent_one": "1.0", "packaging": None}
    assert result["said"] == [f"Installed from {folder}: absent-one==1.0"]
    (target,) = tmp_path.glob("siimcovid-wheels-*")
    assert not list(target.glob("packaging*"))


def test_a_damaged_wheel_costs_only_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    folder = write_wheels(tmp_path / "input" / "wheels", {"absent-one": "1.0", "absent-two": "1.0"})
    write_wheel(folder, "absent-two", module="something_else")
    result = install_in_new_python(tmp_path / "input", "absent_one", "absent_two", "something_else")
    assert result["found"] == {"absent_one": "1.0", "absent_two": None, "something_else": None}
    assert result["said"][0].endswith("absent-one==1.0")
    assert result["said"][1].startswith("absent-two==1.0 could not be installed")


def test_no_wheels_is_said_and_no_error(tmp_path):
    assert "No wheels are attached" in install_wheels.install_wheels(tmp_path)[0]
    assert "No wheels are attached" in install_wheels.install_wheels(tmp_path / "absent")[0]


def test_the_images_are_not_searched_for_wheels(tmp_path):
    write_wheels(tmp_path / "competition" / "test" / "study", {"absent-one": "1.0"})
    assert install_wheels.find_wheels(tmp_path) is None
    write_wheels(tmp_path / "zzz", {"absent-one": "1.0"})
    assert install_wheels.find_wheels(tmp_path) == tmp_path / "zzz"


def test_pkg_resources_is_what_setuptools_is_for(monkeypatch):
    assert not install_wheels._is_missing("setuptools")
    monkeypatch.setattr(install_wheels.importlib.util, "find_spec", lambda name: None)
    assert install_wheels._is_missing("setuptools")


def test_the_tests_own_pins_are_those_that_kaggle_lacks():
    assert set(PINS) == set(wheels_dataset.read_pins(Repository().lock))
