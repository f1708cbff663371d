"""ONNX Runtime in the place of PyTorch where a trained model predicts on the CPU: the same numbers up to rounding, in a
half to a quarter of the time.

In: a model made for inference and its checkpoint's place. Out: a model with the same `predict`. Its graphs are exported
at the first prediction into the folder `onnx` beside the checkpoint, or into memory where that cannot be written:

    <checkpoint>.<side>.json           key: hash of the weights and of what exported them; files: name -> SHA-256
    <checkpoint>.<side>.<graph>.onnx   one for each graph of onnx_graphs.py, for images of `side` pixels

On a GPU, and where ONNX Runtime cannot do it, PyTorch predicts; one line to stderr says why. SIIMCOVID_ENGINE=pytorch
in the environment asks for PyTorch always. ONNX Runtime takes as many threads as torch, see OMP_NUM_THREADS; with the
same number the same image in the same batch has the same output.
"""

import hashlib
import io
import json
import os
import sys
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from siimcovid.core.errors import OutputError
from siimcovid.core.files import atomic_path, sha256, write_json
from siimcovid.core.memory_errors import is_out_of_memory
from siimcovid.models import onnx_graphs
from siimcovid.models.onnx_graphs import Graph

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

#: In the environment: "pytorch" for PyTorch always.
ENGINE = "SIIMCOVID_ENGINE"

FOLDER = "onnx"

#: Version of the graphs: another one is exported anew.
FORMAT = 1

#: ONNX's version that is exported: PyTorch 2.5 and later write it, ONNX Runtime 1.13 and later read it.
OPSET = 17

#: An exported graph's output may differ from PyTorch's by so much, relative to the largest number of that output.
TOLERANCE = 1e-4


class ExportError(RuntimeError):
    """A graph cannot be exported, or does not give PyTorch's numbers; the message says why."""


@dataclass(frozen=True)
class Sessions:
    """A model's graphs, loaded for images of `side` pixels and so many threads."""

    side: int
    threads: int
    of_graphs: "dict[str, InferenceSession]"

    def run(self, graph: str, given: Tensor) -> list[Tensor]:
        """Compute a graph: its one input -> its outputs."""
        outputs = self.of_graphs[graph].run(None, {"given": given.contiguous().numpy()})
        return [torch.from_numpy(output) for output in outputs]


class OnnxModel(nn.Module):
    """A model whose `predict` is ONNX Runtime's on the CPU.

    Attributes:
        stage: of STAGES.
        network: the model in PyTorch, made for inference.
        place: the checkpoint without its suffix.
    """

    def __init__(self, stage: str, network: nn.Module, place: Path):
        super().__init__()
        self.stage, self.network, self.place = stage, network, place
        self._sessions: Sessions | None = None
        self._refused = False

    def __getstate__(self) -> dict[str, Any]:  # copies load the graphs themselves: sessions cannot be copied
        return {**vars(self), "_sessions": None}

    @torch.inference_mode()
    def predict(self, images: Tensor) -> Tensor | list[tuple[Tensor, Tensor]]:
        """As the network's `predict`; the network itself predicts on a GPU, and where ONNX Runtime cannot."""
        if images.device.type == "cpu" and not self._refused and is_installed():
            try:
                return onnx_graphs.predict(self.stage, self.network, self._loaded(images.shape[-1]).run, images)
            except Exception as error:  # the exporter and the runtime raise many kinds
                if is_out_of_memory(error):
                    raise
                self._refused = True
                _say(f"{self.place.name} cannot be run by ONNX Runtime ({_one_line(error)})")
        return self.network.predict(images)

    def _loaded(self, side: int) -> Sessions:
        """The graphs for images of `side` pixels, loaded once; those of another side are let go."""
        threads = torch.get_num_threads()
        if (loaded := self._sessions) is None or (loaded.side, loaded.threads) != (side, threads):
            files = exported(self.stage, self.network, self.place, side)
            loaded = Sessions(side, threads, {name: _session(file, threads) for name, file in files.items()})
            self._sessions = loaded
        return loaded


