"""The web page: right numbers, one clear sentence for each bad input, nothing kept, nothing lost under load."""

import io
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian

from siimcovid.apps.ablation.trained_variants import PLAIN
from siimcovid.apps.command_line import main
from siimcovid.apps.web import grad_cam, uploaded_files, web_app
from siimcovid.apps.web.request_errors import STATUS, RequestError
from siimcovid.apps.web.request_queue import Queue
from siimcovid.apps.web.uploaded_files import Limits, read_upload
from siimcovid.apps.web.web_app import create_app
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.core.processes import Lost
from siimcovid.data import image_cache
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import DETECTION_COLUMNS, predict_table
from siimcovid.inference.trained_model import TrainedModel, load
from siimcovid.models import checkpoints, weights_manifest
from support.dicom_files import write
from support.tiny_weights import write_weights

ROWS, COLUMNS = 150, 130
LIMITS = Limits(megabytes=4, images=3, pixels=1_000_000, memory=1 << 30)
DOCS = Path(__file__).parents[2] / "docs" / "web.md"

#: How many upload at a time; `SIIMCOVID_UPLOADS=50 pytest tests/apps/test_web.py -k lost -s` is the full measurement.
UPLOADS = int(os.environ.get("SIIMCOVID_UPLOADS", "12"))


