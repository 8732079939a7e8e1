"""The wheel: it installs into a fresh virtual environment, beside distributions with the names of its folders.

Nothing is downloaded. proto-plus installs a package ``proto``, and other distributions one called ``node``: two tiny
ones stand for them here. When any of the three is uninstalled, the files of the others stay.
"""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("bench", "node", "proto", "sim")
NEIGHBOURS = ("proto", "node")


def run(*command: str | Path) -> str:
    """The command's output. Fails with its errors. Neither the folder nor the path of this Python adds packages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the files that git tracks: the checkout has other files too, and must get no new ones."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, dist], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dist / done.stdout.splitlines()[-1]


def make_neighbour(folder: Path, package: str) -> Path:
    """The wheel of a distribution whose only module is ``package/__init__.py``."""
    name, info = f"neighbour_{package}", f"neighbour_{package}-1.0.dist-info"
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{package}/__init__.py", "OWNER = 'neighbour'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(
            f"{info}/RECORD", f"{package}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )
    return path


class Environment:
    """A virtual environment without this one's packages."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self._python = folder / "bin" / "python"
        [self.site] = folder.glob("lib/python*/site-packages")

    def pip(self, *arguments: str | Path) -> None:
        run(sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", self._python, *arguments)

    def install(self, *wheels: Path) -> None:
        self.pip("install", "--quiet", "--no-compile", "--no-deps", "--no-index", *wheels)

    def uninstall(self, name: str) -> None:
        self.pip("uninstall", "--quiet", "--yes", name)

    def owner(self, package: str) -> str:
        """The distribution whose ``package`` an ``import`` finds."""
        return run(self._python, "-I", "-c", f"import {package}; print({package}.OWNER)").strip()

    def wire_version(self) -> int:
        return int(run(self._python, "-I", "-c", "from mycelia.proto import WIRE_VERSION; print(WIRE_VERSION)"))

    def files_of_mycelia(self) -> set[Path]:
        """All except what Python compiles itself."""
        return {
            path.relative_to(self.site)
            for pattern in ("mycelia/**/*", "mycelia-*/**/*")
            for path in self.site.glob(pattern)
            if path.is_file() and "__pycache__" not in path.parts
        }


def test_the_wheel_holds_every_package_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.partition("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"mycelia"}
    modules = {f"mycelia/{path.relative_to(ROOT)}" for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert modules <= names, modules - names
    data = ("proto/wire/wire.cddl", "proto/py.typed", "node/bootstrap.txt", "node/serve/dashboard/page.html")
    assert {f"mycelia/{name}" for name in data} <= names


def test_neither_uninstalling_harms_the_other(wheel: Path, tmp_path: Path) -> None:
    neighbours = [make_neighbour(tmp_path, package) for package in NEIGHBOURS]
    environment = Environment(tmp_path / "venv")
    environment.install(*neighbours, wheel)
    whole = environment.files_of_mycelia()
    assert len(whole) > 300
    assert [environment.owner(package) for package in NEIGHBOURS] == ["neighbour"] * 2
    version = environment.wire_version()

    for package in NEIGHBOURS:
        environment.uninstall(f"neighbour_{package}")
        assert not (environment.site / package / "__init__.py").exists()
        assert environment.files_of_mycelia() == whole
        assert environment.wire_version() == version

    environment.install(*neighbours)
    environment.uninstall("mycelia")
    assert not environment.files_of_mycelia()
    assert [environment.owner(package) for package in NEIGHBOURS] == ["neighbour"] * 2
