"""Kaggle's own client with the built bundles, against a stub of its API: what it would send, and what is made of it."""

import json
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from siimcovid.core.errors import InputError
from siimcovid.kaggle import CODE_MARKER, KERNEL, SLUGS, kernel_runs
from siimcovid.kaggle import push_to_kaggle as push_module
from siimcovid.kaggle.kaggle_client import client, is_installed
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE
from siimcovid.kaggle.kernel_folder import session_kernels
from siimcovid.kaggle.kernel_runs import download_output, kernel_id, kernel_status, submit, wait_until_done
from siimcovid.kaggle.push_to_kaggle import PUSHED, dataset_status, push, read_pushed, wait_until_ready
from support.bundle_files import write_bundles
from support.kaggle_stub import Stub

pytestmark = pytest.mark.skipif(not is_installed(), reason="Kaggle's client is not installed")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory) -> Path:
    """Built bundles of the owner somebody."""
    return write_bundles(tmp_path_factory.mktemp("bundles"), owner="somebody")


@pytest.fixture
def stub(tmp_path, monkeypatch) -> Stub:
    """A stub that every client of this test talks to, and nothing else."""
    server = Stub()
    for name, value in server.surroundings(tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    yield server
    server.shutdown()
    assert server.astray == []


def test_first_push_creates_and_second_makes_versions(bundles, stub):
    said = []
    push(bundles, log=said.append)
    assert [len(stub.requests(name)) for name in ("CreateDataset", "CreateDatasetVersion", "SaveKernel")] == [3, 0, 1]
    for bundle, request in zip(SLUGS, stub.requests("CreateDataset"), strict=True):
        metadata = json.loads((bundles / bundle / DATASET_FILE).read_text())
        assert (request["ownerSlug"], request["slug"]) == ("somebody", SLUGS[bundle])
        assert request["isPrivate"] is True
        assert request["title"] == metadata["title"]
        assert request["licenseName"] == metadata["licenses"][0]["name"]
        uploaded = {stub.names[item["token"]] for item in request["files"]}
        assert uploaded == {path.name for path in (bundles / bundle).iterdir()} - {DATASET_FILE}
    for bundle in SLUGS:
        for path in (bundles / bundle).iterdir():
            if path.name != DATASET_FILE:
                assert stub.files[path.name] == path.read_bytes(), path.name
    assert CODE_MARKER in zipfile.ZipFile(BytesIO(stub.files["siimcovid.zip"])).namelist()

    (kernel,) = stub.requests("SaveKernel")
    assert kernel["slug"] == "somebody/siim-covid19-two-detectors-one-study-model"
    assert (kernel["enableInternet"], kernel["enableGpu"], kernel["isPrivate"]) == (False, True, True)
    assert kernel["machineShape"] == "NvidiaTeslaT4"  # the default GPU is a P100, which torch no longer runs
    assert (kernel["language"], kernel["kernelType"]) == ("python", "notebook")
    assert kernel["datasetDataSources"] == [f"somebody/{slug}" for slug in SLUGS.values()]
    assert kernel["competitionDataSources"] == ["siim-covid19-detection"]
    sent = ["".join(cell["source"]) for cell in json.loads(kernel["text"])["cells"]]
    built = json.loads((bundles / KERNEL / "siim_covid19.ipynb").read_text())["cells"]
    assert sent == ["".join(cell["source"]) for cell in built]
    assert 'PRESET = "demo"'.replace('"', "'") in "\n".join(sent)
    assert not any("does not resolve" in line for line in said)  # the client's word for a title that is not the slug

    stub.calls.clear()
    (bundles / "code" / DATASET_FILE).write_text((bundles / "code" / DATASET_FILE).read_text() + "\n")
    push(bundles, log=said.append)
    assert [len(stub.requests(name)) for name in ("CreateDataset", "CreateDatasetVersion", "SaveKernel")] == [0, 1, 1]
    (request,) = stub.requests("CreateDatasetVersion")  # the other two are the same as before
    assert (request["ownerSlug"], request["datasetSlug"]) == ("somebody", SLUGS["code"])
    assert re.fullmatch(r"siimcovid \d+\.\d+\.\d+", request["body"]["versionNotes"])
    assert len(request["body"]["files"]) == len(list((bundles / "code").iterdir())) - 1
    assert read_pushed(bundles)["kernels"] == {kernel["slug"]: 2}


def test_complaints_are_errors_though_the_client_ends_with_0(bundles, stub):
    stub.refusals["SaveKernel"] = {"error": "Maximum weekly GPU quota reached", "versionNumber": 0}
    with pytest.raises(InputError, match=r"kernels push.*\n.*Maximum weekly GPU quota"):
        client("kernels", "push", "--path", str(bundles / KERNEL))


def test_a_dataset_that_is_not_taken_in_stops_the_push(stub, monkeypatch):
    stub.refusals["GetDatasetStatus"] = {"status": "NOT_YET_PERSISTED"}
    monkeypatch.setattr(push_module, "SECONDS_TO_BECOME_READY", -1)
    with pytest.raises(InputError, match="has not taken in somebody/siimcovid-code"):
        wait_until_ready("somebody/siimcovid-code")


def test_without_credentials_it_says_so(bundles, stub, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(InputError, match="no valid credentials: log in with `kaggle auth login`"):
        push(bundles, log=[].append)
    assert stub.calls == []


def test_no_dataset_there_is_none(stub):
    assert dataset_status("somebody/siimcovid-code") is None
    stub.datasets.add("somebody/siimcovid-code")
    assert dataset_status("somebody/siimcovid-code") == "ready"


def test_what_cannot_be_pushed_is_named_before_the_client_runs(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(push_module, "client", lambda *arguments: pytest.fail("the client ran"))
    monkeypatch.setattr(push_module, "run_client", lambda *arguments: pytest.fail("the client ran"))
    with pytest.raises(InputError, match=r"no built code, weights, wheels, kernel; run `make kaggle`"):
        push(tmp_path)
    nobody = write_bundles(tmp_path / "nobody", owner="your-kaggle-name")
    with pytest.raises(InputError, match="OWNER="):
        push(nobody)


# what became of it


@pytest.fixture
def pushed(bundles, stub) -> str:
    """The id of a kernel whose version 3 was pushed."""
    kernel = kernel_id(bundles)
    (bundles / PUSHED).write_text(json.dumps({"datasets": {}, "kernels": {kernel: 3}}))
    return kernel


def test_each_session_is_a_kernel_of_its_own_that_mounts_those_before(tmp_path, stub):
    kernels = [kernel for number in (1, 2) for kernel in session_kernels(number)]
    out = write_bundles(tmp_path, "somebody", kernels)
    for ending in ("1", "2", "submit"):
        push(out, ending, log=[].append)
    slug = "somebody/siim-covid19-two-detectors-one-study-model"
    first, second, last = stub.requests("SaveKernel")
    assert [kernel["slug"] for kernel in (first, second, last)] == [f"{slug}-1", f"{slug}-2", f"{slug}-submit"]
    assert first.get("kernelDataSources", []) == []
    assert second["kernelDataSources"] == [f"{slug}-1"]
    assert last["kernelDataSources"] == [f"{slug}-2", f"{slug}-1"]
    assert "MODE = 'finetune'\nSESSIONS = 2" in second["text"].replace("\\n", "\n")
    assert "MODE = 'infer'" in last["text"]
    assert len(stub.requests("CreateDataset")) == 3
    assert stub.requests("CreateDatasetVersion") == []


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"status": "RUNNING"}, ("running", "")),
        ({"status": "COMPLETE"}, ("complete", "")),
        ({"status": "ERROR", "failureMessage": "Out of memory"}, ("error", "Out of memory")),
    ],
)
def test_the_state_of_a_run_is_read(pushed, stub, answer, expected):
    stub.run_status = answer
    assert kernel_status(pushed) == expected


