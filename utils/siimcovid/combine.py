"""What all models said of the same films becomes one answer: fused boxes, a confidence in `none`, the levels.

In: a `Said`, the tables that predict.py makes. Out: a `Combined`, what submission.py writes. All numbers come from the
preset, where `fusion` says how boxes become an ensemble's and `crosstalk` what the study model and the detectors tell
each other; combination.py fits them on films that the models did not see. With the plain preset nothing crosses: the
boxes are fused, `none` is 1 - the highest score, and the levels are the study model's.

A voice is one look of one model: "rcnn", "rcnn_flip" on mirrored films, "rcnn.1" another member of a fold ensemble.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy.special import expit, logit, softmax

from siimcovid import LEVELS
from siimcovid.checkpoint import family
from siimcovid.configs import CrosstalkConfig, FusionConfig, Preset
from siimcovid.fuse import COLUMNS, fuse, none_confidence
from siimcovid.predict import study_levels

#: Probabilities are kept this far from 0 and 1 before their logit is taken.
EDGE = 1e-4

#: What is known of how many sides of a film are affected: see `side_evidence`.
SIDE_EVIDENCE = ("surer side", "other side", "none")

#: What the study model says of a film beside the four levels, where it has the output.
NONE = "none"


@dataclass(frozen=True)
class Said:
    """What the models said of films, each for itself."""

    films: pd.DataFrame  # image_id and study_id of all films that are to be answered
    detections: pd.DataFrame  # of all voices, as predict.py makes them
    seen: Mapping[str, Collection[str]]  # voice -> image ids of the films that it looked at, without a box too
    levels: pd.DataFrame = field(  # a row per film: image_id, study_id, LEVELS and, from some models, `none`
        default_factory=lambda: pd.DataFrame(columns=["image_id", "study_id", *LEVELS])
    )


@dataclass(frozen=True)
class Combined:
    """One answer."""

    detections: pd.DataFrame  # of the model "ensemble"
    none: pd.Series  # image_id -> confidence in [0, 1] that there is no opacity, of the films that a detector looked at
    levels: pd.DataFrame  # study_id and LEVELS, which add up to 1


def combine(said: Said, preset: Preset) -> Combined:
    """Combine by a preset; where a model that cross-talk needs said nothing, that part of it is left out.

    Raises InputError where the preset's numbers do not fit its detectors.
    """
    preset.check()
    boxes = ensemble(said, preset.fusion)
    none = film_none(said, boxes, preset)
    levels = study_levels(said.levels)
    return Combined(
        rescored(boxes, none, said, preset.crosstalk), none, regraded(levels, boxes, none, said, preset.crosstalk)
    )


def calibrated(detections: pd.DataFrame, fusion: FusionConfig) -> pd.DataFrame:
    """The detections with scores sigmoid(slope * logit(score) + intercept), by each detector's two numbers (Platt 1999,
    Probabilistic outputs for support vector machines); as they are without `fusion.calibration`."""
    if not fusion.calibration or detections.empty:
        return detections
    numbers = fusion.of_detectors("calibration", 2)
    scores = detections["score"].to_numpy(dtype=float).copy()
    model = detections["model"].to_numpy()
    for voice in pd.unique(detections["model"]):
        if family(voice) in numbers:
            slope, intercept = numbers[family(voice)]
            scores[model == voice] = expit(slope * logits(scores[model == voice]) + intercept)
    return detections.assign(score=scores)


def logits(probabilities: np.ndarray | pd.Series) -> np.ndarray:
    """Logits of probabilities, which are first brought into [EDGE, 1 - EDGE]."""
    return logit(np.clip(np.asarray(probabilities, dtype=float), EDGE, 1 - EDGE))


def ensemble(said: Said, fusion: FusionConfig) -> pd.DataFrame:
    """The ensemble's boxes: films that the same voices looked at are fused together, each voice with the weight of its
    detector. Detectors that `fusion.detectors` does not name are not heard."""
    weight = {d: w for d, (w,) in fusion.of_detectors("weights", 1).items()}
    seen = {voice: set(films) for voice, films in said.seen.items() if family(voice) in weight}
    order = {d: k for k, d in enumerate(fusion.detectors)}
    voices = sorted(seen, key=lambda voice: (voice.endswith("_flip"), order[family(voice)], voice))
    groups: dict[tuple[str, ...], list[str]] = {}
    for film in said.films["image_id"]:
        groups.setdefault(tuple(voice for voice in voices if film in seen[voice]), []).append(film)
    groups.pop((), None)
    found = calibrated(said.detections, fusion)
    parts = []
    for heard, films in groups.items():
        table = found if len(groups) == 1 else found[found["image_id"].isin(films)]
        parts.append(
            fuse(
                table,
                heard,
                weights=[weight[family(voice)] for voice in heard],
                iou=fusion.iou,
                nms_iou=fusion.nms_iou,
                max_boxes=fusion.max_boxes,
            )
        )
    if not parts:
        return pd.DataFrame(columns=COLUMNS).astype(dict.fromkeys(COLUMNS[2:], float))
    fused = pd.concat(parts, ignore_index=True)
    return fused if len(parts) == 1 else fused.sort_values("image_id", kind="stable", ignore_index=True)


def none_evidence(said: Said, fusion: FusionConfig) -> pd.DataFrame:
    """A row per film, by image_id, of logits that it has no opacity; nan where nobody said anything of it.

    Columns: each of fusion.detectors, 1 - the mean over its voices of their highest (calibrated) scores, the others'
    mean where it did not look; "negative" and "none", the study model's.
    """
    ids = said.films["image_id"].tolist()
    found = calibrated(said.detections, fusion)
    highest = found.groupby(["model", "image_id"])["score"].max()
    columns = {}
    for detector in fusion.detectors:
        looks = []
        for voice in sorted(voice for voice in said.seen if family(voice) == detector):
            of_voice = highest.loc[voice] if voice in highest.index.get_level_values(0) else pd.Series(dtype=float)
            looks.append(of_voice.reindex(list(said.seen[voice]), fill_value=0.0).reindex(ids))
        mean = pd.concat(looks, axis=1).mean(axis=1) if looks else pd.Series(np.nan, index=ids)
        columns[detector] = logits(1 - mean)
    by_film = said.levels.set_index("image_id")
    for name in ("negative", NONE):
        values = by_film[name].reindex(ids).astype(float) if name in by_film else pd.Series(np.nan, index=ids)
        columns[name] = logits(values)
    evidence = pd.DataFrame(columns, index=pd.Index(ids, name="image_id"))
    names = list(fusion.detectors)
    evidence[names] = evidence[names].apply(lambda column: column.fillna(evidence[names].mean(axis=1)))
    return evidence


def film_none(said: Said, boxes: pd.DataFrame, preset: Preset) -> pd.Series:
    """Confidence that a film has no opacity, of the films that a detector looked at.

    With `crosstalk.none` the logistic regression on `none_evidence`; for a film of which one of its models said
    nothing, and without it, 1 - the highest score of the ensemble's `boxes`.
    """
    voices = [voice for voice in said.seen if family(voice) in preset.fusion.detectors]
    looked = {film for voice in voices for film in said.seen[voice]}
    plain = none_confidence(boxes, [film for film in said.films["image_id"] if film in looked])
    if not preset.crosstalk.none:
        return plain
    evidence = none_evidence(said, preset.fusion)
    intercept, *weights = preset.crosstalk.none
    used = [name for name, weight in zip(evidence, weights, strict=True) if weight]
    total = evidence[used].to_numpy() @ np.array([weight for weight in weights if weight]) + intercept
    learned = pd.Series(expit(total), index=evidence.index).reindex(plain.index)
    return learned.fillna(plain).rename(plain.name)


def rescored(boxes: pd.DataFrame, none: pd.Series, said: Said, crosstalk: CrosstalkConfig) -> pd.DataFrame:
    """The boxes with scores times (1 - none) ** opacity_none times (1 - negative) ** opacity_negative of their film.

    A film without a study model's levels, or without `none`, keeps that factor at 1.
    """
    if boxes.empty or not (crosstalk.opacity_none or crosstalk.opacity_negative):
        return boxes
    negative = said.levels.set_index("image_id")["negative"].astype(float)
    factor = (1 - none.reindex(boxes["image_id"])).fillna(1.0).to_numpy().clip(EDGE) ** crosstalk.opacity_none
    doubt = (1 - negative.reindex(boxes["image_id"])).fillna(1.0).to_numpy().clip(EDGE)
    scores = boxes["score"].to_numpy() * factor * doubt**crosstalk.opacity_negative
    changed = boxes.assign(score=scores)
    return changed.sort_values(["image_id", "score"], ascending=[True, False], kind="stable", ignore_index=True)


def side_evidence(boxes: pd.DataFrame, none: pd.Series) -> pd.DataFrame:
    """A row per film of `none`, by image_id: logits of SIDE_EVIDENCE.

    "surer side" and "other side" are the highest scores of boxes whose centre lies in the one and in the other half of
    the film, the higher one first.
    """
    left = (boxes["x1"] + boxes["x2"]) < 1
    highest = [boxes[half].groupby("image_id")["score"].max().reindex(none.index).fillna(0.0) for half in (left, ~left)]
    halves = np.sort(np.stack(highest, axis=1), axis=1)[:, ::-1]
    values = logits(np.column_stack([halves, none.to_numpy(dtype=float)]))
    return pd.DataFrame(values, index=none.index, columns=list(SIDE_EVIDENCE))


def sides(boxes: pd.DataFrame, none: pd.Series, crosstalk: CrosstalkConfig) -> pd.DataFrame:
    """A row per film of `none`: the probabilities that none, one or both halves of the film have an opacity.

    A multinomial logistic regression on `side_evidence` by `crosstalk.sides`.
    """
    weights = np.array(crosstalk.sides).reshape(3, -1)
    evidence = side_evidence(boxes, none)
    values = softmax(evidence.to_numpy() @ weights[:, 1:].T + weights[:, 0], axis=1)
    return pd.DataFrame(values, index=evidence.index)


def regraded(
    levels: pd.DataFrame, boxes: pd.DataFrame, none: pd.Series, said: Said, crosstalk: CrosstalkConfig
) -> pd.DataFrame:
    """The studies' levels after the detectors were heard, as `weighed` with the probabilities of `sides`; as they are
    without `crosstalk.sides`, or where no detector looked at a film."""
    if levels.empty or none.empty or not crosstalk.sides:
        return levels
    return weighed(levels, sides(boxes, none, crosstalk), said, crosstalk)


def weighed(levels: pd.DataFrame, found: pd.DataFrame, said: Said, crosstalk: CrosstalkConfig) -> pd.DataFrame:
    """The studies' levels, weighed with what the detectors found; studies that no detector looked at keep theirs.

    A typical study nearly always has opacities in both lungs, an indeterminate one mostly in one, a negative one in
    none. So a level's probability, to the power `level_power`, is multiplied with the likelihood of what was found: the
    mean of `level_sides`, how much more often than of any study so many sides are affected at that level, weighted with
    the probabilities `found` of none, one and both sides, (films, 3) by image_id, which are the mean over the study's
    films.
    """
    study_of = said.films.set_index("image_id")["study_id"]
    by_study = found.groupby(study_of.reindex(found.index)).mean().reindex(levels["study_id"]).to_numpy()
    before = levels[list(LEVELS)].to_numpy(dtype=float)
    values = np.clip(before, EDGE, 1) ** crosstalk.level_power
    values *= by_study @ np.array(crosstalk.level_sides).reshape(len(LEVELS), 3).T
    values /= values.sum(axis=1, keepdims=True)
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, before)
    return levels.assign(**dict(zip(LEVELS, values.T, strict=True)))
