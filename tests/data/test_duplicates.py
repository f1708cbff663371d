"""The same image under several ids: found, also re-encoded, and trained on once; different images never are."""

import cv2
import numpy as np
import pandas as pd
import pytest

from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.data import duplicates
from siimcovid.models import initial_weights
from siimcovid.training import train_stage
from siimcovid.training.cross_validation import cross_validate

BOX = [0.2, 0.3, 0.6, 0.8]


def texture(seed: int, rows: int = 200, columns: int = 160) -> np.ndarray:
    """An image with structures of many sizes."""
    rng, image = np.random.default_rng(seed), np.zeros((rows, columns))
    for sigma in (2, 4, 8, 20):
        image += sigma * cv2.GaussianBlur(rng.normal(size=image.shape), (0, 0), sigma)
    return cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def jpeg(image: np.ndarray) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_GRAYSCALE)


def shrunk(image: np.ndarray) -> np.ndarray:
    return cv2.resize(image, None, fx=0.7, fy=0.7)


COPIES = {
    "the same": lambda image: image,
    "JPEG": jpeg,
    "shrunk": shrunk,
    "inverted": lambda image: 255 - image,
    "all of it": lambda image: 255 - jpeg(shrunk(image)),
    "window": lambda image: np.clip((image.astype(float) - 20) * 255 / 215, 0, 255).astype(np.uint8),
}


def index(names, **columns) -> pd.DataFrame:
    """Annotated, negative train images of as many patients."""
    count = len(names)
    patients = [f"p{k}" for k in range(count)]
    table = {"image_id": list(names), "study_id": patients, "patient_id": patients, "split": "train", "path": ""}
    table |= {
        "rows": 200,
        "columns": 160,
        "boxes": [[] for _ in range(count)],
        "study_label": STUDY_LABELS[0],
        "annotated": True,
    }
    return pd.DataFrame(table | columns)


def write(folder, cached_images: dict[str, np.ndarray]) -> pd.DataFrame:
    for name, image in cached_images.items():
        cv2.imwrite(str(folder / f"{name}.png"), image)
    return index(cached_images)


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_copies_are_found(change, tmp_path):
    cached_images = {f"f{k}": texture(k) for k in range(6)} | {"copy": change(texture(4))}
    assert duplicates.find(write(tmp_path, cached_images), tmp_path) == [["copy", "f4"]]


def test_flat_and_missing_images_resemble_nothing(tmp_path):
    flat = np.full((48, 48), 7, np.uint8)
    speck = flat.copy()
    speck[5, 7] = 17
    cached_images = {"a": flat, "b": flat, "c": flat * 0, "d": speck, "e": speck, "f": texture(0), "g": texture(0)}
    images = write(tmp_path, cached_images)
    (tmp_path / "f.png").unlink()
    (tmp_path / "g.png").write_bytes(b"torn")
    assert duplicates.find(images, tmp_path) == []
    assert duplicates.find(images.head(0), tmp_path) == []


def test_images_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    read, cached = [], duplicates.image_cache.read
    monkeypatch.setattr(duplicates.image_cache, "read", lambda folder, name: read.append(name) or cached(folder, name))
    images = write(tmp_path, {"a": texture(0), "b": texture(1), "c": texture(0)})
    for _ in range(2):
        assert duplicates.find(images, tmp_path) == [["a", "c"]]
    assert duplicates.find(images.head(2), tmp_path) == []  # and what is known of c stays known
    assert sorted(read) == ["a", "b", "c"]
    write(tmp_path, {"b": texture(2)})
    assert duplicates.find(images, tmp_path) == [["a", "c"]]
    assert read[3:] == ["b"]
    (tmp_path / duplicates.MEMORY).write_bytes(b"torn")
    duplicates.find(images, tmp_path)
    assert len(read) == 7


