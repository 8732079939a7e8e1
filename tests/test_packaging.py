"""What packages are made of, without making them: ``make try`` tries the real ones on a bare Debian."""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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
        self.folder = folder / "a release"
        self.folder.mkdir()
        self.prefix = folder / "a prefix"

    def add(
        self, version: str, glibc: str = "2.17", does: str = "", more: Sequence[tuple[str, int, bytes]] = ()
    ) -> Path:
        """does: what the program does first. more: further files of the archive."""
        program = f"#!/bin/sh\n# glibc: {glibc}\n{does}\necho {version}\n".encode()
        path = self.folder / f"mycelia-{version}-linux-x86_64.tar.gz"
        files = [("bin/mycelia", 0o755, program), *more]
        dist.write_tar(path, [(f"mycelia-{version}-linux-x86_64/{name}", mode, data) for name, mode, data in files], 0)
        dist.write_checksums(self.folder)
        return path

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # (a CDPATH would lead a careless cd to another folder)
        own = {"PATH": os.environ["PATH"], "HOME": str(self.prefix / "home"), "CDPATH": str(self.folder)}
        command: list[str | Path] = ["sh", INSTALL, "--prefix", self.prefix, *options]
        return subprocess.run(command, cwd="/", env=own | variables, capture_output=True, text=True, check=False)

    def install(self, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.run("--from", str(self.folder), *options, **variables)

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
    versions = ["0.1.0", "0.9.0.dev0", "0.9.0", "0.10.0"]
    for number, version in enumerate(versions):
        release.add(version)
        done = release.install()
        assert done.returncode == 0, done.stderr
        assert "PATH" in done.stdout  # (the folder is not on it)
        assert release.says() == f"{version}\n"
        assert release.kept() == sorted([*versions[max(number - 1, 0) : number + 1], "current"])
    home = release.prefix / "home"
    kept = [home / ".local" / "share" / "mycelia", home / ".config" / "mycelia", home / ".cache" / "mycelia"]
    for folder in kept:
        folder.mkdir(parents=True)
    removed = release.run("--uninstall")
    assert removed.returncode == 0
    assert all(str(folder) in removed.stdout and folder.exists() for folder in kept)
    assert not (release.prefix / "bin" / "mycelia").is_symlink() and not (release.prefix / "lib" / "mycelia").exists()
    assert release.run("--uninstall", "--purge").returncode == 0 and not any(folder.exists() for folder in kept)


def test_install_sh_refuses_what_is_damaged_or_cannot_run(release: Release) -> None:
    assert "there is no SHA256SUMS" in release.install().stderr
    assert not (release.prefix / "lib" / "mycelia").exists()
    release.add("0.1.0")
    assert release.install().returncode == 0
    path = release.add("0.2.0")
    path.write_bytes(path.read_bytes() + b"x")
    assert "checksum is wrong" in release.install().stderr
    release.add("0.2.0", glibc="9.9")
    assert "needs glibc 9.9" in release.install().stderr
    release.add("0.2.0", does="exit 1")
    assert "does not start" in release.install().stderr
    path.unlink()
    assert "is missing" in release.install().stderr
    assert "--help" in release.run("--unknown").stderr
    assert "goes with --uninstall" in release.install("--purge").stderr
    assert "not encrypted" in release.run("--from", "http://mirror.example/mycelia").stderr
    assert release.says() == "0.1.0\n" and release.kept() == ["0.1.0", "current"]


def test_install_sh_keeps_a_version_that_runs(release: Release) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    release.add("0.1.0", more=[("python/bin/python3", 0o755, Path(sleep).read_bytes())])
    assert release.install().returncode == 0
    node = subprocess.Popen([release.prefix / "lib/mycelia/0.1.0/python/bin/python3", "60"])
    try:
        release.add("0.2.0")
        assert "still runs 0.1.0" in release.install().stdout
        release.add("0.3.0")
        assert release.install().returncode == 0 and release.kept() == ["0.1.0", "0.2.0", "0.3.0", "current"]
        refused = release.run("--uninstall")
        assert refused.returncode == 1 and "still runs" in refused.stderr and release.says() == "0.3.0\n"
    finally:
        node.kill()
        node.wait()
    release.add("0.4.0")
    assert release.install().returncode == 0 and release.kept() == ["0.3.0", "0.4.0", "current"]


def test_install_sh_leaves_the_command_of_another_installation(release: Release) -> None:
    release.add("0.1.0")
    command = release.prefix / "bin" / "mycelia"
    command.parent.mkdir(parents=True)
    command.symlink_to("/opt/pipx/venvs/mycelia/bin/mycelia")
    for done in (release.install(), release.run("--uninstall"), release.run("--uninstall", "--purge")):
        assert "pipx uninstall mycelia" in done.stdout + done.stderr
        assert command.is_symlink()


def test_install_sh_downloads_a_release(release: Release) -> None:
    if not (shutil.which("curl") or shutil.which("wget")):
        pytest.skip("neither curl nor wget is here")
    release.add("0.1.0")
    handler = functools.partial(QuietHandler, directory=release.folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = release.run("--from", f"http://127.0.0.1:{server.server_port}/", no_proxy="127.0.0.1")
            assert done.returncode == 0, done.stderr
            assert "cannot download" in release.run("--from", f"http://127.0.0.1:{server.server_port}/none").stderr
        finally:
            server.shutdown()
            thread.join()
    assert release.says() == "0.1.0\n"


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


PYTHON = """\
#!/bin/sh
case "$1 $2" in
    "-m venv")
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        printf '#!/bin/sh\\necho wheel\\n' >"$3/bin/mycelia"
        chmod +x "$3/bin/mycelia"
        ;;
    "-m pip") exit "${PIP_STATUS:-0}" ;;
esac
"""


def test_install_sh_makes_a_virtual_environment_of_the_wheel(release: Release) -> None:
    python = release.folder / "python3"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (release.folder / "mycelia-0.1.0-py3-none-any.whl").write_bytes(b"wheel")
    dist.write_checksums(release.folder)
    # (a compiler that finds gmp.h, and one that does not)
    tools = {"PYTHON": str(python), "CXX": "true"}
    assert "libgmp-dev" in release.install("--wheel", CC="false", **tools).stderr
    assert not (release.prefix / "lib" / "mycelia").exists()
    assert release.install("--wheel", CC="true", PIP_STATUS="1", **tools).returncode == 1
    assert not (release.prefix / "lib" / "mycelia").exists(), "half an installation is none"
    done = release.install("--wheel", CC="true", **tools)
    assert done.returncode == 0, done.stderr
    assert release.says() == "wheel\n" and release.kept() == ["0.1.0", "current"]
    (release.prefix / "lib" / "mycelia" / "0.1.0" / "bin" / "mycelia").write_text("#!/bin/sh\necho before\n")
    assert release.install("--wheel", CC="true", PIP_STATUS="1", **tools).returncode == 1
    assert release.says() == "before\n" and release.kept() == ["0.1.0", "current"]
    assert release.run("--uninstall").returncode == 0 and not (release.prefix / "lib" / "mycelia").exists()


def test_a_folder_holds_one_release(tmp_path: Path) -> None:
    own = ["mycelia-1.0-py3-none-any.whl", "mycelia-1.0.tar.gz", "mycelia-1.0-linux-x86_64.tar.gz"]
    for name in (*own, "mycelia-1.0.dev0.tar.gz", "mycelia-1.0.1-py3-none-any.whl", "notes.tar.gz", "install.sh"):
        (tmp_path / name).write_text(name)
    dist.remove_others(tmp_path, "1.0")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*own, "notes.tar.gz", "install.sh"])
    dist.write_checksums(tmp_path)
    lines = (tmp_path / "SHA256SUMS").read_text().splitlines()
    assert sorted(line.partition("  ")[2] for line in lines) == sorted([*own, "install.sh"])


