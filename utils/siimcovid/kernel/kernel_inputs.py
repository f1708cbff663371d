"""The kernel's inputs, found and read even where they are damaged: what cannot be used is replaced and recorded.

In: the checked parameters. Out: `KernelInputs`: the competition's index and sample, and the folders of weights. Every
fault goes through `Recovery.recover`, so with STRICT it raises.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from siimcovid.core import paths, tables
from siimcovid.core.errors import InputError
from siimcovid.core.files import write_text
from siimcovid.core.labels import STUDY_LABELS
from siimcovid.core.overrides import override
from siimcovid.core.presets import load_preset
from siimcovid.core.stage_names import stage_of
from siimcovid.data import folds
from siimcovid.data.competition import Competition, index_table, load
from siimcovid.data.dicom_headers import image_id_of
from siimcovid.evaluation import submission_csv
from siimcovid.kernel.notebook_parameters import Parameters
from siimcovid.kernel.recovery import Recovery
from siimcovid.kernel.replanning import Planner

#: Where a competition folder with repaired ids is laid out, in the run's folder.
REPAIRED = "repaired"

SAMPLE = "sample_submission.csv"
KINDS = (submission_csv.STUDY, submission_csv.IMAGE)


def no_competition(folder: Path = Path()) -> Competition:
    """A competition without images and ids."""
    sample = pd.DataFrame(columns=["id", "PredictionString"], dtype=str)
    return Competition(folder, index_table([]), sample, ())


@dataclass
class KernelInputs:
    """What the run reads.

    source: the competition folder that was found, also where `competition` was read from a repaired copy of it.
    weights: the first weights folder; None without any.
    verify: whether a manifest vouches for the weights.
    models: model -> the weights folder that its trained checkpoint is loaded from, see weights_sources.py.
    starts: the weights folders that training starts from, in the order in which they are asked.
    earlier: the mounted weights folders of earlier runs' outputs, the latest session first.
    """

    competition: Competition = field(default_factory=no_competition)
    source: Path = Path()
    weights: Path | None = None
    verify: bool = True
    models: Mapping[str, Path] = field(default_factory=dict)
    starts: list[Path] = field(default_factory=list)
    earlier: list[Path] = field(default_factory=list)


def read_competition(inputs: KernelInputs, parameters: Parameters, recovery: Recovery) -> None:
    """Read the competition folder; where its sample cannot be used, the ids come from test/."""
    explicit, folder = parameters.competition_dir, None
    with recovery.recover("index", "a folder that holds test/ or the sample is taken, if there is one"):
        folder = paths.find_competition(explicit)
    folder = folder or _any_folder(explicit)
    if folder is None:
        recovery.degrade("index", "no competition folder was found", "a submission of the header alone")
        return
    inputs.source = folder
    sample = None
    with recovery.recover("index", "its ids are completed from the names of the folders and files in test/"):
        sample = _sound_sample(folder)
    if sample is None:
        with recovery.recover("index", "a submission of the header alone"):
            folder = repair(folder, parameters.output_dir / REPAIRED)
            sample = _sound_sample(folder)
    splits = [("train", "test"), ("test",)] if parameters.mode == "finetune" else [("test",)]
    for wanted in splits:
        with recovery.recover("index", "without the train part" if "train" in wanted else "without any image"):
            inputs.competition = load(folder, splits=wanted)
            return
    if sample is not None:
        inputs.competition = Competition(folder, inputs.competition.images, sample, ())


def _any_folder(explicit: Path | None) -> Path | None:
    """`explicit` where it is a folder, else the first one on Kaggle's mounts that holds a test/ of folders."""
    if explicit:
        return explicit if explicit.is_dir() else None
    found = (path.parent for depth in ("*", "*/*", "*/*/*") for path in paths.KAGGLE_INPUT.glob(f"{depth}/test"))
    return next((folder for folder in found if next((folder / "test").glob("*/*"), None)), None)


