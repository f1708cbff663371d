"""The layers of the package: `lint-imports` finds no import against them, and finds one that is added."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess:
    """Run import-linter on the package in `folder`/utils by `folder`/pyproject.toml."""
    pytest.importorskip("importlinter")
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    environment = {"PYTHONPATH": str(folder / "utils"), "PATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def test_no_import_goes_against_the_layers():
    done = lint(REPOSITORY)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("evaluation/report_tables.py", "from siimcovid.inference import ensemble"),
        ("reporting/run_folder.py", "from siimcovid.kaggle import rehearsal"),
        ("synthetic/canvas.py", "from siimcovid.models import backbone"),
        ("core/files.py", "def lazily():\n    import torch\n\n    return torch"),
    ],
)
def test_an_import_against_the_layers_is_found(tmp_path, module, line):
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(REPOSITORY / "utils", tmp_path / "utils", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "utils" / "siimcovid" / module).open("a") as stream:
        stream.write(f"\n\n{line}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert "siimcovid." + module.removesuffix(".py").replace("/", ".") in done.stdout