def test_the_archives_command_finds_its_python_from_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "an archive"
    (folder / "bin").mkdir(parents=True)
    (folder / "python" / "bin").mkdir(parents=True)
    command = folder / "bin" / "mycelia"
    shutil.copy(ROOT / "packaging" / "mycelia", command)
    python = folder / "python" / "bin" / "python3"
    python.write_text('#!/bin/sh\necho "${PYTHONHOME:-}${PYTHONPYCACHEPREFIX:-}$2"\n')
    for path in (command, python):
        path.chmod(0o755)
    (tmp_path / "link").symlink_to(command)
    (tmp_path / "second").symlink_to("link")
    (tmp_path / "bin").symlink_to(folder / "bin")
    (tmp_path / "other" / "python").mkdir(parents=True)
    wrong = {"PYTHONHOME": "/nowhere", "PYTHONPYCACHEPREFIX": "/nowhere", "CDPATH": str(tmp_path / "other")}
    for words in (
        ["an archive/bin/mycelia"],
        ["./second"],
        ["sh", "second"],
        ["bin/mycelia"],
        [str(tmp_path / "link")],
    ):
        told = subprocess.run(
            words, cwd=tmp_path, env=os.environ | wrong, capture_output=True, text=True, check=True
        ).stdout
        assert told == f"{folder}/python/lib/start.py\n", words
