"""What earlier sessions of a training left for this one: finished models to take over, paused trainings to go on with.

In: `weights/` of earlier runs' outputs, mounted and read-only (KernelInputs.earlier, the latest session first). Out:
copies in this run's weights/, or the folder from which a training resumes. A model counts only where its training's
identity (training/training_identity.py) is the one that this run would train.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from siimcovid.core.files import atomic_path, link
from siimcovid.core.stage_names import stage_of
from siimcovid.kernel import stage_models, weights_sources
from siimcovid.kernel.run import Run
from siimcovid.training.training_identity import configuration_identity, differences, is_finished

#: Endings of the files that belong to a finished model; the checkpoint is the last, since it says that all are there.
ENDINGS = (".metrics.csv", ".json", ".safetensors")


@dataclass(frozen=True)
class Earlier:
    """What there is for a model.

    done: its checkpoint is finished: this run's own, or the copy that was made. resume_from: the folder in which its
    training paused, or None.
    """

    done: bool = False
    resume_from: Path | None = None


def look_up(run: Run, name: str, identity: Mapping[str, Any]) -> Earlier:
    """Take over a finished model of this identity, or find where its training paused; print what was found.

    A paused training is looked for where no state of it lies in this run's own folder, which goes first.
    """
    own, stage = stage_models.own(run, name), stage_of(name)
    own_state = own.with_name(f"{stage}.resume.pt").is_file()
    if is_finished(own, identity) and not own_state:
        return Earlier(done=True)
    places = list(_places(run, name))
    for folder in places:
        if is_finished(folder / own.name, identity):
            _copy(folder, own)
            if own_state:  # as training_loop.py does with a state that it does not go on with
                own.with_name(f"{stage}.resume.pt").replace(own.with_name(f"{stage}.resume.old.pt"))
            print(f"{name} is the finished one of {folder}; it is not trained again.")
            return Earlier(done=True)
    if own_state:
        return Earlier()
    for folder in places:
        if not (folder / f"{stage}.resume.pt").is_file():
            continue
        facts = weights_sources.facts_of(folder / own.name)
        if not facts:  # ended before there was a checkpoint: the training checks the state's identity
            return Earlier(resume_from=folder)
        if not differences(facts.get("identity") or {}, identity):
            print(f"The training of {name} goes on from {folder}, after epoch {len(facts.get('epochs') or ())}.")
            return Earlier(resume_from=folder)
    for folder in places:
        if identity_there := weights_sources.facts_of(folder / own.name).get("identity"):
            names = ", ".join(differences(identity_there, identity))
            print(f"{name} is trained anew: the one in {folder} is of a training with other settings ({names}).")
            break
    return Earlier()


def trained_epochs(run: Run) -> dict[str, int]:
    """Model -> epochs that need no training any more, as far as that is known before the images are prepared.

    It is for the plan only: a model whose images or start turn out to be others is trained all the same.
    """
    epochs = {}
    for name in run.plan.models(run.plan.stages) if run.mode == "finetune" else ():
        stage = stage_of(name)
        own = stage_models.own(run, name)
        for folder in (own.parent, *_places(run, name)):
            facts = weights_sources.facts_of(folder / own.name)
            if not (folder / own.name).is_file() or not _same_settings(facts, run, name):
                continue
            done = run.plan.epochs[stage] if facts.get("finished") is True else len(facts.get("epochs") or ())
            epochs[name] = max(done, epochs.get(name, 0))
    return epochs


def finished_checkpoint(run: Run, stage: str) -> Path | None:
    """A finished checkpoint of a stage of which no model needs training any more; None where one does, see above."""
    epochs, wanted = trained_epochs(run), run.plan.epochs.get(stage, 0)
    if not wanted or any(epochs.get(name, 0) < wanted for name in run.plan.models([stage])):
        return None
    own = stage_models.own(run, stage)
    paths = [folder / own.name for folder in (own.parent, *_places(run, stage))]
    done = (path for path in paths if path.is_file() and not weights_sources.is_unfinished(path))
    return next((path for path in done if _same_settings(weights_sources.facts_of(path), run, stage)), None)


def _same_settings(facts: Mapping[str, Any], run: Run, name: str) -> bool:
    identity = facts.get("identity")
    wanted = configuration_identity(stage_of(name), stage_models.preset_of(run, name))
    return isinstance(identity, dict) and not differences({key: identity.get(key) for key in wanted}, wanted)


def _places(run: Run, name: str) -> Iterator[Path]:
    """The folders in which earlier sessions trained a model."""
    inside = stage_models.own(run, name).parent.relative_to(run.folder / weights_sources.OUTPUT_NAME)
    for folder in run.inputs.earlier:
        if (folder / inside).is_dir():
            yield folder / inside


def _copy(folder: Path, own: Path) -> None:
    """Give the files of a finished model a place in this run's weights."""
    for ending in ENDINGS:
        source = folder / f"{own.stem}{ending}"
        if source.is_file():
            with atomic_path(own.with_name(source.name)) as temporary:
                link(source, temporary)
