"""Kaggle's own client with the built bundles, against a stub of its API: what it would send, and what is made of it."""

import importlib.util
import json
import re
import subprocess
import sys
import zipfile
from io import BytesIO
from pathlib import Path

import pytest

from siimcovid.core.errors import InputError
from siimcovid.kaggle import CODE_MARKER, KERNEL, SLUGS
from siimcovid.kaggle import push_bundles as push_module
from siimcovid.kaggle.kaggle_metadata import DATASET_FILE
from siimcovid.kaggle.push_bundles import client, push, status, wait_until_ready
from support.bundle_files import write_bundles
from support.kaggle_stub import Stub

pytestmark = pytest.mark.skipif(importlib.util.find_spec("kaggle") is None, reason="Kaggle's client is not installed")


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
    push(bundles, said.append)
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
    assert (kernel["language"], kernel["kernelType"]) == ("python", "notebook")
    assert kernel["datasetDataSources"] == [f"somebody/{slug}" for slug in SLUGS.values()]
    assert kernel["competitionDataSources"] == ["siim-covid19-detection"]
    sent = ["".join(cell["source"]) for cell in json.loads(kernel["text"])["cells"]]
    built = json.loads((bundles / KERNEL / "siim_covid19.ipynb").read_text())["cells"]
    assert sent == ["".join(cell["source"]) for cell in built]
    assert 'PRESET = "small"'.replace('"', "'") in "\n".join(sent)
    assert not any("does not resolve" in line for line in said)  # the client's word for a title that is not the slug

    stub.calls.clear()
    push(bundles, said.append)
    assert [len(stub.requests(name)) for name in ("CreateDataset", "CreateDatasetVersion", "SaveKernel")] == [0, 3, 1]
    for bundle, request in zip(SLUGS, stub.requests("CreateDatasetVersion"), strict=True):
        assert (request["ownerSlug"], request["datasetSlug"]) == ("somebody", SLUGS[bundle])
        assert re.fullmatch(r"siimcovid \d+\.\d+\.\d+", request["body"]["versionNotes"])
        assert len(request["body"]["files"]) == len(list((bundles / bundle).iterdir())) - 1


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
        push(bundles, [].append)
    assert stub.calls == []


def test_no_dataset_there_is_none(stub):
    assert status("somebody/siimcovid-code") is None
    stub.datasets.add("somebody/siimcovid-code")
    assert status("somebody/siimcovid-code") == "ready"


def test_what_cannot_be_pushed_is_named_before_the_client_runs(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(push_module, "client", lambda *arguments, **options: pytest.fail("the client ran"))
    with pytest.raises(InputError, match=r"no built code, weights, wheels, kernel; run `make kaggle`"):
        push(tmp_path)
    nobody = write_bundles(tmp_path / "nobody", owner="your-kaggle-name")
    with pytest.raises(InputError, match="OWNER="):
        push(nobody)


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
