"""`siimcovid predict` on any mix of files: its tables, killed and in two processes, and what it says of the weights."""

import json
import multiprocessing
import shutil
import socket
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from siimcovid.apps.command_line import main
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.data.image_files import find_images
from siimcovid.evaluation.submission_validator import validate
from siimcovid.inference import predict_files, trained_model
from siimcovid.models import checkpoints, weights_manifest
from support import predict_processes
from support.dicom_files import write
from support.tiny_weights import write_synthetic_weights

SIDE = 120


def picture(seed: int) -> np.ndarray:
    """An image (SIDE, SIDE + 40) with a random bright rectangle."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (SIDE, SIDE + 40), dtype=np.uint8)
    row, column = rng.integers(0, SIDE // 2, 2)
    pixels[row : row + 40, column : column + 40] += 150
    return pixels


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """Weights of a demo run: the tiny models, registered as trained on a synthetic competition."""
    return write_synthetic_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Eleven images as DICOM, PNG, JPEG and in an archive, and two that cannot be read."""
    top = tmp_path_factory.mktemp("images")
    for number in range(3):
        folder = top / f"study{number}" / "series"
        folder.mkdir(parents=True)
        write(folder / f"dicom{number}.dcm", picture(number).astype(np.uint16), 8)
    for number in range(3, 6):
        cv2.imwrite(str(top / f"png {number}.png"), picture(number))
        Image.fromarray(picture(number + 3)).save(top / f"jpeg é{number}.JPG")
    with zipfile.ZipFile(top / "more.zip", "w") as archive:
        for number in (9, 10):
            archive.writestr(f"inside/zip{number}.png", cv2.imencode(".png", picture(number))[1].tobytes())
    (top / "broken.dcm").write_bytes(b"no image")
    (top / "cut.png").write_bytes(cv2.imencode(".png", picture(1))[1].tobytes()[:200])
    (top / "notes.txt").write_text("not an image")
    return top


@pytest.fixture(scope="module")
def whole(images, weights, tmp_path_factory) -> Path:
    """The results of one undisturbed call in one process, in parts of four images."""
    out = tmp_path_factory.mktemp("whole") / "out"
    arguments = [str(images), "--weights", str(weights), "--out", str(out), "--threshold", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_files, "PART", 4)
        assert main(["predict", *arguments]) == 0
    return out


def test_the_tables(whole):
    table = pd.read_csv(whole / "predictions.csv")
    assert len(table) == 11
    assert table[list(STUDY_LABELS)].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    assert table["none"].between(0, 1).all()
    assert set(zip(table["rows"], table["columns"], strict=True)) == {(SIDE, SIDE + 40)}
    boxes = pd.read_csv(whole / "boxes.csv")
    assert len(boxes) > 0
    assert (boxes["score"] >= 0.01).all()
    assert ((boxes["xmin"] >= 0) & (boxes["xmin"] < boxes["xmax"]) & (boxes["xmax"] <= SIDE + 40)).all()
    assert ((boxes["ymin"] >= 0) & (boxes["ymin"] < boxes["ymax"]) & (boxes["ymax"] <= SIDE)).all()
    assert boxes["xmax"].max() > 1  # pixels, not fractions
    counts = boxes["image_id"].value_counts().reindex(table["image_id"], fill_value=0)
    assert counts.tolist() == table["boxes"].tolist()
    failures = pd.read_csv(whole / "failures.csv")
    assert [Path(path).name for path in failures["path"]] == ["broken.dcm", "cut.png"]


def test_every_output_says_what_the_weights_were_trained_on(whole, images, weights, tmp_path, capsys):
    words = ("competition-0 (synthetic images)", "means nothing on patients", "not for diagnosis")
    assert (
        main(["predict", str(images / "png 3.png"), "--weights", str(weights), "--out", str(tmp_path), "--pictures"])
        == 0
    )
    printed = capsys.readouterr().out
    said = [printed, *pd.read_csv(whole / "predictions.csv")["notice"], *pd.read_csv(whole / "boxes.csv")["notice"]]
    said.append(json.loads((whole / "coco.json").read_text())["info"]["description"])
    said.append(Image.open(tmp_path / "pictures" / "png 3.png").info["Description"])
    for text in said:
        assert all(word in text for word in words), text


def test_coco_is_read_by_its_own_tools(whole, capsys):
    from pycocotools.coco import COCO

    coco = COCO(str(whole / "coco.json"))
    boxes = pd.read_csv(whole / "boxes.csv")
    assert len(coco.anns) == len(boxes)
    x, y, width, height = next(iter(coco.anns.values()))["bbox"]
    first = boxes.iloc[0]
    assert [x, y, x + width, y + height] == pytest.approx(first[["xmin", "ymin", "xmax", "ymax"]].tolist(), abs=0.02)