def with_onnx(stage: str, network: nn.Module, checkpoint: Path) -> nn.Module:
    """A model made for inference, as one whose predictions on the CPU are ONNX Runtime's, unless SIIMCOVID_ENGINE says
    otherwise."""
    if os.environ.get(ENGINE, "").lower() == "pytorch":
        return network
    return OnnxModel(stage, network, Path(checkpoint).with_suffix(""))


def in_pytorch(model: nn.Module) -> nn.Module:
    """The network in PyTorch of a model made for inference, for what needs its layers or gradients."""
    return model.network if isinstance(model, OnnxModel) else model


@cache  # said once
def is_installed() -> bool:
    """Whether ONNX Runtime can be imported; a line to stderr where it cannot."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError as error:
        _say(f"{_one_line(error)}; `pip install onnx onnxruntime` mends it")
        return False
    return True


def exported(stage: str, network: nn.Module, place: Path, side: int) -> dict[str, Path | bytes]:
    """Graph -> its file beside the checkpoint, exported where it is missing, damaged or of other weights; its bytes
    where no file can be written. Raises ExportError, and what torch's exporter raises."""
    folder, name = place.parent / FOLDER, f"{place.name}.{side}"
    key = _key(network, side)
    if (files := _read(folder, name, key)) is not None:
        return files
    made = {graph: _export(part) for graph, part in onnx_graphs.graphs(stage, network, side).items()}
    try:
        sums = {}
        for graph, content in made.items():
            path = folder / f"{name}.{graph}.onnx"
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
            sums[path.name] = hashlib.sha256(content).hexdigest()
        write_json(folder / f"{name}.json", {"key": key, "files": sums})
    except OutputError:  # read-only or full
        return made
    return {graph: folder / f"{name}.{graph}.onnx" for graph in made}


def _read(folder: Path, name: str, key: str) -> dict[str, Path | bytes] | None:
    """Graph -> file, where all of them are whole and of this key."""
    try:
        facts = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        if facts["key"] != key or any(sha256(folder / file) != digest for file, digest in facts["files"].items()):
            return None
        return {file.removesuffix(".onnx").removeprefix(f"{name}."): folder / file for file in facts["files"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _key(network: nn.Module, side: int) -> str:
    """Hexadecimal: the same for the same weights of the same layers, exported by the same version for the same side."""
    digest = hashlib.sha256(f"{FORMAT} {OPSET} {torch.__version__} {side} {network}".encode())
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _export(graph: Graph) -> bytes:
    """A graph in ONNX's format, with a free first axis. Raises ExportError where it does not give PyTorch's numbers."""
    target, example = io.BytesIO(), graph.example
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, of sizes that are constants here; and of this exporter's age
        torch.onnx.export(
            graph.module.eval(),
            (example,),
            target,
            dynamo=False,  # the other exporter needs a package more and takes four times as long
            opset_version=OPSET,
            input_names=["given"],
            dynamic_axes={"given": {0: "batch"}},
        )
        _check(graph, target.getvalue())
    return target.getvalue()


def _check(graph: Graph, content: bytes) -> None:
    """Raise ExportError unless an exported graph gives PyTorch's numbers for one more row than its example's."""
    shape, floating = (len(graph.example) + 1, *graph.example.shape[1:]), graph.example.is_floating_point()
    generator = torch.Generator().manual_seed(0)
    numbers = torch.rand(shape, generator=generator)
    given = numbers if floating else (numbers * 255).to(graph.example.dtype)
    wanted = graph.module(given)
    found = Sessions(0, 0, {"": _session(content, torch.get_num_threads())}).run("", given)
    for one, other in zip((wanted,) if torch.is_tensor(wanted) else wanted, found, strict=True):
        limit = TOLERANCE * float(one.abs().max())
        if one.shape != other.shape or not float((one - other).abs().max()) <= limit:
            raise ExportError("the exported graph does not give PyTorch's numbers")


def _session(file: Path | bytes, threads: int) -> "InferenceSession":
    """Load a graph for the CPU with so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors alone: they are raised too
    # a thread without work sleeps, since torch's own threads and other processes want the cores
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    content = file if isinstance(file, bytes) else str(file)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _say(reason: str) -> None:
    print(f"PyTorch predicts, which takes about twice as long: {reason}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
