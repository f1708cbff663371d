"""ONNX Runtime predicts what PyTorch does, up to rounding, by graphs that are exported once; else PyTorch predicts."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.core.overrides import override
from siimcovid.core.presets import DEMO
from siimcovid.models import checkpoints, onnx_engine
from siimcovid.models.backbone import for_inference, normalise
from siimcovid.models.onnx_engine import OnnxModel, in_pytorch, with_onnx
from siimcovid.models.out_of_distribution import describe
from siimcovid.models.roi_align_inference import pool

SIDE = 64


@pytest.fixture(autouse=True)
def asked_for(monkeypatch):
    """The engine that a user has, where the other tests ask for PyTorch; what was said once may be said again."""
    monkeypatch.delenv(onnx_engine.ENGINE, raising=False)
    onnx_engine.is_installed.cache_clear()
    yield
    onnx_engine.is_installed.cache_clear()


@pytest.fixture
def runtime():
    pytest.importorskip("onnx", reason="no onnx")
    return pytest.importorskip("onnxruntime", reason="no onnxruntime")


def network(stage: str, seed: int = 0, **changes: float) -> nn.Module:
    """A stage's small model at 64 pixels, made for inference, whose random outputs are as different as trained ones."""
    torch.manual_seed(seed)
    config = override(getattr(DEMO, stage), {"infer_size": SIDE, **changes})
    model = checkpoints.build_model(stage, config).eval()
    for module in model.modules():  # or each layer of a random network makes its numbers smaller
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 1.5
    return for_inference(model)