def test_python_says_the_same_of_one_image(whole, images, weights):
    import siimcovid

    model = siimcovid.load(str(weights))
    table = pd.read_csv(whole / "predictions.csv").set_index("image_id")
    boxes = pd.read_csv(whole / "boxes.csv")
    for name in ("dicom1", "png 4", "jpeg é5"):
        found = model.predict(table.loc[name, "path"], threshold=0.01)
        assert found.study_probs == pytest.approx(table.loc[name, list(STUDY_LABELS)].to_dict(), abs=1e-5)
        assert found.none == pytest.approx(table.loc[name, "none"], abs=1e-5)
        expected = boxes.loc[boxes["image_id"] == name, ["score", "xmin", "ymin", "xmax", "ymax"]].to_numpy()
        assert np.array(found.boxes) == pytest.approx(expected, abs=1e-2)
        assert model.notices == found.notices


def test_killed_and_called_again_it_writes_the_same(whole, images, weights, tmp_path):
    """Killed in the first part and in the third; the second call does nothing twice."""
    out = tmp_path / "out"
    arguments = [str(images), "--weights", str(weights), "--out", str(out), "--threshold", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_files, "PART", 4)
        for parts in (0, 2):
            process = multiprocessing.get_context("spawn").Process(
                target=predict_processes.predict_and_die, args=(parts, arguments, 4)
            )
            process.start()
            process.join(300)
            assert process.exitcode == -9
        assert len(list((out / "parts").glob("*.json"))) == 2
        done = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("*.json")}
        assert main(["predict", *arguments]) == 0
        assert {path: path.stat().st_mtime_ns for path in done} == done
    for name in ("predictions.csv", "boxes.csv", "coco.json", "failures.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("content", [b"", b"{", b'{"index": [['])
def test_a_torn_part_is_done_again(whole, images, weights, tmp_path, content):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for path in (out / "parts").glob("*.json"):
        path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict_files, "PART", 4)
        assert main(["predict", str(images), "--weights", str(weights), "--out", str(out), "--threshold", "0.01"]) == 0
    assert (out / "predictions.csv").read_bytes() == (whole / "predictions.csv").read_bytes()


def test_two_processes_write_what_one_writes(whole, images, weights, tmp_path):
    """By gloo, as torchrun starts them; pictures are drawn and reports written by both."""
    pytest.importorskip("highdicom")
    out = tmp_path / "out"
    arguments = [str(images), "--weights", str(weights), "--out", str(out), "--threshold", "0.01"]
    arguments += ["--pictures", "--dicom-sr"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=predict_processes.predict_as, args=(rank, port, arguments, 4)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    for name in ("predictions.csv", "boxes.csv", "coco.json", "failures.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert len(list((out / "pictures").glob("*.png"))) == 11
    reports = pd.read_csv(out / "dicom-sr.csv")
    assert reports["image_id"].tolist() == ["dicom0", "dicom1", "dicom2"]
    assert all((out / path).is_file() for path in reports["report"])


def test_the_competitions_file(images, weights, tmp_path):
    """Ids are names of files and folders; what has no image gets the train set's frequencies."""
    sample = tmp_path / "sample_submission.csv"
    ids = [*(f"study{k}_study" for k in range(4)), *(f"dicom{k}_image" for k in range(4))]
    sample.write_text("id,PredictionString\n" + "".join(f"{name},negative 1 0 0 1 1\n" for name in ids))
    out = tmp_path / "out"
    arguments = [str(images), "--weights", str(weights), "--out", str(out), "--submission", str(sample)]
    assert main(["predict", *arguments]) == 0
    assert validate(out / "submission.csv", sample).faults == []
    rows = pd.read_csv(out / "submission.csv").set_index("id")["PredictionString"]
    assert rows["study3_study"].startswith("negative 0.2768")
    table = pd.read_csv(out / "predictions.csv").set_index("image_id")
    values = [float(value) for value in rows["study1_study"].split()[1::6]]
    assert values == pytest.approx(table.loc["dicom1", list(STUDY_LABELS)].tolist(), abs=1e-5)
    assert rows["dicom1_image"].count("opacity") > 0
    assert rows["dicom3_image"].count("opacity") == 0


def test_the_boxes_of_smaller_copies_are_in_the_originals_pixels(images, weights, tmp_path):
    """Twice the columns, three times the rows: so many times x and y; an image that the table lacks keeps its own."""
    sample, sizes = tmp_path / "sample_submission.csv", tmp_path / "sizes.csv"
    sample.write_text("id,PredictionString\ndicom0_image,none 1 0 0 1 1\ndicom1_image,none 1 0 0 1 1\n")
    boxes = {}
    for name, more in (("own", []), ("original", ["--sizes", str(sizes)])):
        out = tmp_path / name
        arguments = [str(images), "--weights", str(weights), "--out", str(out), "--submission", str(sample)]
        assert main(["predict", *arguments, *more]) == 0
        rows = pd.read_csv(out / "submission.csv").set_index("id")["PredictionString"]
        boxes[name] = {k: np.array(rows[k].split()).reshape(-1, 6)[1:, 2:].astype(float) for k in rows.index}
        table = pd.read_csv(out / "predictions.csv").set_index("image_id").loc["dicom0"]
        sizes.write_text(f"image_id,rows,columns\ndicom0,{3 * table['rows']},{2 * table['columns']}\n")
    assert len(boxes["own"]["dicom0_image"]) > 0
    assert boxes["original"]["dicom0_image"] == pytest.approx(boxes["own"]["dicom0_image"] * (2, 3, 2, 3), abs=0.05)
    assert (boxes["original"]["dicom1_image"] == boxes["own"]["dicom1_image"]).all()


def test_all_members_of_a_fold_ensemble_are_used(images, weights, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(weights, folder)
    for stage in ("rcnn", "study"):
        _, config, _ = checkpoints.load(folder / f"{stage}.safetensors")
        torch.manual_seed(1)
        path = folder / f"{stage}.1.safetensors"
        checkpoints.save(path, checkpoints.build_model(stage, config), stage, config)
        weights_manifest.register_trained(path, stage, load_preset("demo"), "another folder")
    ensemble = trained_model.load(folder)
    assert list(ensemble.models) == ["rcnn", "rcnn.1", "study", "study.1", "yolo"]
    assert ensemble.trained_on == "another folder, competition-0 (synthetic images)"
    single = trained_model.load(weights)
    assert single.identity != ensemble.identity
    image = images / "png 3.png"
    assert ensemble.predict(image).study_probs != single.predict(image).study_probs
    assert {"rcnn", "rcnn.1"} <= set(predicted_models(ensemble, image, tmp_path))


def predicted_models(model: trained_model.TrainedModel, image: Path, out: Path) -> list[str]:
    found = predict_files.predict_files(model, *find_images([image]), out)
    return list(found.outputs.predicted_ids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "absent does not exist"),
        (["{images}/notes.txt", "--threshold", "2"], "--threshold is 2; give a number from 0 to 1"),
        (["{empty}"], "holds no DICOM, PNG or JPEG image"),
        (["{images}", "--out", "{images}/notes.txt"], "notes.txt is a file; name a folder for --out"),
        (["{images}", "--out", "{images}/notes.txt/deeper"], "notes.txt is a file; name a folder for --out"),
        (["{images}", "--weights", "{images}"], "is no folder of weights"),
        (["{images}", "--submission", "{images}/absent.csv"], "absent.csv is no file; give the competition's"),
        (["{images}", "--sizes", "{images}/absent.csv"], "absent.csv is no file; give a CSV of image_id, rows"),
    ],
)
def test_bad_input_is_one_sentence(images, weights, tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    given = [text.format(images=images, empty=tmp_path / "empty") for text in arguments]
    defaults = ["--weights", str(weights), "--out", str(tmp_path / "out")]
    assert main(["predict", given[0], *defaults, *given[1:]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_quiet_says_what_is_wrong_and_verbose_where(images, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    arguments = ["--weights", str(weights), "--out", str(tmp_path)]
    assert main(["predict", str(images / "png 3.png"), *arguments, "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    several = [str(images / name) for name in ("png 3.png", "cut.png", "broken.dcm")]
    assert main(["predict", *several, *arguments, "--quiet"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{tmp_path}/failures.csv: 2 files cannot be read")
    assert (said.out.count("\n"), said.err) == (1, "")
    assert main(["predict", *several, *arguments, "-v"]) == 0
    said = capsys.readouterr()
    assert "means nothing on patients" in said.out
    assert said.err.count("Traceback") >= 2
    for name, words in (("cut.png", "is no whole PNG or JPEG"), ("broken.dcm", "is not a DICOM file")):
        assert f"\n{images / name}\nTraceback" in said.err
        assert words in said.err
    assert "\x1b" not in said.out + said.err
    with pytest.raises(SystemExit):
        main(["predict", *several, *arguments, "-v", "-q"])


def test_real_images_of_all_kinds_in_one_call(real, weights, tmp_path, capsys):
    """The 24 DICOM files, some broken on purpose, and NIH's JPEGs: those that cannot be read are listed."""
    nih = sorted((real / "nih" / "images").iterdir())[:6]
    assert (
        main(["predict", str(real / "dicom"), *map(str, nih), "--weights", str(weights), "--out", str(tmp_path)]) == 0
    )
    table, failures = pd.read_csv(tmp_path / "predictions.csv"), pd.read_csv(tmp_path / "failures.csv")
    assert len(table) + len(failures) == 24 + len(nih)
    assert {Path(path).name for path in failures["path"]} >= {"MR_truncated.dcm"}
    assert {path.stem for path in nih} <= set(table["image_id"])
