"""The last release, as CONTRIBUTING.md names it, installed beside this version."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILDS = ROOT / ".builds" / "releases"
_BUILD = "import sys, setuptools.build_meta as backend; print(backend.build_wheel(sys.argv[1]))"


def last_release() -> tuple[str, str]:
    """Its version and commit."""
    found = re.search(
        r"^Last release: (\S+), commit ([0-9a-f]+)\.", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE
    )
    assert found is not None, "CONTRIBUTING.md names no last release"
    return found[1], found[2]


def packages_of(commit: str) -> Path:
    """The folder with the packages of that commit, without what they depend on: this version's serve both."""
    folder = BUILDS / commit
    if not folder.exists():
        with tempfile.TemporaryDirectory() as temporary:
            source, site = Path(temporary) / "source", Path(temporary) / "site"
            source.mkdir()
            archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=False)
            assert archive.returncode == 0, f"this repository lacks the commit {commit}: git fetch --unshallow"
            subprocess.run(["tar", "-x"], cwd=source, input=archive.stdout, check=True)
            made = subprocess.run(
                [sys.executable, "-c", _BUILD, temporary], cwd=source, capture_output=True, text=True, check=True
            )
            wheel = Path(temporary) / made.stdout.splitlines()[-1]
            install = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-index",
                "--target",
                str(site),
            ]
            subprocess.run([*install, str(wheel)], check=True)
            BUILDS.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", "-r", site, folder], check=True)
    return folder
