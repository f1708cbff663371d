"""Predict many image files with the models of a weights folder, in parts that a killed call need not do again.

In: the images that `image_files.find_images` found, and a `TrainedModel`. Out: `FilePredictions`, the models' outputs
for all images that can be read, and the reasons of the others.

The images are worked on in parts of PART. A part's outputs are a JSON file in OUT/parts whose name is a hash of the
models and of the part's files, so a part is done once, and again only when its files or the weights change. Under
`accelerate launch` or `torchrun` the processes take turns at the parts and all have everything in the end; which
process does a part changes nothing in it, so the result is that of one process.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from siimcovid.core.device import launched_as
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.progress import progress_bar
from siimcovid.data import image_cache, image_files
from siimcovid.data.image_files import ImageFile
from siimcovid.inference.model_outputs import ModelOutputs
from siimcovid.inference.predictor import DETECTION_COLUMNS
from siimcovid.inference.trained_model import TrainedModel

#: Images of a part: what a killed call loses at most, in each process.
PART = 32

FOLDER = "parts"

INDEX_COLUMNS = ["image_id", "study_id", "path", "rows", "columns"]


@dataclass(frozen=True)
class FilePredictions:
    """The models' outputs for image files.

    Attributes:
        index: a row per image that could be read: INDEX_COLUMNS.
        outputs: of the models, for these images.
        failures: path and reason of each file that could not be predicted.
        rank, processes: which process of how many this is.
        gather: joins all processes' lists of rows; all of them must call it.
    """

    index: pd.DataFrame
    outputs: ModelOutputs
    failures: pd.DataFrame
    rank: int
    processes: int
    gather: Callable[[list], list]


def predict_files(
    model: TrainedModel,
    images: Sequence[ImageFile],
    failures: Sequence[tuple[str, str]],
    out: Path,
    progress: bool = True,
) -> FilePredictions:
    """Predict all images that can be read.

    Args:
        model: see `trained_model.load`.
        images, failures: see `image_files.find_images`.
        out: where finished parts are kept, in OUT/parts.
        progress: whether to show a bar where stderr is a terminal.
    """
    rank, processes, gather = _launch()
    parts = [images[start : start + PART] for start in range(0, len(images), PART)]
    results: list[tuple[int, dict]] = []
    own = range(rank, len(parts), processes)
    total = sum(len(parts[number]) for number in own)
    with progress_bar(None, "predict", "image", total, disable=None if progress and rank == 0 else True) as bar:
        for number in own:
            results.append((number, _part(model, parts[number], out / FOLDER)))
            bar.update(len(parts[number]))
    done = [result for _, result in sorted(gather(results), key=lambda entry: entry[0])]
    return FilePredictions(*_joined(done, images, failures), rank, processes, gather)


def _launch() -> tuple[int, int, Callable[[list], list]]:
    """This process's number, how many there are, and the function that joins all processes' lists."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1, list
    from accelerate.utils import gather_object

    state = launched_as()
    return state.process_index, state.num_processes, gather_object


def _part(model: TrainedModel, images: Sequence[ImageFile], folder: Path) -> dict[str, Any]:
    """The outputs of a part as JSON keeps them: read where they are there, else made and written."""
    facts = [model.identity, *([image.image_id, image.shown, *image.fingerprint] for image in images)]
    path = folder / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # not done yet, or damaged
        pass
    text = json.dumps(_predict_part(model, images))
    write_text(path, text)
    return json.loads(text)


def _predict_part(model: TrainedModel, images: Sequence[ImageFile]) -> dict[str, Any]:
    """Decode the images of a part in processes of their own and run every model on them."""
    placed, reasons, rows = [], {}, []
    with tempfile.TemporaryDirectory(prefix="siimcovid-") as temporary:
        folder, cache = Path(temporary), Path(temporary) / "cache"
        for image in images:
            try:
                placed.append((image.image_id, str(image_files.place(image, folder))))
            except InputError as error:
                reasons[image.image_id] = str(error)
        table = pd.DataFrame(placed, columns=["image_id", "path"])
        failed = image_cache.prepare(table, cache, model.preset.cache_size, progress=False)
        reasons |= dict(zip(failed["image_id"], failed["reason"], strict=True))
        for name, path in placed:
            if name in reasons:
                continue
            size = image_files.original_size(Path(path))
            if min(size) < 1:
                reasons[name] = "does not say its size in its header"
                continue
            rows.append((name, image_files.study_uid(Path(path)) or name, *size))
        index = pd.DataFrame(rows, columns=["image_id", "study_id", "rows", "columns"])
        outputs = model.outputs(index, cache)
    predicted = set(outputs.study_probs["image_id"]).union(*outputs.predicted_ids.values())
    reasons |= {name: "makes the models' output not finite" for name in index["image_id"] if name not in predicted}
    return {
        "index": index[index["image_id"].isin(predicted)].to_numpy().tolist(),
        "failures": reasons,
        "detections": outputs.detections[DETECTION_COLUMNS].to_numpy().tolist(),
        "predicted": {name: list(ids) for name, ids in outputs.predicted_ids.items()},
        "study_columns": outputs.study_probs.columns.tolist(),
        "study_probs": outputs.study_probs.to_numpy().tolist(),
    }


def _joined(
    parts: Sequence[dict[str, Any]],
    images: Sequence[ImageFile],
    failures: Sequence[tuple[str, str]],
) -> tuple[pd.DataFrame, ModelOutputs, pd.DataFrame]:
    """All parts as one, in the order of `images`: index, outputs and failures of FilePredictions."""
    shown = {image.image_id: image.shown for image in images}
    rows = [row for part in parts for row in part["index"]]
    index = pd.DataFrame(rows, columns=["image_id", "study_id", "rows", "columns"])
    index.insert(2, "path", [shown[name] for name in index["image_id"]])
    detections = pd.DataFrame([row for part in parts for row in part["detections"]], columns=DETECTION_COLUMNS).astype(
        dict.fromkeys(DETECTION_COLUMNS[2:], float)
    )
    predicted: dict[str, list[str]] = {}
    for part in parts:
        for name, ids in part["predicted"].items():
            predicted.setdefault(name, []).extend(ids)
    columns = next((part["study_columns"] for part in parts), ["image_id", "study_id", *STUDY_LABELS])
    study_probs = pd.DataFrame([row for part in parts for row in part["study_probs"]], columns=columns)
    study_probs = study_probs.astype(dict.fromkeys(columns[2:], float))
    unread = [*failures, *((shown[name], reason) for part in parts for name, reason in part["failures"].items())]
    outputs = ModelOutputs(index[["image_id", "study_id"]], detections, predicted, study_probs)
    return index, outputs, pd.DataFrame(sorted(unread), columns=["path", "reason"])
