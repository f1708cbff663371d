"""requirements.lock and pyproject.toml say the same, for each Python that the project supports."""

import importlib.metadata as metadata
import re
import sys
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = set(PROJECT["optional-dependencies"])
LEFT_OUT = {"opencv-python"}  # by the override in pyproject.toml


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(environment: dict[str, str]) -> dict[str, str]:
    """Name -> version of what the lock holds for an environment; two versions of one name are an error."""
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (pin,) = requirement.specifier
            assert pin.operator == "=="
            assert canonical(requirement.name) not in pins, line
            pins[canonical(requirement.name)] = pin.version
    return pins


def python(version: str) -> dict[str, str]:
    return {**default_environment(), "python_version": version, "python_full_version": f"{version}.9"}


@pytest.mark.parametrize("version", ["3.10", "3.11", "3.12", "3.13"])
def test_each_requirement_is_locked(version):
    pins = locked(python(version))
    asked = [*PROJECT["dependencies"], *(line for lines in PROJECT["optional-dependencies"].values() for line in lines)]
    for requirement in map(Requirement, asked):
        if requirement.marker is None or requirement.marker.evaluate(python(version)):
            assert requirement.specifier.contains(pins[canonical(requirement.name)]), requirement
    assert not LEFT_OUT & set(pins)


def test_what_is_locked_is_what_the_installed_packages_ask_for():
    """Neither a package that nothing needs, nor a need that is not locked: for the Python that runs this."""
    pins = locked(default_environment())
    open_ends = [("siimcovid", extra) for extra in ("", *sorted(EXTRAS))]
    reached = set()
    while open_ends:
        name, extra = open_ends.pop()
        if (name, extra) in reached or name in LEFT_OUT:
            continue
        reached.add((name, extra))
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                open_ends += [(canonical(needed.name), chosen) for chosen in ("", *needed.extras)]
    assert {name for name, _ in reached} - {"siimcovid"} == set(pins)


def test_the_environment_has_the_locked_versions():
    if not (Path(sys.prefix) / "installed").exists():
        pytest.skip("this environment was not made by make")
    pins = locked(default_environment())
    here = {name: Version(metadata.version(name)).public for name in pins}  # 2.14.1+cpu is 2.14.1
    assert here == {name: str(Version(version)) for name, version in pins.items()}
