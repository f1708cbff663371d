"""The notebook's code cells, run one after the other in this process: its own path, without the seconds of a kernel."""

from collections.abc import Callable
from pathlib import Path

import nbformat
from matplotlib.figure import Figure

from siimcovid.reporting.figures import notebook_figures

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "siim_covid19.ipynb"


def run_cells(**parameters) -> dict:
    """Execute the cells with these parameters; returns their namespace. What a cell raises is raised."""
    names: dict = {"__name__": "notebook"}
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if not line.startswith("%")]  # IPython's own commands
            exec(compile("\n".join(lines), f"cell {cell.id}", "exec"), names)
            if "parameters" in cell.metadata.get("tags", []):
                names.update(parameters)
    return names


def draw_nothing(set_attribute: Callable) -> None:
    """Spare the seconds that the notebook's pictures take, which other tests look at."""
    for name in ("gallery", "learning_curves", "step_times"):
        set_attribute(notebook_figures, name, lambda *_: Figure((1, 1)))
    for name in ("data_charts", "evaluation_charts"):
        set_attribute(notebook_figures, name, lambda *_: [])
    set_attribute(notebook_figures, "sample_images", lambda *_: None)
    set_attribute(notebook_figures, "display", lambda *_: None)
