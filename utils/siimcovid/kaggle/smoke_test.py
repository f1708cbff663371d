"""The smoke kernel: in a few minutes, what the machine is, whether every stage runs on it, and what nine hours hold.

In: the mounted competition, weights and wheels. Out: printed lines and `profile.json` in the output folder:

    preset     the preset's name
    machine    {python, torch, cuda, libraries: {name: version}, processors, memory_gb, gpus: [{name, …}], device}
    stages     {stage: {train_images_per_second, predict_images_per_second, memory_gb, batch, size} or {error}}
    plan       {hours, predicted_seconds, steps: [{step, predicted_seconds}], dropped, degraded}

Every stage goes through one forward pass, backward pass and update on random images, in half precision where a GPU runs
it, and one prediction; then the kernel's own steps measure the first real images and make the plan.
"""

import importlib.metadata
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from siimcovid.core.device import installed_gpus, try_gpu
from siimcovid.core.files import write_json
from siimcovid.core.labels import NIH_FINDINGS, STUDY_LABELS
from siimcovid.core.presets import load_preset
from siimcovid.core.processes import processors
from siimcovid.core.stage_names import SUBMISSION_STAGES
from siimcovid.models import checkpoints

LIBRARIES = ("torchvision", "numpy", "pandas", "scikit-learn", "opencv-python-headless", "accelerate", "pydicom")
LIBRARIES += ("albumentations", "numba", "yolov5", "ultralytics", "ensemble-boxes", "python-gdcm", "dicomsdl", "pebble")

#: Timed repetitions after the first, which compiles and allocates.
REPETITIONS = 3


def smoke_test(
    preset: str = "small",
    output_dir: Path | str = ".",
    competition_dir: str = "",
    weights_dir: str = "",
    hours: float = 9.0,
    overrides: dict[str, Any] | None = None,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Look at the machine, try every stage on it, and plan `hours`; returns what profile.json holds.

    A stage that fails is reported with its error, and the others go on. The arguments are the notebook's parameters.
    """
    output = Path(output_dir)
    output.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"preset": preset, "machine": describe_machine(), "stages": {}, "plan": None}
    for line in machine_lines(result["machine"]):
        log(line)
    device = torch.device(result["machine"]["device"])
    config = load_preset(preset, overrides)
    for stage in SUBMISSION_STAGES:
        result["stages"][stage] = try_stage(stage, getattr(config, stage), device)
        log(stage_line(stage, result["stages"][stage]))
        write_json(output / "profile.json", result)
    result["plan"] = plan_hours(preset, output, competition_dir, weights_dir, hours, overrides)
    for line in plan_lines(result["plan"]):
        log(line)
    write_json(output / "profile.json", result)
    return result


def describe_machine() -> dict[str, Any]:
    """Versions, processors, memory and GPUs; `device` is the first GPU that can multiply, else "cpu"."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    gpus = []
    for number in range(installed_gpus()):
        properties = torch.cuda.get_device_properties(number)
        capability = f"sm_{properties.major}{properties.minor}"
        gpu = {"name": properties.name, "memory_gb": round(properties.total_memory / 1e9, 1), "capability": capability}
        gpus.append(gpu | {"error": _gpu_error(number)})
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "libraries": versions,
        "processors": processors(),
        "memory_gb": _memory_gb(),
        "gpus": gpus,
        "device": next((f"cuda:{number}" for number, gpu in enumerate(gpus) if not gpu["error"]), "cpu"),
    }


def _gpu_error(number: int) -> str | None:
    """Why a GPU fails its first operation; None where it does not. A P100 is "available" and fails here."""
    try:
        try_gpu(number)
    except Exception as error:  # a driver's errors are of many classes
        return " ".join(str(error).split())[:300]
    return None


def _memory_gb() -> float | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return round(int(lines[0].split()[1]) * 1024 / 1e9, 1)


