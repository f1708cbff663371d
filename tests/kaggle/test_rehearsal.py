"""The rehearsal: what it must let through and, above all, what must make it fail."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from siimcovid.core.errors import InputError
from siimcovid.kaggle import CODE_ARCHIVE, CODE_MARKER, SLUGS, WHEEL_LIST, network_guard, sandbox, wheels_dataset
from siimcovid.kaggle.build_bundles import PACKAGE
from siimcovid.kaggle.code_dataset import write_code
from siimcovid.kaggle.docker_image import (
    HIDDEN,
    KaggleImage,
    find_image,
    find_python,
    here,
    images,
    install_image,
    link_environment,
    still_there,
)
from siimcovid.kaggle.rehearsal import is_stale
from siimcovid.kaggle.rehearsal_inputs import LAYOUTS, input_folders
from siimcovid.kaggle.rehearsal_run import Rehearsal, environment, find_faults, run_layout
from siimcovid.kaggle.repack_wheels import repack
from support.bundle_files import write_bundles, write_wheel

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
isolated = pytest.mark.skipif(not sandbox.available(), reason="bubblewrap is not installed, or may not make namespaces")


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The stand-in for Kaggle's Python."""
    return link_environment(tmp_path_factory.mktemp("image") / "image")


# no network

CHILD = "import socket; socket.gethostbyname('example.org')"