def images(count: int) -> Tensor:
    return torch.randint(0, 255, (count, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def assert_same(ours: list | Tensor, theirs: list | Tensor) -> None:
    """Logits within 1e-4 of the largest; as many boxes, and for each a box within 1e-4 of its corners and score."""
    if torch.is_tensor(theirs):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()
        return
    assert len(ours) == len(theirs)
    for (boxes, scores), (their_boxes, their_scores) in zip(ours, theirs, strict=True):
        assert len(boxes) == len(their_boxes) > 0
        rows, their_rows = (torch.cat([s[:, None], b], 1) for b, s in ((boxes, scores), (their_boxes, their_scores)))
        apart = (rows[:, None] - their_rows[None]).abs().amax(2)  # equal scores may change places
        assert max(apart.amin(0).max(), apart.amin(1).max()) < 1e-4
        assert (scores - their_scores).abs().max() < 1e-4


@pytest.mark.parametrize("stage", ["rcnn", "yolo", "retinanet", "study"])
def test_predictions_are_pytorchs(runtime, stage, tmp_path, capsys):
    model = network(stage)
    fast = with_onnx(stage, model, tmp_path / f"{stage}.safetensors")
    for count in (3, 1):  # a graph takes any number of images
        assert_same(fast.predict(images(count)), model.predict(images(count)))
    assert capsys.readouterr().err == ""
    again = with_onnx(stage, model, tmp_path / f"{stage}.safetensors").predict(images(3))
    for one, other in zip(fast.predict(images(3)), again, strict=True):
        assert all(map(torch.equal, one, other)) if isinstance(one, tuple) else torch.equal(one, other)


def test_an_image_unlike_those_of_training_is_found_by_onnx_too(runtime, tmp_path, capsys):
    """The output that a graph of the study model has more, fitted on some images."""
    model = network("study", typical_images=30, none=0.5)
    with torch.inference_mode():
        model.unlike.fit(describe(model.backbone(normalise(images(30)))))
    fast = with_onnx("study", model, tmp_path / "study.safetensors")
    given = torch.cat([images(2), torch.zeros_like(images(1))])
    found, wanted = fast.predict(given), model.predict(given)
    assert found.shape == wanted.shape == (3, 6)
    assert (found - wanted).abs().max() < 1e-4
    assert found[2, -1] > found[:2, -1].max() + 0.1
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("levels", [1, 3])
def test_pooling_is_torchvisions(levels):
    """Boxes of every size, some over the border, one without extent; an image without boxes."""
    rng, side = torch.Generator().manual_seed(0), 256
    maps = [torch.randn((3, 5, 64 >> k, 64 >> k), generator=rng) for k in range(levels)]
    corners = torch.rand((60, 2), generator=rng) * side * 1.2 - 20
    boxes = torch.cat([corners, corners + torch.rand((60, 2), generator=rng) * side], 1)
    boxes[7, 2:] = boxes[7, :2]
    proposals = [boxes[:40], boxes[:0], boxes[40:]]
    pooler = MultiScaleRoIAlign([str(k) for k in range(levels)], output_size=7, sampling_ratio=2)
    wanted = pooler({str(k): one for k, one in enumerate(maps)}, proposals, [(side, side)] * 3)
    found = pool(pooler, [one.permute(0, 2, 3, 1) for one in maps], proposals, side)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in sorted((folder / "onnx").iterdir())}


def test_graphs_are_exported_once_for_the_same_weights(runtime, tmp_path, monkeypatch):
    made, real = [], onnx_engine._export
    monkeypatch.setattr(onnx_engine, "_export", lambda graph: made.append(graph) or real(graph))
    path, model = tmp_path / "study.safetensors", network("study")
    wanted = model.predict(images(2))

    def predict(weights: nn.Module, side: int = SIDE) -> tuple[Tensor, int]:
        before = len(made)
        return with_onnx("study", weights, path).predict(images(2)[..., :side, :side]), len(made) - before

    assert [predict(model)[1] for _ in range(2)] == [1, 0]
    assert list(files(tmp_path)) == ["study.64.json", "study.64.network.onnx"]
    before = files(tmp_path)
    assert predict(model, side=32)[1] == 1  # another side has files of its own
    assert {name: files(tmp_path)[name] for name in before} == before
    (tmp_path / "onnx" / "study.64.network.onnx").write_bytes(b"damaged")
    found, exports = predict(model)
    assert exports == 1
    assert_same(found, wanted)
    other = network("study", seed=1)  # trained again
    found, exports = predict(other)
    assert exports == 1
    assert_same(found, other.predict(images(2)))
    assert set(json.loads((tmp_path / "onnx" / "study.64.json").read_text())) == {"key", "files"}


def test_a_folder_that_cannot_be_written_is_done_without(runtime, tmp_path, capsys):
    (tmp_path / "onnx").write_text("a file where the folder should be")
    model = network("study")
    fast = with_onnx("study", model, tmp_path / "study.safetensors")
    assert_same(fast.predict(images(2)), model.predict(images(2)))
    assert fast._sessions is not None
    assert capsys.readouterr().err == ""


def test_threads_are_torchs(runtime, tmp_path):
    fast, before = with_onnx("study", network("study"), tmp_path / "study.safetensors"), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            fast.predict(images(1))
            (session,) = fast._sessions.of_graphs.values()
            assert session.get_session_options().intra_op_num_threads == threads
    finally:
        torch.set_num_threads(before)


def test_a_copy_predicts_too(runtime, tmp_path):
    fast = with_onnx("study", network("study"), tmp_path / "study.safetensors")
    wanted = fast.predict(images(2))
    assert torch.equal(for_inference(copy.deepcopy(fast)).predict(images(2)), wanted)


def _raise(error: Exception):
    raise error


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("package", "import of onnxruntime halted; None in sys.modules; `pip install onnx onnxruntime` mends it"),
        ("operation", "study cannot be run by ONNX Runtime (no such operation)"),
        ("numbers", "study cannot be run by ONNX Runtime (the exported graph does not give PyTorch's numbers)"),
    ],
)
def test_pytorch_predicts_where_the_runtime_cannot(request, fault, reason, tmp_path, monkeypatch, capsys):
    if fault == "package":
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
    else:
        request.getfixturevalue("runtime")
    if fault == "operation":
        monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: _raise(RuntimeError("no such operation")))
    if fault == "numbers":
        run = onnx_engine.Sessions.run
        monkeypatch.setattr(onnx_engine.Sessions, "run", lambda *given: [one + 1e-2 for one in run(*given)])
    model = network("study")
    fast = with_onnx("study", model, tmp_path / "study.safetensors")
    for _ in range(2):
        assert torch.equal(fast.predict(images(2)), model.predict(images(2)))
    assert capsys.readouterr().err == f"PyTorch predicts, which takes about twice as long: {reason}\n"
    assert not (tmp_path / "onnx").exists()


def test_a_lack_of_memory_is_left_to_the_caller(runtime, tmp_path, monkeypatch):
    """A smaller batch may mend it."""
    fast = with_onnx("study", network("study"), tmp_path / "study.safetensors")
    monkeypatch.setattr(onnx_engine.Sessions, "run", lambda *_: _raise(RuntimeError("std::bad_alloc")))
    monkeypatch.setattr(onnx_engine, "_check", lambda *_: None)
    with pytest.raises(RuntimeError) as raised:
        fast.predict(images(1))
    assert is_out_of_memory(raised.value)
    assert not fast._refused


def test_checkpoints_are_loaded_with_the_engine(tmp_path, monkeypatch):
    path, config = tmp_path / "study.safetensors", override(DEMO.study, {"infer_size": SIDE})
    checkpoints.save(path, checkpoints.build_model("study", config), "study", config)
    _, loaded = checkpoints.load_for_inference(path, "study")
    assert isinstance(loaded, OnnxModel)
    assert loaded.place == tmp_path / "study"
    assert in_pytorch(loaded) is loaded.network
    monkeypatch.setenv(onnx_engine.ENGINE, "pytorch")
    _, loaded = checkpoints.load_for_inference(path, "study")
    assert not isinstance(loaded, OnnxModel)
    assert in_pytorch(loaded) is loaded