def try_stage(stage: str, config: Any, device: torch.device) -> dict[str, Any]:
    """Train and predict on random images of the stage's own size and batch: images a second, and memory on a GPU."""
    batch_size, predict_size = config.training.batch, config.infer_batch
    facts: dict[str, Any] = {"size": config.size, "batch": batch_size, "infer_size": config.infer_size}
    try:
        torch.manual_seed(0)
        model = checkpoints.build_model(stage, config).to(device)
        seconds = _seconds(_training_step(model.train(), random_batch(batch_size, config.size, device), device), device)
        facts["train_images_per_second"] = round(batch_size / seconds, 2)
        images = random_batch(predict_size, config.infer_size, device)["images"]
        seconds = _seconds(lambda: model.eval().predict(images), device)
        facts["predict_images_per_second"] = round(predict_size / seconds, 2)
        if device.type == "cuda":
            facts["memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
            torch.cuda.reset_peak_memory_stats(device)
    except Exception as error:
        facts["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return facts


def _training_step(model: torch.nn.Module, batch: dict[str, Any], device: torch.device) -> Callable[[], Any]:
    """A function that takes one step of training, as the training loop does it: fp16 with a scaled loss on a GPU."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-6)
    half = device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.float16, enabled=half):
            loss = sum(model(batch).values())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def _seconds(function: Callable[[], Any], device: torch.device) -> float:
    """Mean seconds of a call, the first left out."""
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(REPETITIONS):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / REPETITIONS


def random_batch(count: int, side: int, device: torch.device) -> dict[str, Any]:
    """A batch as the loader makes it: uint8 images (count, 1, side, side), a box on every other, labels in turn."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, side, side), dtype=torch.uint8, generator=generator)
    box = torch.tensor([[0.1, 0.2, 0.4, 0.8]], device=device)
    return {
        "images": images.to(device),
        "boxes": [box if number % 2 == 0 else box[:0] for number in range(count)],
        "study_labels": torch.arange(count, device=device) % len(STUDY_LABELS),
        "findings": torch.zeros(count, len(NIH_FINDINGS), device=device),
        "image_ids": [str(number) for number in range(count)],
    }


def plan_hours(
    preset: str,
    output: Path,
    competition_dir: str,
    weights_dir: str,
    hours: float,
    overrides: dict[str, Any] | None,
) -> dict[str, Any]:
    """What the kernel's own plan for MODE finetune would be, by measuring the first images of the competition."""
    from siimcovid.kernel import steps

    run = steps.start(competition_dir, weights_dir, str(output), preset, "finetune", hours, overrides)
    steps.plan(run)
    return {
        "hours": hours,
        "predicted_seconds": run.record.predicted_total,
        "steps": [{key: row[key] for key in ("step", "predicted_seconds")} for row in run.record.step_table()],
        "dropped": list(run.record.dropped),
        "degraded": [f"{entry['step']}: {entry['reason']}" for entry in run.degraded],
    }


def machine_lines(machine: dict[str, Any]) -> list[str]:
    """The machine in a few lines."""
    lines = [f"Python {machine['python']}, torch {machine['torch']} (CUDA {machine['cuda']})"]
    lines.append(", ".join(f"{name} {version or 'MISSING'}" for name, version in machine["libraries"].items()))
    lines.append(f"{machine['processors']} processors, {machine['memory_gb']} GB of memory")
    for gpu in machine["gpus"]:
        state = f"CANNOT BE USED: {gpu['error']}" if gpu["error"] else "works"
        lines.append(f"{gpu['name']}, {gpu['memory_gb']} GB, {gpu['capability']}: {state}")
    return [*lines, f"device: {machine['device']}"]


def stage_line(stage: str, facts: dict[str, Any]) -> str:
    """A stage in a line."""
    if "error" in facts:
        return f"{stage}: FAILED: {facts['error']}"
    memory = f", {facts['memory_gb']} GB" if "memory_gb" in facts else ""
    return (
        f"{stage}: trains {facts['train_images_per_second']:g} images/s at {facts['size']} pixels, batch "
        f"{facts['batch']}; predicts {facts['predict_images_per_second']:g} images/s at {facts['infer_size']}{memory}"
    )


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The plan, a line a step."""
    lines = [f"A run of {plan['hours']:g} hours would take {plan['predicted_seconds'] or 0:.0f} s:"]
    for row in plan["steps"]:
        if row["predicted_seconds"] is not None:
            lines.append(f"  {row['step']:<28}{row['predicted_seconds']:>9.1f} s")
    lines += [f"dropped: {line}" for line in plan["dropped"]]
    return lines + [f"DEGRADED {line}" for line in plan["degraded"]]
