"""Modules that docstrings and pages name are there: a name that was left behind sends the reader astray."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("utils", "tests", "docs")
MODULES = {path.name for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}

#: Python's own hook, which the kernel's rehearsal writes where it runs.
OTHERS = {"sitecustomize.py"}


def texts(path: Path) -> str:
    """A page, or the docstrings and comments of a module."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    parts = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, parts)]
    return "\n".join([*docstrings, *re.findall(r"#.*", text)])


@pytest.mark.parametrize("folder", [*FOLDERS, "README.md", "CONTRIBUTING.md"])
def test_every_module_that_is_named_exists(folder):
    paths = [path for end in ("py", "md") for path in (ROOT / folder).rglob(f"*.{end}")]
    paths = paths or [ROOT / folder]
    named = [(path, name) for path in paths for name in re.findall(r"(?<![\w*<>{])([a-z]\w*\.py)\b", texts(path))]
    assert [(str(path.relative_to(ROOT)), name) for path, name in named if name not in MODULES | OTHERS] == []
