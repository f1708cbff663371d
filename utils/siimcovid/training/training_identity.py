"""The identity of a trained stage: everything that shaped its weights, and nothing else.

A finished checkpoint or a half-trained state is used again only by a training of the same identity. It holds no path,
date, number of processes or batch of one process, so another machine with other GPUs may go on with it.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from siimcovid.core.configuration import Preset
from siimcovid.core.labels import NIH_FINDINGS
from siimcovid.core.overrides import to_dict
from siimcovid.data import image_cache
from siimcovid.data.datasets import ImageDataset
from siimcovid.models import initial_weights

Identity = dict[str, Any]


def stage_identity(
    stage: str,
    preset: Preset,
    trained_on: pd.DataFrame,
    held_out: pd.DataFrame | None,
    start: Path | None,
    out: Path | None = None,
) -> Identity:
    """What shapes a stage's weights.

    Args:
        stage: a key of configuration.STAGES. preset: the configuration; the stage's part, the seed and the cache's size
        count. trained_on: the index's rows that are trained on, in this order: image ids, boxes and labels count.
        held_out: the rows by which the best epoch is chosen (the fold), or None. start, out: the weights folder to
        start from, or None, and the one to train into, see initial_weights.start_file;
            the checksum of the file that the stage starts from counts.

    Returns:
        {"stage", "config", "seed", "images", "held_out", "start", "cache"}, fit for JSON; tables and files as SHA-256.

    Raises:
        InputError: the folder has no weights to start from, or damaged ones.
    """
    begin = None
    if start is not None:
        begin = initial_weights.start_file(stage, getattr(preset, stage), start, out)[1]
    return configuration_identity(stage, preset) | {
        "images": table_hash(trained_on),
        "held_out": None if held_out is None else table_hash(held_out),
        "start": begin,
    }


def configuration_identity(stage: str, preset: Preset) -> Identity:
    """The part of a stage's identity that is known without its images: "stage", "config", "seed" and "cache"."""
    config = to_dict(getattr(preset, stage))
    training = config["training"]
    # images per update count; in how many steps they are taken is a matter of memory
    training["nominal_batch"] = training["nominal_batch"] or training.pop("batch")
    training.pop("batch", None)
    return {
        "stage": stage,
        "config": json.loads(json.dumps(config)),
        "seed": preset.training_seed,
        "cache": {"version": image_cache.VERSION, "size": preset.cache_size},
    }


def table_hash(images: pd.DataFrame) -> str:
    """SHA-256 of image ids, boxes, study labels and, where there are any, findings, in the order of the rows."""
    rows = [
        (name, np.asarray(boxes, dtype=float).reshape(-1, 4).tolist(), label if isinstance(label, str) else None)
        for name, boxes, label in zip(images["image_id"], images["boxes"], images["study_label"], strict=True)
    ]
    digest = hashlib.sha256(json.dumps(rows).encode())
    if NIH_FINDINGS[0] in images:
        digest.update(images[list(NIH_FINDINGS)].to_numpy(np.float32).tobytes())
    return digest.hexdigest()


def features_identity(samples: ImageDataset, backbone: torch.nn.Module, views: int) -> str:
    """SHA-256 of what shapes the frozen features of images (frozen_features.py).

    It serves within one process only, where the cache's folder tells images of the same name apart.
    """
    facts = samples.folder, samples.image_ids, samples.size, samples.augment, samples.seed, views, image_cache.VERSION
    digest = hashlib.sha256(repr(facts).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def differences(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two identities differ, for a message."""
    found = []
    for key in sorted({*one, *other}):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(prefix + key)
    return found


def is_finished(checkpoint: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is there, its training came to its end, and it was one of this identity."""
    try:
        facts = json.loads(checkpoint.with_suffix(".json").read_text(encoding="utf-8"))
        return checkpoint.is_file() and facts["finished"] is True and not differences(facts["identity"], identity)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
