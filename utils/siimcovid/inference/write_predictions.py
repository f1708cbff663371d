"""The files that `siimcovid predict` leaves: tables, COCO JSON, pictures with boxes and the competition's submission.

In: `FilePredictions` and the `TrainedModel` that made them. Out, in one folder:

    predictions.csv   a row per image: image_id, path, study_id, rows, columns, a probability for each study label (of
                      the image's study), none, boxes (their number), notice
    boxes.csv         a row per box of `threshold` or more: image_id, score, xmin, ymin, xmax, ymax in pixels of the
                      original image, notice
    coco.json         the same boxes in COCO's format, with a score each
    failures.csv      path, reason of each file that could not be predicted
    pictures/         <image_id>.png: the image with its boxes, where asked for
    submission.csv    the competition's file, where a sample submission is given

structured_report.py writes dicom-sr/ and dicom-sr.csv beside them.

`notice` says what the weights were trained on, and of an image that is unlike those that the study model learnt from it
says so.
"""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd

from siimcovid.core.errors import InputError
from siimcovid.core.files import atomic_path, write_json
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.data import image_cache, image_files
from siimcovid.data.image_files import ImageFile
from siimcovid.evaluation.submission_csv import COMPETITION_PRIORS, IMAGE, STUDY, read_table, write_submission
from siimcovid.evaluation.submission_validator import read_sizes
from siimcovid.inference.ensemble import combine
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predict_files import PART, FilePredictions
from siimcovid.inference.predictor import unlike_images
from siimcovid.inference.trained_model import ImagePrediction, ImageRow, TrainedModel, as_images


def predicted_rows(found: FilePredictions, model: TrainedModel, threshold: float) -> list[ImageRow]:
    """The images that could be read, each with the combined prediction; boxes of a lower score are left out."""
    return as_images(combine(found.outputs, model.preset), found.index, threshold)


def write_tables(found: FilePredictions, model: TrainedModel, threshold: float, out: Path) -> list[ImageRow]:
    """Write predictions.csv, boxes.csv, coco.json and failures.csv; returns the images with their boxes in pixels."""
    rows = predicted_rows(found, model, threshold)
    unlike = set(unlike_images(found.outputs.study_probs))
    table = found.index[["image_id", "path", "study_id", "rows", "columns"]].reset_index(drop=True)
    for label in STUDY_LABELS:
        table[label] = [row.study_probs.get(label, float("nan")) for row in rows]
    table["none"] = [row.none for row in rows]
    table["boxes"] = [len(row.boxes) for row in rows]
    boxes = [(row.image_id, *box) for row in rows for box in row.boxes]
    boxes = pd.DataFrame(boxes, columns=["image_id", "score", "xmin", "ymin", "xmax", "ymax"])
    for name, content in (("predictions", table), ("boxes", boxes)):
        said = [" ".join(model.notices_of(image, unlike)) for image in content["image_id"]]
        _write_csv(content.assign(notice=said).round(6), out / f"{name}.csv")
    _write_csv(found.failures, out / "failures.csv")
    write_json(out / "coco.json", as_coco(rows, table["path"].tolist(), model))
    return rows


