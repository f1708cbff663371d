"""A result as files for other programs: predictions.csv, boxes.csv and COCO JSON.

In: the result that study_predictor makes, with a name of each image. Out: text. Boxes are in pixels of the image as it
is shown, upright.
"""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

from siimcovid.core.labels import STUDY_LABELS

#: The formats that a result can be had in besides JSON, by the name of the file.
MEDIA_TYPES = {"predictions.csv": "text/csv", "boxes.csv": "text/csv", "coco.json": "application/json"}


def result_file(name: str, result: dict[str, Any]) -> str:
    """The text of one of MEDIA_TYPES."""
    make = {"predictions.csv": predictions_csv, "boxes.csv": boxes_csv, "coco.json": coco_json}[name]
    return make(result)


def predictions_csv(result: dict[str, Any]) -> str:
    """A row an image: its number, name and size; the study's probabilities, and the study model's of this image alone;
    of the last model (the ensemble, where there is one) `none`, the confidence that there is no opacity, and the number
    of boxes; and what must be known of the weights. What the models do not say is empty."""
    columns = ["image", "name", "rows", "columns", *STUDY_LABELS, *(f"image_{label}" for label in STUDY_LABELS)]
    model = result["models"][-1] if result["models"] else None
    rows = []
    for number, image in enumerate(result["images"], 1):
        probabilities = [
            (entry["study_probabilities"] or {}).get(label) for entry in (result, image) for label in STUDY_LABELS
        ]
        boxes = [model, image["none"][model], len(image["boxes"][model])] if model else [None] * 3
        rows.append([number, image["name"], image["rows"], image["columns"], *probabilities, *boxes])
        rows[-1].append(f"{result['notice']} {image['notice']}".strip())
    return _csv([*columns, "model", "none", "boxes", "notice"], rows)


def boxes_csv(result: dict[str, Any]) -> str:
    """A row a box of each model: image's number and name, model, score, the corners in pixels, and the notice."""
    rows = (
        [
            *(number, image["name"], model, *(box[key] for key in ("score", "left", "top", "right", "bottom"))),
            result["notice"],
        ]
        for number, image in enumerate(result["images"], 1)
        for model, boxes in image["boxes"].items()
        for box in boxes
    )
    return _csv(["image", "name", "model", "score", "xmin", "ymin", "xmax", "ymax", "notice"], rows)


def coco_json(result: dict[str, Any]) -> str:
    """The boxes of the last model (the ensemble, where there is one) as a COCO data set with scores."""
    model = result["models"][-1] if result["models"] else None
    images, annotations = [], []
    for number, image in enumerate(result["images"], 1):
        size = {"width": image["columns"], "height": image["rows"]}
        images.append({"id": number, **size, "file_name": image["name"]})
        for box in image["boxes"].get(model, []):
            width, height = box["right"] - box["left"], box["bottom"] - box["top"]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [box["left"], box["top"], round(width, 2), round(height, 2)],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": box["score"],
                }
            )
    info = {"description": result["notice"], "version": result["version"], "model": model}
    coco = {"info": info, "images": images, "annotations": annotations, "categories": [{"id": 1, "name": "opacity"}]}
    return json.dumps(coco, ensure_ascii=False, allow_nan=False)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()
