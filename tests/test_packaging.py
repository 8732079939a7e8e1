"""What packages are made of, without making them: ``make try`` tries the real ones on a bare Debian."""

import importlib.util
import os
import re
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.releases import last_release

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "packaging" / "install.sh"


def loaded(path: Path) -> ModuleType:
    """The module in a file that is in no package."""
    spec = importlib.util.spec_from_file_location(f"loaded_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


dist = loaded(ROOT / "packaging" / "make_dist.py")


@pytest.mark.parametrize("repository", ["", "https://code.example/mycelia"])
def test_links_of_the_index_page_lead_somewhere(repository: str) -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    page = loaded(ROOT / "setup.py").for_index_page(readme, repository, "1.2.3")
    targets = re.findall(r"\]\(([^)\s]+)\)", page)
    assert targets and all(target.startswith("https://") for target in targets)
    own = [target for target in targets if repository and target.startswith(repository)]
    assert len(own) == (len(re.findall(r"\]\((?!https?:)", readme)) if repository else 0)
    assert all((ROOT / target.split("/v1.2.3/")[1].partition("#")[0]).exists() for target in own)
    assert ("![The dashboard" in page) == (f"({repository}/raw/v1.2.3/docs/dashboard.png)" in page) == bool(repository)


def test_a_tar_has_the_same_bytes_whatever_made_its_files(tmp_path: Path) -> None:
    files = [("b/two", 0o755, b"2"), ("a/one", 0o644, b"1"), ("c", 0o777, "a/one")]
    one, two = tmp_path / "one.tar.gz", tmp_path / "two.tar.gz"
    dist.write_tar(one, files, 1_000_000_000)
    with tarfile.open(two, "w:gz") as tar:  # (as another tool would on another day)
        for name, mode, content in files[:2]:
            path = tmp_path / "file"
            path.write_bytes(content if isinstance(content, bytes) else b"")
            path.chmod(mode & 0o700)
            tar.add(path, name)
    dist.repack(two, 1_000_000_000)
    dist.write_tar(one, files[:2], 1_000_000_000)
    assert one.read_bytes() == two.read_bytes()
    with tarfile.open(one) as tar:
        assert [(member.name, member.mode, member.mtime) for member in tar] == [
            ("a/one", 0o644, 1_000_000_000),
            ("b/two", 0o755, 1_000_000_000),
        ]


def test_the_last_release_is_a_commit_of_that_version() -> None:
    version, commit = last_release()
    told = subprocess.run(["git", "show", f"{commit}:setup.cfg"], cwd=ROOT, capture_output=True, text=True, check=False)
    if told.returncode:
        pytest.skip("this clone has not the whole history")
    assert f"\nversion = {version}\n" in told.stdout
    assert f"## [{version}] - " in (ROOT / "CHANGELOG.md").read_text("utf-8")


class Release:
    """A folder of a release whose archive has a program that only says its version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "release"
        self.folder.mkdir()
        self.prefix = folder / "prefix"

    def add(self, version: str, glibc: str = "2.17") -> Path:
        program = f"#!/bin/sh\n# glibc: {glibc}\necho {version}\n".encode()
        path = self.folder / f"mycelia-{version}-linux-x86_64.tar.gz"
        dist.write_tar(path, [(f"mycelia-{version}-linux-x86_64/bin/mycelia", 0o755, program)], 0)
        dist.write_checksums(self.folder)
        return path

    def run(self, *options: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.prefix / "home")}
        command: list[str | Path] = ["sh", INSTALL, "--prefix", self.prefix, *options]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)

    def install(self) -> subprocess.CompletedProcess[str]:
        return self.run("--from", str(self.folder))

    def says(self) -> str:
        return subprocess.run([self.prefix / "bin" / "mycelia"], capture_output=True, text=True, check=True).stdout

    def kept(self) -> list[str]:
        return sorted(path.name for path in (self.prefix / "lib" / "mycelia").iterdir())


@pytest.fixture
def release(tmp_path: Path) -> Release:
    if os.uname().sysname != "Linux" or os.uname().machine != "x86_64":
        pytest.skip("the archive is for Linux on x86-64")
    return Release(tmp_path)


def test_install_sh_installs_upgrades_and_removes(release: Release) -> None:
    versions = ["0.1.0", "0.9.0", "0.10.0"]
    for number, version in enumerate(versions):
        release.add(version)
        done = release.install()
        assert done.returncode == 0, done.stderr
        assert "PATH" in done.stdout  # (the folder is not on it)
        assert release.says() == f"{version}\n"
        assert release.kept() == sorted([*versions[max(number - 1, 0) : number + 1], "current"])
    data = release.prefix / "home" / ".local" / "share" / "mycelia"
    data.mkdir(parents=True)
    removed = release.run("--uninstall")
    assert removed.returncode == 0 and str(data) in removed.stdout and data.exists()
    assert not (release.prefix / "bin" / "mycelia").is_symlink() and not (release.prefix / "lib" / "mycelia").exists()
    assert release.run("--uninstall", "--purge").returncode == 0 and not data.exists()


def test_install_sh_refuses_what_is_damaged_or_cannot_run(release: Release) -> None:
    assert "there is no SHA256SUMS" in release.install().stderr
    release.add("0.1.0")
    assert release.install().returncode == 0
    path = release.add("0.2.0")
    path.write_bytes(path.read_bytes() + b"x")
    assert "checksum is wrong" in release.install().stderr
    release.add("0.2.0", glibc="9.9")
    assert "needs glibc 9.9" in release.install().stderr
    path.unlink()
    assert "is missing" in release.install().stderr
    assert "--help" in release.run("--unknown").stderr
    assert release.says() == "0.1.0\n" and release.kept() == ["0.1.0", "current"]