def as_coco(rows: Sequence[ImageRow], paths: Sequence[str], model: TrainedModel) -> dict:
    """The boxes as a COCO dataset with the category "opacity": bbox [x, y, width, height] in pixels, and a score."""
    images, annotations = [], []
    for number, (row, path) in enumerate(zip(rows, paths, strict=True), start=1):
        images.append({"id": number, "file_name": path, "width": int(row.columns), "height": int(row.rows)})
        for box in row.boxes:
            width, height = round(box.xmax - box.xmin, 2), round(box.ymax - box.ymin, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [box.xmin, box.ymin, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": round(box.score, 6),
                }
            )
    info = {"description": " ".join(model.notices), "trained_on": model.trained_on, "weights": model.identity}
    categories = [{"id": 1, "name": "opacity"}]
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def write_pictures(
    found: FilePredictions, images: Sequence[ImageFile], rows: Sequence[ImageRow], model: TrainedModel, out: Path
) -> int:
    """Draw the images of this process's share with their boxes into OUT/pictures; returns how many."""
    from matplotlib.figure import Figure

    row_of, drawn = {row.image_id: row for row in rows}, 0
    unlike = set(unlike_images(found.outputs.study_probs))
    share = [image for image in images if image.image_id in row_of][found.rank :: found.processes]
    for start in range(0, len(share), PART):
        with tempfile.TemporaryDirectory(prefix="siimcovid-") as temporary:
            cache, placed = Path(temporary) / "cache", []
            for image in share[start : start + PART]:
                with suppress(InputError):  # it was read a moment ago; what cannot be read now has no picture
                    placed.append((image.image_id, str(image_files.place(image, Path(temporary)))))
            table = pd.DataFrame(placed, columns=["image_id", "path"])
            failed = set(image_cache.prepare(table, cache, model.preset.cache_size, progress=False)["image_id"])
            for name, _ in placed:
                if name in failed:
                    continue
                row, figure = row_of[name], Figure(figsize=(6, 6.5), layout="constrained")
                said = model.notices_of(name, unlike)
                size, rest = (row.rows, row.columns), (row.boxes, row.study_probs, row.none, said)
                ImagePrediction(name, *size, *rest, image_cache.read(cache, name)).plot(figure.subplots())
                with atomic_path(out / "pictures" / f"{name}.png") as path:
                    figure.savefig(path, dpi=100, metadata={"Software": None, "Description": " ".join(said)})
                drawn += 1
    return drawn


def write_competition_submission(
    found: FilePredictions,
    images: Sequence[ImageFile],
    model: TrainedModel,
    sample: Path,
    path: Path,
    sizes: Path | None = None,
) -> list[str]:
    """Write the competition's file for the ids of a sample submission; returns the ids without an image.

    An image's id is its file's name without ending; its study is the folder with a name that the sample lists as a
    study, else its StudyInstanceUID. Ids without an image get the frequencies of the competition's train set.

    sizes: a table of the originals' rows and columns (submission_validator.py), in whose pixels the boxes are where the
    images are smaller copies; an image that it lacks keeps its own.
    """
    table = read_table(sample, ("id", "PredictionString"))
    studies = {name.removesuffix(STUDY) for name in table["id"] if name.endswith(STUDY)}
    wanted = {name.removesuffix(IMAGE) for name in table["id"] if name.endswith(IMAGE)}
    names: dict[str, str] = {}  # our image_id -> the sample's
    study_of: dict[str, str] = {}
    for image in images:
        *folders, stem = image.parts
        if stem in wanted and stem not in names.values():
            names[image.image_id] = stem
            study_of[stem] = next((folder for folder in reversed(folders) if folder in studies), "")
    index = found.index[found.index["image_id"].isin(names)].copy()
    index["image_id"] = index["image_id"].map(names)
    index["study_id"] = index["image_id"].map(study_of).where(lambda study: study != "", index["study_id"])
    size_of = read_sizes(sizes) if sizes else {}
    for axis, column in enumerate(("rows", "columns")):
        original = index["image_id"].map({name: size[axis] for name, size in size_of.items()})
        index[column] = original.fillna(index[column]).astype(int)
    renamed = _renamed(found.outputs, names, index)
    prediction = combine(renamed, model.preset)
    study_probs = prediction.study_probs
    return write_submission(table, study_probs, prediction.none, prediction.detections, index, path, COMPETITION_PRIORS)


def _renamed(outputs: ModelOutputs, names: dict[str, str], index: pd.DataFrame) -> ModelOutputs:
    """The outputs for the images of `names`, under their new ids and the studies of `index`."""
    outputs = outputs.of_images(names)
    studies = dict(zip(index["image_id"], index["study_id"], strict=True))
    detections = outputs.detections.assign(image_id=outputs.detections["image_id"].map(names))
    study_probs = outputs.study_probs.assign(image_id=outputs.study_probs["image_id"].map(names))
    study_probs = study_probs.assign(study_id=study_probs["image_id"].map(studies))
    predicted = {model: [names[name] for name in ids] for model, ids in outputs.predicted_ids.items()}
    return ModelOutputs(index[["image_id", "study_id"]], detections, predicted, study_probs)


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with atomic_path(path) as temporary:
        table.to_csv(temporary, index=False)
