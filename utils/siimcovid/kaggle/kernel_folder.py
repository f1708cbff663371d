"""The kernel's folder: the notebook with the parameters that fit the weights, and its kernel-metadata.json."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from siimcovid.core.errors import InputError
from siimcovid.core.files import write_json, write_text
from siimcovid.kaggle.kaggle_metadata import KERNEL_FILE, kernel_metadata, read_json


def write_kernel(notebook: Path, template: Path, owner: str, parameters: Mapping[str, str], target: Path) -> None:
    """Write the notebook and its metadata into `target`; `parameters` override those of the notebook's own cell."""
    content = with_parameters(read_json(notebook), parameters, notebook)
    write_text(target / notebook.name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_json(target / KERNEL_FILE, kernel_metadata(template, owner, notebook.name))


def with_parameters(notebook: dict[str, Any], parameters: Mapping[str, str], name: Path | str) -> dict[str, Any]:
    """The notebook with a cell of assignments after the one tagged `parameters`, as papermill would inject it."""
    cells = notebook.get("cells", [])
    places = [at for at, cell in enumerate(cells) if "parameters" in cell.get("metadata", {}).get("tags", ())]
    if len(places) != 1:
        raise InputError(f"{name} must have one cell tagged 'parameters', not {len(places)}")
    defaults = "".join(cells[places[0]]["source"])
    unknown = [key for key in parameters if f"{key} = " not in defaults]
    if unknown:
        raise InputError(f"{name} has no parameter {', '.join(unknown)}")
    cell = {
        "cell_type": "code",
        "execution_count": None,
        "id": "uploaded",
        "metadata": {"tags": ["injected-parameters"]},
        "outputs": [],
        "source": "\n".join(
            ["# what fits the weights of this upload", *(f"{key} = {value!r}" for key, value in parameters.items())]
        ),
    }
    changed = copy.deepcopy(notebook)
    changed["cells"].insert(places[0] + 1, cell)
    return changed