@pytest.mark.parametrize(
    ("code", "target"),
    [
        ("socket.socket().connect(('192.0.2.1', 80))", "192.0.2.1:80"),
        ("socket.socket().connect(('127.0.0.1', 9))", "127.0.0.1:9"),  # this machine's services are not Kaggle's
        ("socket.create_connection(('2001:db8::1', 80), 1)", "2001:db8::1"),
        ("socket.getaddrinfo('example.org', 80)", "example.org"),
        ("socket.gethostbyname('example.org')", "example.org"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))", "192.0.2.1:53"),
        ("urllib.request.urlopen('http://example.org')", "example.org"),
        (f"subprocess.run([sys.executable, '-c', {CHILD!r}])", "example.org"),
        ("socket.socketpair()", None),
        ("socket.create_server(('127.0.0.1', 0))", None),
        ("multiprocessing.get_context('spawn').Queue().put(1)", None),
    ],
)
def test_every_attempt_at_a_connection_is_refused_and_recorded(tmp_path, code, target):
    (tmp_path / "sitecustomize.py").write_bytes(Path(network_guard.__file__).read_bytes())
    log = tmp_path / "attempts"
    script = (
        "import multiprocessing, socket, subprocess, sys, urllib.request\n"
        f"try:\n    {code}\nexcept OSError as error:\n    print('refused', error)\n"
    )
    clean = {"PYTHONPATH": str(tmp_path), "SIIMCOVID_ATTEMPTS": str(log), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", script], env=clean, capture_output=True, text=True, check=True)
    attempts = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    if target is None:
        assert (attempts, done.stdout) == ([], "")
    else:
        assert attempts[0]["target"].startswith(target)
        assert attempts[0]["from"]
        assert "refused" in done.stdout or "gaierror" in done.stderr


# nothing but Kaggle's own writable folders

TRY_TO_WRITE = (
    "import pathlib, sys, urllib.request\n"
    "for name in sys.argv[1:]:\n"
    "    try: pathlib.Path(name, 'x').write_text('x'); print(name)\n"
    "    except OSError: pass\n"
    "try: urllib.request.urlopen('http://192.0.2.1', timeout=1)\n"
    "except OSError: pass\n"
    "sys.exit(7)\n"
)


@isolated
def test_the_sandbox_shows_what_is_mounted_and_lets_write_in_one_folder(tmp_path):
    for name in ("working", "input", "home", "scratch"):
        (tmp_path / name).mkdir()
    (tmp_path / "input" / "a.txt").write_text("here")
    mounts = [
        sandbox.Mount(str(tmp_path / "working"), "/kaggle/working", True),
        sandbox.Mount(str(tmp_path / "input"), "/kaggle/input/competitions/siim"),
        sandbox.Mount(str(tmp_path / "home"), "/kaggle/home"),
    ]
    places = [mount.target for mount in mounts] + ["/kaggle", "/tmp", "/", "/etc", "/var/tmp"]
    command = [sys.executable, "-c", TRY_TO_WRITE, *places]
    report = sandbox.run(command, mounts, {"HOME": "/kaggle/home"}, "/kaggle/working", tmp_path / "scratch", 60)
    assert (tmp_path / "scratch" / "log.txt").read_text().split() == ["/kaggle/working", "/tmp"]
    assert report["exit"] == 7
    assert report["unreachable"] >= 1  # counted by the kernel: no guard was at work
    assert (tmp_path / "working" / "x").is_file()
    assert not (tmp_path / "home" / "x").exists()


@isolated
def test_a_virtual_environment_below_tmp_is_shown_and_read_only(tmp_path, monkeypatch):
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "pyvenv.cfg").write_text("home = /usr/bin\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "venv"))
    monkeypatch.setattr(sandbox, "HIDDEN_FOLDERS", ("kaggle", tmp_path.parts[1]))
    command = ["sh", "-c", f"cd {tmp_path / 'venv'} && cat pyvenv.cfg && ! touch x 2>&- && ls {tmp_path}"]
    sandbox.run(command, [], {"PATH": "/usr/bin:/bin"}, "/", tmp_path / "scratch", 60)
    assert (tmp_path / "scratch" / "log.txt").read_text().split() == ["home", "=", "/usr/bin", "venv"]


# Kaggle's Python


def test_the_stand_in_lacks_what_kaggle_lacks_and_has_the_rest(python):
    assert still_there(python, HIDDEN) == []
    code = "import importlib.util as u, sys; print(*[n for n in sys.argv[1:] if u.find_spec(n)])"
    absent = ["siimcovid", "yolov5", "ultralytics", "gdcm", "dicomsdl", "ensemble_boxes"]
    present = ["torch", "numpy", "pip", "papermill"]
    clean = {"PATH": os.environ["PATH"]}
    found = subprocess.run(
        [python, "-c", code, *absent, *present], env=clean, cwd="/", capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == present


def test_the_listed_images_lack_what_the_wheels_bring():
    assert [image.python for image in images()] == ["3.11", "3.12"]
    assert {image.python for image in images()} <= set(wheels_dataset.PYTHONS)
    for image in images():
        lines = [line for line in image.requirements.read_text().splitlines() if not line.startswith("#")]
        assert all(line.count("==") == 1 for line in lines)  # a version for each
        names = {wheels_dataset.canonical(line.partition("==")[0]) for line in lines}
        assert {"torch", "numpy", "pip", "papermill", "optuna"} <= names
        assert not names & set(wheels_dataset.LACKING)


def test_an_image_is_found_by_the_beginning_of_its_date():
    assert find_image("2026").name == find_image("2026-06").name == "2026-06"
    with pytest.raises(InputError, match=r"no image '2019'; there are 2025-09, 2026-06"):
        find_image("2019")


def test_an_image_is_installed_once_from_its_list(tmp_path, monkeypatch):
    for variable in ("PIP", "UV"):
        monkeypatch.setenv(f"{variable}_NO_INDEX", "1")
        monkeypatch.setenv(f"{variable}_FIND_LINKS", str(tmp_path))
    write_wheel(tmp_path, "plain")
    image = KaggleImage("1999-01", here(), tmp_path / "1999-01.txt")
    image.requirements.write_text("plain==1.0\n")
    lines = []
    python = install_image(image, tmp_path / "images", lines.append)
    found = subprocess.run(
        [python, "-c", "import plain; print(plain.VERSION)"], capture_output=True, text=True, cwd="/"
    )
    assert found.stdout == "1.0\n"
    assert python == install_image(image, tmp_path / "images", lines.append)
    assert len(lines) == 2  # the second time it was there
    image.requirements.write_text("plain==2.0\n")
    with pytest.raises(InputError, match=r"(?s)failed: .*plain"):
        install_image(image, tmp_path / "images", lines.append)


def test_a_python_that_is_not_installed_is_named():
    with pytest.raises(InputError, match=r"no Python 3\.99 is installed"):
        find_python("3.99")
    answer = subprocess.run([find_python(here()), "-V"], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(f"Python {here()}.")


# Kaggle's layouts


def test_all_three_mounts_and_all_three_states_of_the_archive_are_tried(tmp_path):
    bundles = write_bundles(tmp_path, "somebody")
    competition = tmp_path / "competition"
    seen = set()
    for layout in LAYOUTS:
        places = input_folders(layout, bundles, competition, "somebody", tmp_path / layout.code)
        assert len(places) == 1 + len(SLUGS)
        (code,) = (folder for place, folder in places.items() if place.endswith("siimcovid-code"))
        inside = {"root": CODE_MARKER, "folder": f"siimcovid/{CODE_MARKER}", "packed": CODE_ARCHIVE}
        assert (code / inside[layout.code]).is_file()
        seen |= set(places) | {layout.code}
    assert {
        "siim-covid19-detection",
        "competitions/siim-covid19-detection",
        "siimcovid-code",
        "datasets/somebody/siimcovid-weights",
        "root",
        "folder",
        "packed",
    } <= seen


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.code)
def test_the_notebooks_first_cell_finds_the_package_in_every_layout(tmp_path, python, layout):
    notebook = json.loads((ROOT / "notebooks" / "siim_covid19.ipynb").read_text())
    sources = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (cell,) = (source for source in sources if "install_wheels" in source)
    bundles = write_bundles(tmp_path / "made", "somebody")
    decoy = tmp_path / "competition" / "test" / CODE_MARKER
    decoy.parent.mkdir(parents=True)
    decoy.write_text("")  # the images are not searched
    places = input_folders(layout, bundles, tmp_path / "competition", "somebody", tmp_path / "unpacked")
    for place, folder in places.items():
        target = tmp_path / "input" / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(folder)
    tail = (
        "\nimport siimcovid, yolov5, importlib.util as u"
        "\nprint(siimcovid.__file__, yolov5.VERSION, bool(u.find_spec('siimcovid.models')))"
    )
    code = cell.replace("/kaggle/input", str(tmp_path / "input")).replace(
        "install_wheels()", f"install_wheels({str(tmp_path / 'input')!r})"
    )
    clean = {"PATH": os.environ["PATH"], "TMPDIR": str(tmp_path)}
    done = subprocess.run([python, "-c", code + tail], env=clean, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    file, version, has_models = done.stdout.split()[-3:]
    assert file.startswith(str(tmp_path / "input"))
    assert (version, has_models) == ("1.0", "True")


# what makes it fail

GOOD = (
    "rows = open('/kaggle/input/siim-covid19-detection/sample_submission.csv').read().split()[1:]\n"
    "answer = lambda name: 'none 1 0 0 1 1' if name.endswith('_image') else 'negative 1 0 0 1 1'\n"
    "ids = [row.split(',')[0] for row in rows]\n"
    "open('submission.csv', 'w').write('id,PredictionString\\n' + ''.join(f'{i},{answer(i)}\\n' for i in ids))\n"
)
CALLS_HOME = "import urllib.request\ntry: urllib.request.urlopen('http://192.0.2.1')\nexcept OSError: pass\n"
WRITES_INPUT = "open('/kaggle/input/siim-covid19-detection/x', 'w')\n"
ANSWERS_VISIBLE = (
    "open('submission.csv', 'w').write('id,PredictionString\\nold_image,none 1 0 0 1 1\\n')\n"
    "import json; json.dump({'degraded': [{'step': 'detect', 'reason': 'no weights'}]}, open('run.json', 'w'))\n"
)


@pytest.fixture
def rehearsal(tmp_path, python) -> Rehearsal:
    """A kernel of one cell, to be written by the test, and a competition of two rows."""
    competition = tmp_path / "competition"
    competition.mkdir()
    (competition / "sample_submission.csv").write_text("id,PredictionString\nnew_image,x\nnew_study,x\n")
    (tmp_path / "visible.csv").write_text("id,PredictionString\nold_image,x\nold_study,x\n")
    bundles = tmp_path / "bundles"
    for name in (*SLUGS, "kernel"):
        (bundles / name).mkdir(parents=True)
    write_code(PACKAGE, bundles / "code" / CODE_ARCHIVE)
    return Rehearsal(bundles, competition, tmp_path / "visible.csv", python, "somebody", "kernel.ipynb", tmp_path, 5)


def run_cell(rehearsal: Rehearsal, source: str) -> list[str]:
    """The faults of a kernel of this one cell."""
    kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "outputs": [], "execution_count": None, "source": source}
    notebook = {"cells": [cell], "metadata": {"kernelspec": kernelspec}, "nbformat": 4, "nbformat_minor": 5}
    (rehearsal.bundles / "kernel" / "kernel.ipynb").write_text(json.dumps(notebook))
    return run_layout(rehearsal, LAYOUTS[0], rehearsal.scratch / "run").faults


@isolated
def test_a_good_kernel_passes(rehearsal):
    assert run_cell(rehearsal, GOOD) == []


@isolated
def test_a_connection_fails_the_check_though_the_submission_is_valid(rehearsal):
    (fault,) = run_cell(rehearsal, GOOD + CALLS_HOME)
    assert "192.0.2.1 was attempted" in fault


@isolated
def test_writing_into_the_input_fails_the_check(rehearsal):
    faults = run_cell(rehearsal, WRITES_INPUT)
    assert "Read-only file system" in faults[0]
    assert faults[1] == "no submission.csv was written"


def test_without_a_sandbox_it_is_still_found(rehearsal, monkeypatch):
    monkeypatch.setattr(sandbox, "available", lambda: False)
    (fault,) = run_cell(rehearsal, GOOD + CALLS_HOME)
    assert "192.0.2.1 was attempted" in fault
    assert os.access(rehearsal.competition, os.W_OK)  # the inputs were copies


def test_prepared_images_in_the_output_are_a_fault(rehearsal):
    (fault,) = run_cell(rehearsal, GOOD + "import os; os.makedirs('cache/a')\n")
    assert "the prepared images lie in /kaggle/working" in fault


def test_two_ranks_are_asked_for_through_the_environment():
    assert environment("/kaggle", 2)["SIIMCOVID_PROCESSES"] == "2"
    assert "SIIMCOVID_PROCESSES" not in environment("/kaggle")


def test_the_old_test_a_degraded_step_and_a_late_end_are_faults(rehearsal, monkeypatch):
    working = rehearsal.scratch / "run" / "working"
    working.mkdir(parents=True)
    monkeypatch.chdir(working)
    exec(ANSWERS_VISIBLE)
    faults = find_faults(rehearsal, working, {"exit": 0, "late": True})
    assert faults[:2] == ["not done after 5 minutes", "detect was degraded: no weights"]
    assert any("not in the sample" in fault for fault in faults)
    assert faults[-1] == "the submission answers the visible test, not the hidden one"


def test_a_code_archive_of_another_state_is_known(tmp_path, monkeypatch):
    assert not is_stale(_code(tmp_path / "now.zip"), tmp_path)
    monkeypatch.setattr("siimcovid.kaggle.rehearsal.PACKAGE", _changed_package(tmp_path))
    assert is_stale(tmp_path / "now.zip", tmp_path)


def _code(path: Path) -> Path:
    write_code(PACKAGE, path, ROOT / "LICENSE")
    return path


def _changed_package(folder: Path) -> Path:
    package = folder / "siimcovid"
    (package.parent / CODE_MARKER).parent.mkdir(parents=True)
    (package.parent / CODE_MARKER).write_text("changed")
    return package


def test_home_is_empty_and_the_environment_is_not_this_ones(monkeypatch):
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    variables = environment("/kaggle")
    assert variables["HOME"] == "/kaggle/home"
    assert "YOLO_OFFLINE" not in variables


def test_wheels_of_what_is_installed_install_as_the_real_ones(tmp_path, python):
    pins = {name: version(name) for name in ("ensemble-boxes", "dicomsdl")}
    repack(pins, tmp_path)
    lines = "\n".join(line for line in (tmp_path / WHEEL_LIST).read_text().splitlines() if not line.startswith("#"))
    (tmp_path / "list.txt").write_text(lines)
    options = [
        "--no-index",
        f"--find-links={tmp_path}",
        "--no-deps",
        "--require-hashes",
        "-r",
        str(tmp_path / "list.txt"),
    ]
    command = [python, "-m", "pip", "--isolated", "install", "-q", f"--target={tmp_path / 'target'}", *options]
    subprocess.run(command, check=True, capture_output=True)
    code = "import dicomsdl, ensemble_boxes; print(dicomsdl.__file__, dicomsdl.open)"
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "target")}
    done = subprocess.run([python, "-c", code], env=clean, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "target"))
    with pytest.raises(InputError, match=r"dicomsdl is installed as .*, and 0\.0\.1 is pinned"):
        repack({"dicomsdl": "0.0.1"}, tmp_path)
