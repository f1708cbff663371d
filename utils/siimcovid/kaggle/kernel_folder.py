"""A kernel's folder: a notebook with its parameters, and its kernel-metadata.json.

There may be several kernels of one owner, told apart by the ending of their slug and folder: none for the kernel that
does everything in one run, "1", "2" … for the sessions of a longer training, "submit" for the one that predicts with
what the sessions trained, "smoke" for the short one that looks at the machine, "pre-1", "pre-2" … for sessions that
pretrain on other data sets.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json, write_text
from siimcovid.kaggle import KERNEL
from siimcovid.kaggle.kaggle_metadata import KERNEL_FILE, PRETRAIN, is_pretraining, kernel_metadata, read_json

SUBMIT, SMOKE = "submit", "smoke"


@dataclass(frozen=True)
class Kernel:
    """One kernel: the ending of its name, the parameters of its notebook, and the kernels whose output it mounts."""

    ending: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # beside those that fit the weights
    earlier: Sequence[str] = ()  # their endings

    @property
    def folder(self) -> str:
        """The folder's name beside the three datasets."""
        return folder_name(self.ending)


def folder_name(ending: str) -> str:
    """The folder of the kernel with this ending, beside the three datasets."""
    return f"{KERNEL}-{ending}" if ending else KERNEL


def session_kernels(number: int, sessions: int | None = None, before: Sequence[str] = ()) -> tuple[Kernel, Kernel]:
    """The kernel of a training session (1, 2 …), and the one that submits what was trained up to it.

    Both mount the outputs of the sessions before them, the latest first. `sessions` is how many are planned, 2 or more;
    with more than one, no epoch is cut to fit the hours. before: endings of kernels that pretrained, whose weights the
    training starts from.
    """
    planned = max(2, number, sessions or 0)
    if number < 1:
        raise InputError(f"SESSION must be 1 or more, not {number}")
    done = [str(n) for n in range(number, 0, -1)]
    training = Kernel(str(number), {"MODE": "finetune", "SESSIONS": planned}, [*done[1:], *before])
    return training, Kernel(SUBMIT, {"MODE": "infer"}, done)


def pretraining_kernel(number: int) -> Kernel:
    """The kernel of a pretraining session (1, 2 …), which goes on with what those before it left."""
    if number < 1:
        raise InputError(f"PRETRAIN must be 1 or more, not {number}")
    return Kernel(f"{PRETRAIN}-{number}", earlier=[f"{PRETRAIN}-{n}" for n in range(number - 1, 0, -1)])


def built_pretraining(bundles: Path) -> list[str]:
    """The endings of the pretraining kernels in the bundles' folder, the latest first."""
    folders = [path.name for path in bundles.glob(f"{folder_name(PRETRAIN)}-*") if (path / KERNEL_FILE).is_file()]
    numbers = [int(number) for name in folders if (number := name.rpartition("-")[2]).isdigit()]
    return [f"{PRETRAIN}-{number}" for number in sorted(numbers, reverse=True)]


def write_kernel(
    notebook: Path,
    template: Path,
    owner: str,
    parameters: Mapping[str, Any],
    target: Path,
    kernel: Kernel | None = None,
) -> None:
    """Write the notebook and its metadata into `target`; `parameters` override those of the notebook's own cell."""
    kernel = kernel or Kernel()
    source = read_json(notebook)
    if kernel.ending == SMOKE:
        content = smoke_notebook(source, notebook, parameters)
    elif is_pretraining(kernel.ending):
        content = pretraining_notebook(source, notebook, parameters)
    else:
        content = with_parameters(source, {**parameters, **kernel.parameters}, notebook)
    write_text(target / notebook.name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_json(target / KERNEL_FILE, kernel_metadata(template, owner, notebook.name, kernel.ending, kernel.earlier))


def with_parameters(notebook: dict[str, Any], parameters: Mapping[str, Any], name: Path | str) -> dict[str, Any]:
    """The notebook with a cell of assignments after the one tagged `parameters`, as papermill would inject it."""
    cells = notebook.get("cells", [])
    places = [at for at, cell in enumerate(cells) if "parameters" in cell.get("metadata", {}).get("tags", ())]
    if len(places) != 1:
        raise InputError(f"{name} must have one cell tagged 'parameters', not {len(places)}")
    defaults = "".join(cells[places[0]]["source"])
    unknown = [key for key in parameters if f"{key} = " not in defaults]
    if unknown:
        raise InputError(f"{name} has no parameter {', '.join(unknown)}")
    lines = ["# what fits the weights of this upload", *(f"{key} = {value!r}" for key, value in parameters.items())]
    cell = code_cell("uploaded", "\n".join(lines), ["injected-parameters"])
    changed = copy.deepcopy(notebook)
    changed["cells"].insert(places[0] + 1, cell)
    return changed


def smoke_notebook(notebook: dict[str, Any], name: Path | str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook of two cells: the kernel's own that finds the package, and the smoke test."""
    call = (
        "from siimcovid.kaggle.smoke_test import smoke_test\n\n"
        f"result = smoke_test(preset={parameters.get('PRESET', 'small')!r}, output_dir='.')"
    )
    return _short_notebook(notebook, name, "smoke", call)


def pretraining_notebook(notebook: dict[str, Any], name: Path | str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A notebook of two cells: the kernel's own that finds the package, and the session of pretraining."""
    call = (
        "from siimcovid.kernel.pretraining_session import pretrain\n\n"
        f"table = pretrain(preset={parameters.get('PRESET', 'best')!r}, output_dir='.', hours=9.0)"
    )
    return _short_notebook(notebook, name, "pretrain", call)


def _short_notebook(notebook: dict[str, Any], name: Path | str, title: str, call: str) -> dict[str, Any]:
    sources = ["".join(cell["source"]) for cell in notebook.get("cells", []) if cell["cell_type"] == "code"]
    first = [source for source in sources if "install_wheels" in source]
    if len(first) != 1:
        raise InputError(f"{name} must have one cell that calls install_wheels, not {len(first)}")
    cells = [code_cell("package", first[0]), code_cell(title, call)]
    return {key: value for key, value in notebook.items() if key != "cells"} | {"cells": cells}


def code_cell(name: str, source: str, tags: Sequence[str] = ()) -> dict[str, Any]:
    """A code cell that was not run."""
    metadata = {"tags": list(tags)} if tags else {}
    facts = {"cell_type": "code", "execution_count": None, "id": name, "metadata": metadata, "outputs": []}
    return facts | {"source": source}