def test_waiting_ends_with_the_run(pushed, stub, monkeypatch):
    stub.run_status = {"status": "RUNNING"}
    monkeypatch.setattr(kernel_runs.time, "sleep", lambda seconds: stub.run_status.update(status="COMPLETE"))
    lines = []
    assert wait_until_done(pushed, lines.append) == ("complete", "")
    assert lines == [f"{pushed}: running"]


def test_the_output_is_downloaded_without_the_prepared_images(pushed, stub, tmp_path):
    degraded = [{"step": "fit yolo", "reason": "out of memory"}]
    record = json.dumps({"degraded": degraded, "dropped": ["pseudo-labels"]})
    stub.output = {
        "run.json": record.encode(),
        "weights/rcnn.safetensors": b"weights",
        "cache/a.png": b"image",
        "repaired/sample_submission.csv": b"id",
    }
    lines = []
    download_output(pushed, tmp_path / "out", lines.append)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {"run.json", "weights/rcnn.safetensors", f"{pushed.partition('/')[2]}.log"}
    assert lines[1:] == ["DEGRADED fit yolo: out of memory", "dropped: pseudo-labels"]


def test_the_version_that_was_pushed_last_is_submitted(bundles, pushed, stub):
    assert "Successfully submitted" in submit(bundles, "", "first try")
    (request,) = stub.requests("CreateCodeSubmission")
    owner, slug = pushed.split("/")
    assert (request["kernelOwner"], request["kernelSlug"], request["kernelVersion"]) == (owner, slug, 3)
    assert (request["competitionName"], request["fileName"]) == ("siim-covid19-detection", "submission.csv")
    assert request["submissionDescription"] == "first try"


def test_only_a_complete_run_of_a_known_version_is_submitted(bundles, pushed, stub, tmp_path):
    stub.run_status = {"status": "ERROR", "failureMessage": "Out of memory"}
    with pytest.raises(InputError, match=r"is error \(Out of memory\); only a complete run"):
        submit(bundles, "", "x")
    (bundles / PUSHED).unlink()
    with pytest.raises(InputError, match="--version"):
        submit(bundles, "", "x")
    assert stub.requests("CreateCodeSubmission") == []


def test_the_client_finds_nothing_wrong_with_the_kernel_of_the_repository():
    """The tracked kernel-metadata.json, with its placeholder for an owner, is what `kaggle kernels push` can read."""
    root = Path(__file__).parents[2]
    metadata = json.loads((root / "kernel-metadata.json").read_text())
    assert (root / metadata["code_file"]).is_file()
    script = (
        "import sys; from kaggle.api.kaggle_api_extended import KaggleApi; api = KaggleApi()\n"
        "for name in sys.argv[1:]: api.validate_dataset_string(name)"
    )
    subprocess.run([sys.executable, "-c", script, *metadata["dataset_sources"]], check=True, capture_output=True)
