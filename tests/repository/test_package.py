"""The wheel has all that the package needs beside its modules."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "utils" / "siimcovid"


@pytest.mark.slow
def test_the_wheel_has_every_file_and_the_command(tmp_path):
    pytest.importorskip("build", reason="no build: pip install siimcovid[test]")
    source = tmp_path / "source"
    (source / "utils").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "utils" / "siimcovid").symlink_to(PACKAGE)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, source]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (entry,) = [name for name in names if name.endswith("entry_points.txt")]
        assert b"siimcovid = siimcovid.apps.command_line:program" in wheel.read(entry)
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert len(files) > 100
    assert {str(path.relative_to(PACKAGE.parent)) for path in files} <= names