def test_more_images_than_a_block(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 2)
    images = write(tmp_path, {f"f{k}": texture(k % 5) for k in range(11)})
    assert duplicates.find(images, tmp_path) == [["f0", "f10", "f5"], *([f"f{k}", f"f{k + 5}"] for k in range(1, 5))]


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_list_in_the_competition_folder_counts_too(tmp_path, ending):
    """Its ids have lost their zeros; a chain of its lines and of what is seen is one group; unknown ids are nothing."""
    names = [f"{k:012d}" for k in range(5)]
    images = write(tmp_path, dict(zip(names, map(texture, (0, 1, 2, 3, 0)), strict=True)))
    images["path"] = [str(tmp_path / "data" / "train" / name / "series" / f"{name}.dcm") for name in names]
    assert duplicates.find(images, tmp_path) == [[names[0], names[4]]]
    (tmp_path / "data").mkdir()
    lines = pd.DataFrame([["4_image", "2_image"], ["3_image", "feedfeedfeed_image"]])
    lines.to_csv(tmp_path / "data" / f"train_duplicates.csv{ending}", index=False, header=False)
    assert duplicates.find(images, tmp_path) == [[names[0], names[2], names[4]]]


@pytest.mark.parametrize(
    ("copies", "kept"),
    [  # annotated, number of boxes, level of the copies a, b, c
        ([(True, 0, "negative"), (True, 0, "negative"), (True, 0, "negative")], "a"),
        ([(True, 0, "typical"), (True, 2, "typical"), (True, 2, "typical")], "b"),
        ([(False, 0, "typical"), (False, 0, "typical"), (True, 0, "typical")], "c"),
        ([(True, 0, "negative"), (True, 0, "negative"), (True, 1, "atypical")], "c"),  # boxes before the majority
        ([(True, 1, "typical"), (True, 1, "atypical"), (True, 1, "atypical")], "b"),
        ([(True, 2, "typical"), (True, 1, "atypical"), (False, 0, "atypical")], "a"),  # a tie among the annotated
        ([(True, 0, None), (True, 0, None), (True, 1, None)], "c"),
        ([(True, 0, None), (True, 0, "negative"), (True, 0, None)], "b"),
    ],
)
def test_which_copy_is_kept(copies, kept):
    annotated, boxes, study_labels = zip(*copies, strict=True)
    table = index(
        "abcx", annotated=[*annotated, True], study_label=[*study_labels, None], boxes=[[BOX] * n for n in (*boxes, 0)]
    )
    for order in (table, table.iloc[::-1]):
        left = duplicates.once(order, [["a", "b", "c"], ["unknown", "x"]])
        assert sorted(left["image_id"]) == sorted([kept, "x"])
    assert duplicates.once(table, []) is table


@pytest.fixture
def fitted(monkeypatch):
    """What stages.fit would train on."""
    seen = {}

    def train(stage, config, model, dataset, out, **options):
        seen.update(options, cached_images=dataset.image_ids)

    monkeypatch.setattr(train_stage, "train", train)

    def measure(stage, config, model, held_out, cache, memory):
        seen["held_out"] = set(held_out["image_id"])
        return 0.0

    monkeypatch.setattr(train_stage, "measure", measure)
    monkeypatch.setattr(initial_weights, "start", lambda *arguments: {})
    return seen


def test_fit_trains_on_a_image_once(fitted, tmp_path):
    images = write(tmp_path, {f"f{k}": texture(k % 5) for k in range(7)})
    images["boxes"] = [[BOX] if k == 6 else [] for k in range(7)]
    preset = load_preset("demo", {"rcnn.size": 64})
    train_stage.fit("rcnn", preset, images, tmp_path, None, tmp_path)
    assert fitted["cached_images"] == ["f0", "f2", "f3", "f4", "f6"]
    train_stage.fit(
        "rcnn", load_preset("demo", {"rcnn.size": 64, "duplicates": False}), images, tmp_path, None, tmp_path
    )
    assert fitted["cached_images"] == images["image_id"].tolist()


