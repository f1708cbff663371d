"""A notebook's training in two processes, one for each GPU, or by gloo on the CPU: the batch is shared, and the weights
are those of one process."""

import json

import pytest
import torch

from siimcovid.core.overrides import override
from siimcovid.models.checkpoints import read_tensors
from siimcovid.training import multi_gpu, training_loop
from support.tiny_stages import eight_images
from support.two_processes import few_steps

pytestmark = pytest.mark.slow


def test_a_notebook_trains_in_two_processes(device, tmp_path, monkeypatch):
    if device.type == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU; this takes two")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if device.type == "cpu":  # as in the processes, which see no GPU either
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(training_loop, "autocast_type", lambda device: None)
    folder, images = eight_images(tmp_path)
    images = images.assign(series_id="series", path="", in_sample=True)  # the columns of an index
    preset = override(few_steps("study"), {"study.training.batch": 4})
    one, two = (
        multi_gpu.fit("study", preset, images, folder, None, tmp_path / str(count), processes=count) for count in (1, 2)
    )
    precision = 1e-4 if device.type == "cpu" else 1e-2
    expected, found = read_tensors(one)[0], read_tensors(two)[0]
    for name in ("head.0.weight", "head.3.bias"):
        torch.testing.assert_close(found[name], expected[name], rtol=precision, atol=precision / 10)
    assert json.loads(two.with_suffix(".json").read_text(encoding="utf-8"))["finished"]
    assert not list(two.parent.glob("study.job*")) + list(two.parent.glob("study.images*"))