def image(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Clouds from black to white."""
    noise = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    clouds = cv2.GaussianBlur(noise, (0, 0), 8)
    return cv2.normalize(clouds, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def encoded(pixels: np.ndarray, kind: str, **settings) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, kind, **settings)
    return data.getvalue()


def dicom(folder: Path, pixels: np.ndarray, **tags) -> bytes:
    return write(folder / "image.dcm", pixels, 8, **tags).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def model(folder) -> TrainedModel:
    return load(folder)


@pytest.fixture(scope="module")
def queue() -> Queue:
    return Queue(places=1, waiting=2)


@pytest.fixture(scope="module")
def app(model, queue):
    return create_app(model, LIMITS, queue)


@pytest.fixture
def client(app):
    return app.test_client()


def post(client, *files: bytes, path: str = "/api/predict", names: str = "image", **fields):
    """Send files and fields as the form does."""
    return client.post(path, data={**fields, "images": [(io.BytesIO(data), names) for data in files]})


# --- results ---------------------------------------------------------------------------------------------------------


def test_numbers_are_the_kernels(client, model, tmp_path):
    """The page's boxes and study labels against predict and combine on a cache made by prepare."""
    data = dicom(tmp_path, image(rows=700, columns=500))
    images = pd.DataFrame({"image_id": ["a"], "study_id": ["s"], "path": [str(tmp_path / "image.dcm")]})
    images["boxes"], images["study_label"] = [[]], [None]
    assert image_cache.prepare(images, tmp_path / "cache", model.preset.cache_size, workers=1).empty
    tables = {
        name: predict_table(name, config, network, images, tmp_path / "cache")
        for name, (config, network) in model.models.items()
    }
    used = {name: tables[name] for name in ("rcnn", "yolo")}
    if model.preset.fusion.hflip_tta:
        for name in ("rcnn", "yolo"):
            used[f"{name}_hflip"] = predict_table(name, *model.models[name], images, tmp_path / "cache", hflip=True)
    said = ModelOutputs(images[["image_id", "study_id"]], pd.concat(used.values()), {name: ["a"] for name in used})
    together = combine(replace(said, study_probs=tables["study"]), model.preset)
    whole = post(client, data).json
    result = whole["images"][0]
    assert (result["rows"], result["columns"]) == (700, 500)
    for name, table in {"rcnn": tables["rcnn"], "yolo": tables["yolo"], "ensemble": together.detections}.items():
        assert len(table) > 3
        expected = table[["score", "x1", "y1", "x2", "y2"]].to_numpy() * [1, 500, 700, 500, 700]
        found = [[box[k] for k in ("score", "left", "top", "right", "bottom")] for box in result["boxes"][name]]
        assert np.allclose(found, expected, atol=0.011), name  # pixels have two decimals
        none = together.none["a"] if name == "ensemble" else 1 - table["score"].max()
        assert result["none"][name] == pytest.approx(none, abs=1e-4)
    assert whole["study_probabilities"] == pytest.approx(
        together.study_probs[list(STUDY_LABELS)].iloc[0].to_dict(), abs=1e-4
    )
    assert result["study_probabilities"] == pytest.approx(
        tables["study"][list(STUDY_LABELS)].iloc[0].to_dict(), abs=1e-4
    )


def test_kinds_by_content(client, tmp_path):
    """The same image as DICOM, PNG and 16-bit PNG, under the wrong name, gives the same answer."""
    pixels = image()
    answers = [
        post(client, data, names=name).json
        for data, name in [
            (dicom(tmp_path, pixels), "image.png"),
            (encoded(pixels, "PNG"), "image.dcm"),
            (encoded(pixels.astype(np.uint16) * 16, "PNG"), "../../etc/passwd"),
            (encoded(np.dstack([pixels] * 3), "PNG"), "image.exe"),
        ]
    ]
    names = [answer["images"][0].pop("name") for answer in answers]
    assert names == ["image.png", "image.dcm", "../../etc/passwd", "image.exe"]  # shown again, but never used
    assert all(answer == answers[0] for answer in answers)
    jpeg = post(client, encoded(pixels, "JPEG", quality=95)).json
    assert list(jpeg["images"][0]["boxes"]) == ["rcnn", "yolo", "ensemble"]


def test_exif_orientation_is_followed(client):
    turned = Image.Exif()
    turned[0x0112] = 6  # as the browser shows it
    answer = post(client, encoded(image(), "JPEG", exif=turned)).json["images"][0]
    assert (answer["rows"], answer["columns"]) == (COLUMNS, ROWS)


@pytest.fixture(scope="module")
def plain(model) -> TrainedModel:
    """The same models without late fusion."""
    return replace(model, preset=override(model.preset, {**PLAIN, "fusion.hflip_tta": True}))


def test_study_is_the_mean_of_its_images(plain):
    client = create_app(plain, LIMITS).test_client()
    first, second = (encoded(image(seed), "PNG") for seed in (1, 2))
    both = post(client, first, second).json
    alone = [post(client, data).json["images"][0] for data in (first, second)]
    assert [entry["study_probabilities"] for entry in both["images"]] == [
        entry["study_probabilities"] for entry in alone
    ]
    for name in STUDY_LABELS:
        assert both["study_probabilities"][name] == pytest.approx(
            np.mean([entry["study_probabilities"][name] for entry in alone]), abs=1e-4
        )
    assert both["study_probabilities"][both["highest"]] == max(both["study_probabilities"].values())
    assert sum(both["study_probabilities"].values()) == pytest.approx(1, abs=3e-4)


def test_a_silent_detector_still_counts(plain):
    """Equation 6 of the report divides by the weights of all, even where only one found something on the image."""
    outputs = plain.outputs_of_study([image()]).outputs
    box = pd.DataFrame([["0", "rcnn", 0.8, 0.1, 0.1, 0.5, 0.5]], columns=DETECTION_COLUMNS)
    boxes = combine(replace(outputs, detections=box), plain.preset).detections
    expected = 0.8 / len(outputs.predicted_ids)  # all weights are 1
    assert len(outputs.predicted_ids) == 4
    assert boxes["score"].tolist() == pytest.approx([expected])


def test_fields(client):
    data = encoded(image(), "PNG")
    whole = post(client, data).json["images"][0]
    answer = post(client, data, model="rcnn", threshold="0.45").json
    assert answer["models"] == ["rcnn"]
    assert answer["images"][0]["boxes"] == {"rcnn": [box for box in whole["boxes"]["rcnn"] if box["score"] >= 0.45]}
    assert "preview" not in whole
    pictures = post(client, data, pictures="1").json["images"][0]
    assert pictures["preview"].startswith("data:image/jpeg;base64,")
    assert pictures["heatmap"].startswith("data:image/png;base64,")


def test_heat_map_is_grad_cam():
    """A head that reads channel 1 alone: the map is that channel's positive part, its highest place 1."""
    torch = pytest.importorskip("torch")
    head = torch.nn.Linear(3, 4)
    with torch.no_grad():
        head.weight.zero_()
        head.weight[2, 1] = 5.0
    maps = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = maps[0, 1].clamp(min=0).numpy()
    assert np.allclose(grad_cam.grad_cam(head, maps, 2), expected / expected.max(), atol=1e-6)
    assert not grad_cam.grad_cam(head, maps, 0).any()


def test_heat_map_leaves_what_was_cropped_clear():
    picture = cv2.imdecode(np.frombuffer(grad_cam.as_picture(np.ones((7, 7)), 0.5), np.uint8), cv2.IMREAD_UNCHANGED)
    side = grad_cam.SIDE
    opaque = picture[..., 3] > 0
    assert opaque[side // 4 : side * 3 // 4, side // 4 : side * 3 // 4].all()
    assert opaque.sum() == (side // 2) ** 2


@pytest.mark.parametrize(
    ("stages", "hflip", "choices"),
    [
        (["rcnn"], False, ["rcnn"]),
        (["rcnn"], True, ["rcnn", "ensemble"]),
        (["study", "yolo"], False, ["yolo"]),
        (["study"], True, []),
    ],
    ids=str,
)
def test_only_what_is_there_is_offered(model, stages, hflip, choices):
    preset = override(model.preset, {**PLAIN, "fusion.hflip_tta": hflip})
    some = replace(model, models={name: model.models[name] for name in stages}, preset=preset)
    client = create_app(some, LIMITS).test_client()
    assert client.get("/healthz").json["models"] == stages
    page = post(client, encoded(image(), "PNG"), path="/").text
    assert re.findall(r'name="model" value="(\w+)"', page) == choices
    assert ('class="study"' in page) == ("study" in stages)
    assert list(post(client, encoded(image(), "PNG")).json["images"][0]["boxes"]) == choices


def test_no_trained_model_is_a_sentence(tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="no trained model"):
        load(tmp_path)


def test_every_member_of_a_fold_ensemble_counts(folder, tmp_path):
    """Each is offered under its number, and the ensemble is what siimcovid.load's prediction is."""
    shutil.copytree(folder, tmp_path / "weights")
    for stage in ("rcnn", "study"):
        config = checkpoints.load(tmp_path / "weights" / f"{stage}.safetensors")[1]
        torch.manual_seed(1)
        path = tmp_path / "weights" / f"{stage}.1.safetensors"
        network = checkpoints.build_model(stage, config)
        if stage == "study":
            network.head[-1].bias.data[0] += 1  # untrained ones agree to four decimals
        checkpoints.save(path, network, stage, config)
        weights_manifest.register_trained(path, stage, load_preset("demo"), "nothing")
    model = load(tmp_path / "weights")
    client = create_app(model, LIMITS).test_client()
    data = encoded(image(), "PNG")
    found = post(client, data, pictures="1").json
    assert found["models"] == ["rcnn", "rcnn.1", "yolo", "ensemble"]
    expected = model.predict(image(), threshold=0.0)
    assert found["study_probabilities"] == pytest.approx(expected.study_probs, abs=1e-4)
    boxes = [[box[key] for key in ("score", "left", "top", "right", "bottom")] for box in last_boxes(found)]
    assert len(boxes) == len(expected.boxes)
    # each has its like: where scores are equal but for rounding the order may differ
    apart = np.abs(np.array(boxes)[:, None] - np.array(expected.boxes)[None]).max(axis=2)
    assert max(apart.min(axis=0).max(), apart.min(axis=1).max()) < 0.011
    alone = post(create_app(load(folder), LIMITS).test_client(), data, pictures="1").json
    for key in ("study_probabilities", "heatmap"):
        assert found["images"][0][key] != alone["images"][0][key]
    page = post(client, data, path="/").text
    assert "<span>Faster R-CNN 2</span>" in page
    assert "<span>YOLO</span>" in page


def last_boxes(result: dict) -> list[dict]:
    return result["images"][0]["boxes"][result["models"][-1]]


def test_everything_says_what_the_weights_were_trained_on(folder, tmp_path):
    """The page, before and after a prediction, its files and the JSON."""
    shutil.copytree(folder, tmp_path / "weights")
    (tmp_path / "competition-0.truth").mkdir()
    (tmp_path / "competition-0.truth" / "synthetic.json").write_text("{}")
    for stage in ("rcnn", "yolo", "study"):
        path = tmp_path / "weights" / f"{stage}.safetensors"
        weights_manifest.register_trained(path, stage, load_preset("demo"), tmp_path / "competition-0")
    client = create_app(load(tmp_path / "weights"), LIMITS).test_client()
    data = encoded(image(), "PNG")
    said = [client.get("/").text, post(client, data, path="/").text, post(client, data).json["notice"]]
    said += [post(client, data, format=name).text for name in ("predictions.csv", "boxes.csv", "coco.json")]
    for text in said:
        for words in ("not for diagnosis", "competition-0 (synthetic images)", "means nothing on patients"):
            assert words in text


# --- the page --------------------------------------------------------------------------------------------------------


def test_page_without_script(client):
    """The form alone gives a page with the chosen model's boxes from the threshold on, and the heat map."""
    data = encoded(image(), "PNG")
    boxes = post(client, data).json["images"][0]["boxes"]["rcnn"]
    above = [box for box in boxes if box["score"] >= 0.45]
    page = post(client, data, path="/", model="rcnn", threshold="0.45", heat="1")
    assert page.status_code == 200
    assert page.text.count('class="frame"') == len(above) > 0
    assert f"{len(above)} of {len(boxes)} boxes" in page.text
    assert re.search(r'value="rcnn" checked', page.text)
    assert "Research software, not for diagnosis." in page.text
    embedded = json.loads(re.search(r'id="data">(.*?)</script>', page.text, re.S)[1])
    assert embedded["images"][0]["boxes"]["rcnn"] == boxes


def test_nothing_inline_and_nothing_from_elsewhere(client):
    page = post(client, encoded(image(), "PNG"), path="/")
    policy = dict(part.split(" ", 1) for part in page.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    assert not re.findall(r"\s(?:on\w+|style)=|<style", page.text)
    assert re.findall(r"<script(?![^>]*(?:src=|application/json))", page.text) == []
    for address in re.findall(r'(?:src|href|action)="([^"]*)"', page.text):
        assert address == "/" or address.startswith(("/static/", "data:")), address
    for name in ("page.css", "page.js"):
        text = client.get(f"/static/{name}").text
        assert not re.findall(r"(?:https?:)?//\w", text.replace("http://www.w3.org/2000/svg", ""))
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_preview_shows_a_dicom(client, tmp_path):
    answer = post(client, dicom(tmp_path, image(rows=2 * 1024, columns=400)), path="/api/preview")
    assert answer.mimetype == "image/jpeg"
    assert Image.open(io.BytesIO(answer.data)).size == (200, 1024)


def test_health(client):
    assert client.get("/healthz").json == {
        "status": "ok",
        "version": "0.1.0",
        "models": ["rcnn", "study", "yolo"],
        "requests": 0,
    }


# --- bad input -------------------------------------------------------------------------------------------------------


class Mine:
    """A pickle of this would make a file, were it ever loaded."""

    def __reduce__(self):
        return os.mkdir, ("loaded-from-a-pickle",)


def bomb(rows: int, columns: int) -> bytes:
    """A small PNG whose header promises much."""
    data = bytearray(encoded(image(), "PNG"))
    data[16:24] = columns.to_bytes(4, "big") + rows.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def inflating(folder: Path) -> bytes:
    """A DICOM file of half a megabyte that inflates to half a gigabyte."""
    syntax = DeflatedExplicitVRLittleEndian
    data = write(folder / "deflated.dcm", image(), 8, syntax=syntax, ImageComments="x").read_bytes()
    packer = zlib.compressobj(wbits=-15)
    start = data.index(syntax.encode()) + len(syntax) + len(syntax) % 2
    zeros = bytes(1 << 24)
    return data[:start] + b"".join(packer.compress(zeros) for _ in range(32)) + packer.flush()


BAD = {
    "empty": (lambda _: b"", "empty", "empty"),
    "text": (lambda _: b"Dear doctor, " * 100, "not_an_image", "neither DICOM nor PNG nor JPEG"),
    "gif": (lambda _: encoded(image(), "GIF"), "not_an_image", "neither"),
    "pickle": (lambda _: pickle.dumps(Mine()), "not_an_image", "neither"),
    "png breaks off": (lambda _: encoded(image(), "PNG")[:-4000], "damaged", "damaged PNG"),
    "jpeg breaks off": (lambda _: encoded(image(), "JPEG")[:-900], "damaged", "damaged JPEG"),
    "jpeg of noise": (lambda _: b"\xff\xd8\xff\xe0" + os.urandom(5000), "damaged", "damaged JPEG"),
    "png of many pixels": (lambda _: bomb(60_000, 60_000), "too_many_pixels", "pixels"),
    "png of some more": (lambda _: bomb(1001, 1001), "too_many_pixels", "at most 1,000,000"),
    "dicom of many pixels": (
        lambda f: dicom(f, image(), Rows=30_000, Columns=30_000),
        "too_many_pixels",
        "30000 × 30000",
    ),
    "thumbnail": (lambda _: encoded(image(rows=31, columns=64), "PNG"), "too_small", "64 × 31"),
    "dicom breaks off": (lambda f: dicom(f, image())[:-5000], "damaged", "breaks off"),
    "dicom too short": (lambda f: dicom(f, image(), Rows=ROWS + 1), "damaged", "breaks off"),
    "dicom without pixels": (lambda f: dicom(f, image(), PixelData=None), "damaged", "holds no pixel data"),
    "dicom without size": (lambda f: dicom(f, image(), Rows=None), "damaged", "gives no size"),
    "dicom that inflates": (inflating, "damaged", "memory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_image(name, client, app, tmp_path, monkeypatch):
    """Each is one status, one code and one sentence, on the page and as JSON, and the server goes on."""
    monkeypatch.chdir(tmp_path)
    make, code, said = BAD[name]
    data = make(tmp_path)
    answer = post(client, data)
    assert (answer.status_code, answer.json["error"]["code"]) == (STATUS[code], code)
    message = answer.json["error"]["message"]
    assert said in message
    assert message.startswith("The image")
    assert len(message) < 150
    assert not (tmp_path / "loaded-from-a-pickle").exists()
    page = post(client, data, path="/")
    assert page.status_code == STATUS[code]
    assert f'class="error" data-code="{code}"' in page.text


def test_the_faulty_image_is_named(client):
    answer = post(client, encoded(image(), "PNG"), b"text" * 100)
    assert answer.json["error"]["message"].startswith("Image 2 is neither")


@pytest.mark.parametrize(
    ("send", "code"),
    [
        (lambda c: c.post("/api/predict"), "no_image"),
        (lambda c: c.post("/api/predict", data={"images": "/etc/passwd"}), "no_image"),
        (lambda c: c.post("/api/predict", json={"images": ["/etc/passwd"]}), "no_image"),
        (lambda c: c.post("/api/predict", data=b"--x\r\n", content_type="multipart/form-data"), "no_image"),
        (lambda c: post(c, *[encoded(image(), "PNG")] * 4), "too_many_images"),
        (lambda c: post(c, bytes(5 << 20)), "too_large"),
        (lambda c: post(c, encoded(image(), "PNG"), model="../rcnn"), "bad_value"),
        (lambda c: post(c, encoded(image(), "PNG"), threshold="much"), "bad_value"),
        (lambda c: post(c, encoded(image(), "PNG"), threshold="nan"), "bad_value"),
        (lambda c: post(c, encoded(image(), "PNG"), pictures="yes"), "bad_value"),
        (lambda c: post(c, encoded(image(), "PNG"), format="xlsx"), "bad_value"),
        (lambda c: c.get("/api/predict"), "wrong_method"),
        (lambda c: c.get("/static/../app.py"), "not_found"),
        (lambda c: c.get("/nothing"), "not_found"),
    ],
)
def test_bad_request(client, send, code):
    answer = send(client)
    assert (answer.status_code, answer.json["error"]["code"]) == (STATUS[code], code)


def test_slow_and_crashing_decoders(monkeypatch):
    data = encoded(image(), "PNG")
    with pytest.raises(RequestError, match="took longer than") as raised:
        read_upload(io.BytesIO(data), Limits(seconds=0.001))
    assert raised.value.code == "too_slow"
    monkeypatch.setattr(uploaded_files, "run_apart", lambda *_, **__: [(None, Lost("crashes its decoder (SIGSEGV)"))])
    with pytest.raises(RequestError, match="its decoder gave up") as raised:
        read_upload(io.BytesIO(data), LIMITS)
    assert raised.value.code == "damaged"


def test_own_failure_is_a_sentence(client, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("DOE^JANE")

    monkeypatch.setattr(web_app, "predict_study", fail)
    answer = post(client, encoded(image(), "PNG"))
    assert (answer.status_code, answer.json["error"]["code"]) == (500, "internal")
    assert "RuntimeError at" in caplog.text
    assert "DOE" not in caplog.text + answer.text


def test_patient_is_nowhere(client, tmp_path, monkeypatch, caplog, capfd):
    """Neither in an answer nor in the log, and no file is left, whether the image is good or not."""
    tags = {"PatientName": "DOE^JANE", "PatientID": "DOE-4711", "StudyDescription": "DOE"}
    good = dicom(tmp_path, image(), **tags)
    bad = [
        dicom(tmp_path, image(), **tags, **change) for change in ({"Rows": None}, {"PhotometricInterpretation": "DOE"})
    ]
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for data in (good, *bad, good[:-5000]):
        for path in ("/", "/api/predict", "/api/preview"):
            answer = post(client, data, path=path)
            text = answer.data.decode(errors="replace")
            assert "DOE" not in re.sub(r'data:image/\w+;base64,[^"]+', "", text)
    said = capfd.readouterr()
    assert "DOE" not in caplog.text + said.out + said.err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_names_are_told_to_their_sender_alone(client, caplog, capfd):
    """Not in the log, nor in an error; and a name is text, whatever it looks like."""
    name = "DOE<script>alert(1)</script>\u202e.png"
    good, bad = encoded(image(), "PNG"), encoded(image(), "PNG")[:-4000]
    assert post(client, good, names=name).json["images"][0]["name"] == name.replace("\u202e", "")
    assert "<script>alert" not in post(client, good, names=name, path="/").text
    for path in ("/", "/api/predict"):
        assert "DOE" not in post(client, bad, names=name, path=path).text
    said = capfd.readouterr()
    assert "DOE" not in caplog.text + said.out + said.err


def test_errors_are_documented():
    documented = re.findall(r"^\| `(\w+)` \| (\d+) \|", DOCS.read_text(), re.M)
    assert {code: int(status) for code, status in documented} == STATUS


# --- load ------------------------------------------------------------------------------------------------------------


def test_queue_is_bounded(client, queue):
    data = encoded(image(), "PNG")
    with ThreadPoolExecutor(2) as pool, queue.place():
        waiting = [pool.submit(post, client.application.test_client(), data) for _ in range(2)]
        while queue.inside < 3:
            time.sleep(0.01)
        for path in ("/", "/api/predict"):
            answer = post(client, data, path=path)
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2")
            assert "try again" in answer.text
        assert client.get("/healthz").json["requests"] == 3
    assert [answer.result().status_code for answer in waiting] == [200, 200]
    assert queue.inside == 0


def test_queue_loses_patience():
    queue = Queue(places=1, waiting=1, patience=0.01)
    with queue.place(), pytest.raises(RequestError) as raised, queue.place():
        pass
    assert raised.value.code == "busy"
    with queue.place():
        assert queue.inside == 1


@contextmanager
def served(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """`siimcovid serve` in a process of its own, and its address; ended by SIGTERM, as in a container."""
    command = [sys.executable, "-m", "siimcovid", "serve", "--weights", str(folder), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        # ultralytics may say before that it makes its settings, once on a machine
        yield process, next(line for line in process.stdout if line.startswith("http")).split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def memory(process: int) -> float:
    """Resident megabytes of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1]) / 1024


def upload(address: str, data: bytes) -> tuple[dict, int]:
    """POST as a program does, and again where the server says it is busy: the answer and how often it was busy."""
    body = b'--x\r\nContent-Disposition: form-data; name="images"; filename="f"\r\n\r\n' + data + b"\r\n--x--\r\n"
    for attempt in range(1000):
        asked = urllib.request.Request(address, body, {"Content-Type": "multipart/form-data; boundary=x"})
        try:
            with urllib.request.urlopen(asked, timeout=300) as answer:
                return json.load(answer), attempt
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            time.sleep(int(error.headers["Retry-After"]) / 4)
    raise AssertionError("never served")


@pytest.mark.slow
def test_no_upload_is_lost_and_memory_does_not_grow(folder):
    """All at once on loopback, each another image; everyone gets their own image's answer in the end."""
    images = [encoded(image(seed, 300 + seed, 200), "PNG") for seed in range(UPLOADS)]
    figures = []
    with served(folder, "--queue", str(UPLOADS // 3)) as (process, address):
        for _ in range(3):  # the first time sets up threads and their memory
            before, begin = memory(process.pid), time.monotonic()
            with ThreadPoolExecutor(UPLOADS) as pool:
                answers = list(pool.map(lambda data: upload(f"{address}/api/predict", data), images))
            figures.append((before, memory(process.pid), time.monotonic() - begin, sum(busy for _, busy in answers)))
            assert [answer["images"][0]["rows"] for answer, _ in answers] == [300 + seed for seed in range(UPLOADS)]
        with urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer:
            assert json.load(answer)["requests"] == 0
    for before, after, seconds, busy in figures:
        print(f"{UPLOADS} uploads: {seconds:.1f} s, {busy} told to wait, {before:.0f} -> {after:.0f} MB resident")
    assert figures[-1][1] - figures[0][1] < 40


@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "*"])
def test_command(folder, host):
    """`siimcovid serve` prints where it listens, answers there, and ends by SIGTERM."""
    with (
        served(folder, "--host", host) as (_, address),
        urllib.request.urlopen(f"{address}/healthz", timeout=60) as answer,
    ):
        assert json.load(answer)["models"] == ["rcnn", "study", "yolo"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--host", "nowhere.invalid"], "--host 'nowhere.invalid'"),
        (["--port", "65536"], "--port 65536"),
        (["--parallel", "0"], "--parallel"),
        (["--queue", "100000"], "--queue"),
    ],
)
def test_command_refuses_in_a_sentence(folder, options, names, capsys):
    assert main(["serve", "--weights", str(folder), *options]) == 2
    said = capsys.readouterr().err
    assert names in said
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1