def _sound_sample(folder: Path) -> pd.DataFrame:
    """The sample submission. Raises InputError where one of its ids is repeated, or of no kind."""
    path = tables.find_table(folder, SAMPLE)
    if path is None:
        raise InputError(f"no {SAMPLE} in {folder}")
    sample = tables.read_csv(path, ("id", "PredictionString"))
    ids = sample["id"]
    if sample.empty:
        raise InputError(f"{path} holds no ids")
    if list(sample.columns) != ["id", "PredictionString"]:
        raise InputError(f"{path} has the columns {', '.join(sample.columns)} instead of id and PredictionString")
    if strange := [name for name in ids if not _is_id(name)]:
        raise InputError(f"{path} has ids that end neither in _study nor in _image: {tables.some(strange)}")
    if ids.duplicated().any():
        raise InputError(f"{path} repeats ids: {tables.some(ids[ids.duplicated()].tolist())}")
    return sample


def _is_id(text: str) -> bool:
    stem = text.removesuffix(submission_csv.STUDY).removesuffix(submission_csv.IMAGE)
    return text.endswith(KINDS) and stem.isprintable() and bool(stem) and not set(stem) & set('",')


def repair(folder: Path, repaired: Path) -> Path:
    """Lay out `repaired`: test/ and train/ as they are, and a sample with an id for every study and image of test/.

    Ids of the damaged sample that are whole come first, in its order. Raises InputError where there is none of either.
    """
    ids = dict.fromkeys(_whole_ids(folder))
    images = filter(None, map(image_id_of, sorted((folder / "test").glob("*/*/[!.]*"))))
    studies = sorted(path.name for path in (folder / "test").glob("*") if path.is_dir())
    ids |= dict.fromkeys(f"{study}{submission_csv.STUDY}" for study in studies)
    ids |= dict.fromkeys(f"{image}{submission_csv.IMAGE}" for image in images)
    if not ids:
        raise InputError(f"{folder} has neither ids in {SAMPLE} nor images in test/")
    shutil.rmtree(repaired, ignore_errors=True)
    write_text(repaired / SAMPLE, "\n".join(["id,PredictionString", *(f"{name}," for name in ids)]) + "\n")
    for entry in folder.iterdir():
        if not entry.name.startswith(SAMPLE):
            (repaired / entry.name).symlink_to(entry.absolute())
    return repaired


