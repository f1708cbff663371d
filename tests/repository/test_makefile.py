"""The Makefile: its list of verbs, and folders with the names that people give them."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make: apt-get install make")


def make(*arguments: str) -> str:
    """What make prints; the flags of a make around the tests are not its own."""
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=outside, capture_output=True, text=True, check=True)
    return done.stdout


def test_help_lists_every_verb_and_is_what_plain_make_does():
    text = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)
    listed = [text.split()[1] for text in make("help").splitlines()]
    assert sorted(listed) == sorted(line.split())
    assert make() == make("help")


@pytest.mark.parametrize(
    ("data", "results"),
    [
        ("runs/competition-0", "runs/demo"),
        ("/data/my images", "runs/my images"),
        ("it's/Röntgen & Co/", "runs/Röntgen & Co"),
        ("runs/competition-0 copy", "runs/competition-0 copy"),
    ],
)
def test_a_folder_stays_one_word(data, results):
    words = shlex.split(make("--dry-run", "run", f"DATA={data}", "PYTHON=python3"), comments=True)
    assert words[words.index("run") + 1] == data
    assert words[words.index("--out", words.index("run")) + 1] == results


def test_the_demo_is_drawn_for_the_demo_alone():
    assert "siimcovid synthetic runs/competition-3 --seed 3" in make("--dry-run", "run", "SEED=3")
    assert "siimcovid synthetic" not in make("--dry-run", "run", "DATA=runs/competition-0 copy")