def test_fit_holds_all_copies_out_together(fitted, tmp_path):
    """Every image has a copy of another patient; copies are measured like any other, and trained on once."""
    images = write(tmp_path, {f"f{k}": texture(k % 4) for k in range(8)})
    for fold in range(2):
        settings = {"rcnn.size": 64, "rcnn.training.validate": True, "folds": 2, "fold": fold}
        train_stage.fit("rcnn", load_preset("demo", settings), images, tmp_path, None, tmp_path)
        fitted["evaluate"](None)
        held_out, trained = fitted["held_out"], fitted["cached_images"]
        assert all((f"f{k}" in held_out) == (f"f{k + 4}" in held_out) for k in range(4))
        assert sorted(trained) == [f"f{k}" for k in range(4) if f"f{k}" not in held_out]


def test_cross_validation_holds_all_copies_out_together(monkeypatch, tmp_path):
    images, trained = write(tmp_path, {f"f{k}": texture(k % 4) for k in range(8)}), []

    def fit(stage, preset, cached_images, cache, start, out, features):
        trained.append(set(cached_images["image_id"]))
        (out / f"{stage}.safetensors").write_bytes(b"model")

    def predict(stage, config, model, cached_images, cache, hflip):
        marks = pd.DataFrame(0.25, cached_images.index, list(STUDY_LABELS))
        return cached_images[["image_id", "study_id"]].join(marks)

    monkeypatch.setattr("siimcovid.training.cross_validation.fit", fit)
    monkeypatch.setattr("siimcovid.training.cross_validation.predict_table", predict)
    monkeypatch.setattr("siimcovid.models.checkpoints.load", lambda path: (None, None, None))
    found = cross_validate(
        images, load_preset("demo", {"folds": 2}), tmp_path, None, tmp_path / "out", stages=["study"]
    )
    fold = found.images.set_index("image_id")["fold"]
    assert len(fold) == 8
    assert all(fold[f"f{k}"] == fold[f"f{k + 4}"] for k in range(4))
    assert trained == [{f"f{k}" for k in range(4) if fold[f"f{k}"] != number} for number in range(2)]


def test_real_images_that_differ_are_never_one(real, tmp_path):
    """NIH's 782 images, several of a patient among them, and the 187 of which there is another file."""
    cached_images, names = [], []
    for folder in ("nih", "nih_rsna"):
        for path in sorted((real / folder / "images").iterdir()):
            image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_GRAYSCALE)
            cached_images.append(cv2.resize(image, (duplicates.SIDE, duplicates.SIDE), interpolation=cv2.INTER_AREA))
            names.append(path.name)
    pairs = list(duplicates.same(np.stack(cached_images)))
    assert len(pairs) == 187
    assert all(names[k] == names[other] for k, other in pairs)


@pytest.mark.parametrize(
    ("content", "groups"),
    [
        (b"1,2\n3\n4,5,6\n", [["1", "2"], ["3"], ["4", "5", "6"]]),  # lines of any length
        (b"1,2,\n3,4,\n", [["1", "2"], ["3", "4"]]),
        (b"\xef\xbb\xbf1_image, 2_image\r\n\r\n,\r\n", [["1", "2"]]),
        (b"", []),
    ],
)
def test_the_list_is_read_whatever_its_lines(tmp_path, content, groups):
    (tmp_path / "list.csv").write_bytes(content)
    expected = [[name.zfill(12) for name in group] for group in groups]
    assert duplicates.read_duplicates(tmp_path / "list.csv") == expected


@pytest.mark.parametrize("content", [b"\xff\n", b'1,"2\n', b'1,"2"3\n'])
def test_a_list_that_is_no_csv_is_named(tmp_path, content):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.csv cannot be read as CSV"):
        duplicates.read_duplicates(tmp_path / "list.csv")


def test_thumbnails_that_were_cut_or_damaged_are_made_again(tmp_path):
    images = write(tmp_path, {"a": texture(0), "b": texture(1), "c": texture(0)})
    assert duplicates.find(images, tmp_path) == [["a", "c"]]
    path = tmp_path / duplicates.MEMORY
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(whole), 40)
    changes = [whole[:cut] for cut in [0, 1, len(whole) - 1, *places]]
    changes += [whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :] for at in [*range(120), *places]]
    for changed in changes:
        path.write_bytes(changed)
        assert duplicates.find(images, tmp_path) == [["a", "c"]]
