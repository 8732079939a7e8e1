"""``constraints.txt`` has every direct dependency within its range, and nothing of the machine that wrote it."""

import configparser
import re
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def locked(python: str) -> dict[str, str]:
    """The version of each package for one Python on Linux."""
    versions = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        pin, _, marker = line.partition(" ; ")
        system = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
        if not line.startswith("#") and (not marker or Marker(marker).evaluate(system)):
            name, _, version = pin.partition("==")
            assert name not in versions, line
            versions[name] = version
    return versions


def test_every_dependency_is_locked_within_its_range() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    lines = parser["options"]["install_requires"] + parser["options.extras_require"]["dev"]
    wanted = [Requirement(line) for line in lines.splitlines() if line and not line.startswith("#")]
    assert len(wanted) > 30
    for python in PYTHONS:
        versions = locked(python)
        for requirement in wanted:
            name = requirement.name.lower().replace("_", "-")
            assert versions[name] in requirement.specifier, f"{requirement}: `make lock`"


def test_the_lock_names_versions_alone() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines()[1:]:
        assert re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [\w .'()=!<>]+)?", line), line