def _whole_ids(folder: Path) -> Iterable[str]:
    """The ids of a damaged sample that can be read and are of one of the two kinds."""
    try:
        text = (folder / SAMPLE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    ids = [line.split(",")[0].strip() for line in text.splitlines()[1:] if "," in line]
    return [name for name in ids if _is_id(name) and "�" not in name]


def find_weights(inputs: KernelInputs, parameters: Parameters, recovery: Recovery) -> None:
    """Find the weights folders; for fine-tuning `small` without any to start from, one from the installed package."""
    explicit = parameters.weights_dir
    with recovery.recover("weights", "whole files in the folder are taken unverified, if there are any"):
        folders = _found(parameters)
        from siimcovid.kernel import weights_sources

        folders = weights_sources.in_order(folders, explicit)
        inputs.weights = folders[0]
        usable = _with_manifest(folders, recovery)
        inputs.weights = usable[0]
        inputs.earlier = [folder for folder in usable if weights_sources.is_output(folder) and folder != explicit]
        inputs.starts = [folder for folder in usable if folder not in inputs.earlier]
        if not inputs.starts and parameters.mode == "finetune":
            inputs.starts = _other_starts(parameters, inputs.earlier)
        inputs.models = weights_sources.model_folders(usable, _pass_over(recovery))
        if len({*usable, *inputs.starts}) > 1:
            _print_sources(inputs, parameters)
        return
    folder = inputs.weights or explicit or Path("/nowhere")
    inputs.weights, inputs.verify = (folder, False) if any(folder.glob("*.safetensors")) else (None, True)
    inputs.models, inputs.starts, inputs.earlier = {}, [], []


def _found(parameters: Parameters) -> list[Path]:
    """The folders of weights. Raises InputError where there are none, and none can be made from a package."""
    try:
        return paths.find_all_weights(parameters.weights_dir, paths.KAGGLE_INPUT)
    except InputError:
        if parameters.weights_dir or not _from_package(parameters):
            raise
        return [_import_weights(parameters)]


def _from_package(parameters: Parameters) -> bool:
    """Whether an installed package has the weights that training starts from."""
    return parameters.mode == "finetune" and parameters.preset.rcnn.backbone == "efficientnet_lite0"


def _import_weights(parameters: Parameters) -> Path:
    from siimcovid.models import published_weights

    return published_weights.import_weights("efficientnet_lite0", None, parameters.output_dir / "imagenet").parent


def _other_starts(parameters: Parameters, earlier: list[Path]) -> list[Path]:
    """Where training starts from when only earlier outputs are mounted.

    A single run trains their models further. A session starts from what the first session started from, or it would
    train other models: weights from an installed package, or none.
    """
    if parameters.sessions == 1:
        return earlier
    return [_import_weights(parameters)] if _from_package(parameters) else []


def _with_manifest(folders: list[Path], recovery: Recovery) -> list[Path]:
    """The folders whose manifest can be read; the others are reported. Raises InputError where none is left."""
    from siimcovid.models import weights_manifest

    usable = []
    for number, folder in enumerate(folders):
        try:
            weights_manifest.read_manifest(folder)
            usable.append(folder)
        except InputError as error:
            if recovery.strict or (not usable and number == len(folders) - 1):
                raise
            recovery.degrade("weights", str(error), "the other weights folders")
    return usable


def _pass_over(recovery: Recovery) -> Callable[[InputError], None]:
    """A function that reports a damaged file in whose place another folder's is taken; with `strict` it raises it."""

    def report(error: InputError) -> None:
        with recovery.recover("weights", "the file of another folder"):
            raise error

    return report


def _print_sources(inputs: KernelInputs, parameters: Parameters) -> None:
    """Print which file comes from which folder."""
    from siimcovid.kernel import weights_sources

    preset = parameters.preset
    models = {name: folder for name, folder in inputs.models.items() if stage_of(name) in preset.stages}
    lines = weights_sources.model_lines(models)
    if parameters.mode == "finetune":
        lines += weights_sources.start_lines(inputs.starts, {stage: getattr(preset, stage) for stage in preset.stages})
    print("\n".join(lines))


def read_fitted_ensemble(
    inputs: KernelInputs, planner: Planner, parameters: Parameters, recovery: Recovery
) -> Path | None:
    """Take over the ensemble's fitted numbers that lie beside the weights; OVERRIDES go before them.

    Returns the file that they come from; None where the preset's own stay.
    """
    with recovery.recover("weights", "the preset's own numbers combine the models"):
        if inputs.weights is None or not inputs.verify:
            return None
        from siimcovid.inference import fitted_numbers

        for folder in _folders_of_numbers(inputs, parameters):
            if numbers := fitted_numbers.read(folder):
                planner.request(load_preset(parameters.preset.name, {**numbers, **parameters.overrides}))
                print(f"The models are combined by the numbers of {folder / fitted_numbers.FILE}.")
                return folder / fitted_numbers.FILE
    return None


def _folders_of_numbers(inputs: KernelInputs, parameters: Parameters) -> list[Path]:
    """Where numbers may lie that were fitted to the models: those of one folder, or those that training starts from.

    Models of several folders were never fitted together.
    """
    if parameters.mode == "finetune":
        return inputs.starts
    used = {folder for name, folder in inputs.models.items() if stage_of(name) in parameters.preset.stages}
    return [*used] if len(used) == 1 else []


def ask_for_study_models_given(inputs: KernelInputs, planner: Planner) -> None:
    """Where nothing is trained, ask for no more study models than the weights hold: others may have trained fewer."""
    wanted, given = planner.requested, sum(stage_of(name) == "study" for name in inputs.models)
    if not planner.trains and wanted.members == 1 and 0 < given < wanted.study_models:
        planner.request(override(wanted, {"study_models": given}))


def ask_for_members_with_a_fold(images: pd.DataFrame, planner: Planner) -> None:
    """Ask for no more members of a fold ensemble than there are patients in the train images, and say so."""
    wanted = planner.requested
    members = max(1, folds.at_most(images[images["study_label"].isin(STUDY_LABELS)], wanted.members))
    if planner.trains and members < wanted.members:
        planner.request(override(wanted, {"members": members}))
        print(f"Of each stage {members} models are trained, not {wanted.members}: there are no more patients.")


def priors(images: pd.DataFrame) -> submission_csv.Priors:
    """Frequencies of the train part of an index; those of the real competition where it has no train part."""
    if images.loc[images["split"] == "train", "study_label"].notna().any():
        return submission_csv.train_priors(images)
    return submission_csv.COMPETITION_PRIORS
