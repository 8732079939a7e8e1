"""Makes what a release consists of into dist/: `make dist`. See packaging/README.md.

Everything is made of the commit that is checked out, never of changed files. The wheel and the sdist of a commit have
the same bytes wherever they are made with the versions in constraints.txt.
"""

import argparse
import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from configparser import RawConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHECKSUMS = "SHA256SUMS"
SUFFIXES = (".whl", ".tar.gz", ".cdx.json")
"""The endings of a release's files, all of which begin with the name and the version."""
BUILD = "import sys, setuptools.build_meta as backend; print(getattr(backend, sys.argv[1])(sys.argv[2]))"


class PackagingError(Exception):
    """What is missing or wrong, and the command that mends it, in one line."""


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for what is made (default: dist)")
    parser.add_argument("--python-only", action="store_true", help="only the wheel and the sdist")
    parser.add_argument("--gpu", choices=("vulkan", "cuda"), help="build the archive with this plug-in, too")
    parser.add_argument("--llama", type=Path, help="wheel of llama-cpp-python for the archive, instead of a new build")
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        remove_others(given.out, version())
        made = make_python(given.out)
        if not given.python_only:
            from archive import make_archive  # (beside this file)

            wheel = made[0]
            made += make_archive(wheel, given.out, given.gpu, given.llama, commit_time())
    except PackagingError as exc:
        sys.exit(f"dist: {exc}")
    write_checksums(given.out)
    for path in made:
        say(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}  {path.stat().st_size / 1e6:.1f} MB")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def run(*command: str | Path, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """The command's output. Raises PackagingError with the end of its errors."""
    # (the permissions of made files are in the wheel)
    done = subprocess.run(command, cwd=cwd, env=env, umask=0o022, capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()[-12:]
        raise PackagingError(f"{' '.join(map(str, command))} failed:\n  " + "\n  ".join(told))
    return done.stdout


def version() -> str:
    """The version of this commit. setup.cfg is the one place that has it."""
    config = RawConfigParser()
    config.read_string(committed("setup.cfg"))
    return config["metadata"]["version"]


def committed(path: str) -> str:
    """The text of a file in this commit."""
    return run("git", "show", f"HEAD:{path}")


def commit_time() -> int:
    """The time that all files in packages get: SOURCE_DATE_EPOCH or that of the commit, in Unix seconds."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or run("git", "log", "-1", "--format=%ct", "HEAD"))


def tracked() -> list[str]:
    """The files of the commit."""
    return [name for name in run("git", "ls-tree", "-r", "--name-only", "-z", "HEAD").split("\0") if name]


def export(folder: Path) -> None:
    """Write the files of the commit into ``folder``, with the same permissions on every machine."""
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def make_python(out: Path) -> list[Path]:
    """The wheel and the sdist. Raises PackagingError when the sdist lacks a file of the commit."""
    if run("git", "status", "--porcelain", "--untracked-files=no"):
        say("dist: changes that are not committed are left out")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["SOURCE_DATE_EPOCH"] = str(commit_time())
    made = []
    for kind in ("build_wheel", "build_sdist"):
        with tempfile.TemporaryDirectory() as folder:
            export(Path(folder))
            name = run(sys.executable, "-c", BUILD, kind, out, cwd=Path(folder), env=environment).splitlines()[-1]
        made.append(out / name)
    repack(made[1], commit_time())
    with tarfile.open(made[1]) as tar:
        there = {name.partition("/")[2] for name in tar.getnames()}
    if missing := set(tracked()) - there:
        named = ", ".join(sorted(missing)[:5])
        raise PackagingError(f"the sdist lacks {named} ({len(missing)} files): name them in MANIFEST.in")
    return made


def repack(path: Path, time_s: int) -> None:
    """Write a .tar.gz again without what differs from one machine to the next: times, owners, order, permissions."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers() if not member.isdir()]
        files = [(member.name, member.mode & 0o100, file.read()) for member, file in members if file is not None]
    write_tar(path, ((name, 0o755 if is_program else 0o644, data) for name, is_program, data in files), time_s)


def write_tar(path: Path, files: Iterable[tuple[str, int, bytes | str]], time_s: int, level: int = 9) -> None:
    """A .tar.gz of (name, permissions, content), sorted by name. A text as content is the target of a link."""
    draft = path.with_name(f"{path.name}.new")
    with (
        draft.open("wb") as raw,
        gzip.GzipFile("", "wb", level, raw, time_s) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, mode, content in sorted(files, key=lambda file: file[0]):
            entry = tarfile.TarInfo(name)
            entry.mode, entry.mtime = mode, time_s
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    draft.replace(path)


def release_files(out: Path) -> list[Path]:
    """The files of releases in ``out``, whatever else is there."""
    return sorted(path for path in out.glob("mycelia-*") if path.name.endswith(SUFFIXES))


def remove_others(out: Path, kept: str) -> None:
    """Remove the files of other versions: a folder holds one release."""
    for path in release_files(out):
        if not path.name.startswith((f"mycelia-{kept}-", f"mycelia-{kept}.tar", f"mycelia-{kept}.cdx")):
            say(f"dist: removing {path.name}, of another version")
            path.unlink()


def write_checksums(out: Path) -> None:
    """The file that `sha256sum --check` and install.sh read."""
    lines = []
    for path in [*release_files(out), out / "install.sh"]:
        if path.exists():
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    (out / CHECKSUMS).write_text("".join(lines), "utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.modules.setdefault("make_dist", sys.modules["__main__"])  # (archive.py imports this module)
    main(sys.argv[1:])
