"""The study model's options: the boxes as a map, `none` as a fifth output, the focal loss, mirrored images."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from siimcovid.core.configuration import Augment
from siimcovid.core.errors import InputError
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO
from siimcovid.inference.predictor import predict_table, study_probabilities, unlike_images
from siimcovid.models import checkpoints
from siimcovid.models.checkpoints import build_model
from siimcovid.models.study_classifier import draw_boxes, probabilities
from siimcovid.training import train_stage
from support.tiny_stages import Fixed, eight_images

PLAIN = replace(DEMO.study, dropout=0.0, views=0)
BOXES = [torch.tensor([[0.0, 0.0, 0.5, 1.0]]), torch.empty(0, 4)]
LABELS_OF = torch.tensor([1, 0])


@pytest.fixture
def cached_images(tmp_path) -> tuple:
    return eight_images(tmp_path)


def make_batch(side: int = 64) -> dict:
    images = torch.randint(0, 256, (2, 1, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return {"images": images, "boxes": BOXES, "study_labels": LABELS_OF, "image_ids": ["a", "b"]}


def test_boxes_are_drawn_where_a_cells_centre_lies_in_one():
    drawn = draw_boxes(torch.tensor([[0.0, 0.5, 0.5, 1.0], [0.7, 0.0, 0.9, 0.3]]), 4)
    assert drawn.int().tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]
    assert not draw_boxes(torch.empty(0, 4), 4).any()


def test_the_losses_are_added_with_their_weights_and_the_map_teaches_the_backbone():
    torch.manual_seed(0)
    model = build_model("study", replace(PLAIN, frozen=False, mask=32.0)).eval()
    losses, batch = model(make_batch()), make_batch()
    logits = model.predict(batch["images"])
    assert losses["study_label"].item() == pytest.approx(functional.cross_entropy(logits, LABELS_OF).item(), rel=1e-4)
    losses["mask"].backward()
    assert model.backbone.stages[0][0].weight.grad.abs().sum() > 0
    assert model.head[0].weight.grad is None
    model.mask_head[-1].weight.data.zero_()
    model.mask_head[-1].bias.data.fill_(20.0)  # says that a box is everywhere: right in a quarter of the cells
    assert model(batch)["mask"].item() == pytest.approx(32 * 0.75 * 20, rel=1e-3)


@pytest.mark.parametrize("changes", [{"views": 1}, {"views": 0, "frozen": False, "training.ema": 0.9}], ids=str)
def test_an_image_unlike_those_of_training_is_found(cached_images, tmp_path, changes):
    """Training keeps images of its own, the checkpoint holds them, and the table says which image is unlike."""
    folder, images = cached_images
    common = {"training.epochs": 1, "size": 64, "infer_size": 96, "typical_images": 6, "none": 0.5}
    preset = override(DEMO, {f"study.{key}": value for key, value in {**common, **changes}.items()})
    path = train_stage.fit("study", preset, images, folder, None, tmp_path)
    _, config, model = checkpoints.load(path)
    assert model.unlike.limit < 1  # at most 2, the cosine distance of opposites
    assert model.unlike.references.float().norm(dim=1).numpy() == pytest.approx(1, abs=1e-2)
    table = predict_table("study", config, model, images, folder)
    assert table.columns.tolist() == ["image_id", "study_id", *STUDY_LABELS, "none", "unlike"]
    assert table["unlike"].between(0, 1).all()
    assert table[list(STUDY_LABELS)].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)
    for limit, found in [(-60, images["image_id"].tolist()), (60, [])]:
        model.unlike.limit.fill_(limit)
        assert unlike_images(predict_table("study", config, model, images, folder)) == found
    assert unlike_images(table.drop(columns="unlike")) == []


def test_a_map_needs_a_backbone_that_learns():
    with pytest.raises(InputError, match=r"set study\.frozen=false"):
        build_model("study", replace(PLAIN, frozen=True, mask=0.4))


def test_the_fifth_output_is_the_images_own_none():
    torch.manual_seed(0)
    model = build_model("study", replace(PLAIN, none=0.5))
    features = torch.randn(2, 1280)
    batch = {"features": features, "boxes": BOXES, "study_labels": LABELS_OF}
    logits, losses = model.head(features), model(batch)
    wanted = functional.binary_cross_entropy_with_logits(logits[:, 4], torch.tensor([0.0, 1.0]))
    assert losses["none"].item() == pytest.approx(0.5 * wanted.item())
    assert losses["study_label"].item() == pytest.approx(functional.cross_entropy(logits[:, :4], LABELS_OF).item())
    said = probabilities(logits)
    torch.testing.assert_close(said[:, :4].sum(dim=1), torch.ones(2))
    torch.testing.assert_close(said[:, 4], logits[:, 4].sigmoid())


def test_focal_loss_counts_what_is_known_less():
    torch.manual_seed(0)
    logits, weights = torch.randn(2, 4), torch.tensor([2.0, 0.5, 1.0, 1.0])
    model = build_model("study", replace(PLAIN, focal=2.0))
    model.label_weights = weights
    p = logits.softmax(dim=1)[range(2), LABELS_OF]
    weight = weights[LABELS_OF]
    wanted = (weight * (1 - p) ** 2 * -p.log()).sum() / weight.sum()
    assert model.study_loss(logits, LABELS_OF).item() == pytest.approx(wanted.item())


def test_mirrored_images_are_heard_as_well(cached_images):
    folder, images = cached_images
    size = replace(PLAIN, infer_size=64)

    class Left(nn.Module):
        """Sees the brightness of each quarter of the image's width, from the left, or of its mirror image."""

        def __init__(self, mirrored: bool = False):
            super().__init__()
            self.mirrored = mirrored

        def predict(self, pixels):
            pixels = pixels.flip(-1) if self.mirrored else pixels
            return pixels.float().unflatten(-1, (4, 16)).mean(dim=(1, 2, 4)) / 10

    once, other, both = (
        predict_table("study", config, model, images, folder)[list(STUDY_LABELS)]
        for config, model in ((size, Left()), (size, Left(True)), (replace(size, hflip_tta=True), Left()))
    )
    assert (both - (once + other) / 2).abs().to_numpy().max() < 1e-6
    assert (once - other).abs().to_numpy().max() > 0.01


def test_the_tables_carry_the_images_none_and_the_studies_labels(cached_images):
    folder, images = cached_images
    logits = torch.tensor([[0.0, 0.0, 0.0, 9.0, 9.0], [9.0, 0.0, 0.0, 0.0, -9.0]])
    table = predict_table("study", replace(PLAIN, none=1.0), Fixed(logits), images.head(2), folder)
    assert table["none"].tolist() == pytest.approx([1.0, 0.0], abs=1e-3)
    assert study_probabilities(table).columns.tolist() == ["study_id", *STUDY_LABELS]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_stage_trains_with_all_of_it(cached_images, tmp_path, frozen):
    folder, images = cached_images
    images = images[images["study_label"].isin(STUDY_LABELS)]
    changes = {"study.size": 32, "study.infer_size": 32, "study.none": 0.5, "study.focal": 1.0, "study.frozen": frozen}
    changes |= {"study.training.epochs": 1, "study.training.batch": 4, "study.training.ema": 0.9}
    changes |= {} if frozen else {"study.mask": 0.4}
    preset = replace(override(DEMO, changes), study=replace(override(DEMO, changes).study, augment=Augment(hflip=0.5)))
    train_stage.fit("study", preset, images, folder, None, tmp_path / "out")
    header = (tmp_path / "out" / "study.metrics.csv").read_text().splitlines()[0].split(",")
    assert {"study_label", "none"} | (set() if frozen else {"mask"}) <= set(header)
