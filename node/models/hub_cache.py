"""The cache of huggingface_hub on this disk, which other programs use too: so a model that one of them fetched is found
here, and the other way round.

Its layout, which huggingface_hub documents: ``models--OWNER--REPO/`` has the contents in ``blobs/``, named by their
hashes, and in ``snapshots/COMMIT/`` the files of a revision as links to them. ``refs/main`` has the commit of a branch.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mycelia.node.models.choose import RepoFile, choose_files
from mycelia.node.models.names import MAIN, HubModel
from mycelia.node.models.sizes import INCOMPLETE
from mycelia.node.storage.files import replacing
from mycelia.proto.wire.errors import LocalError

MAX_LISTED = 10_000
"""Files of one snapshot that are looked at."""


def cache_folder() -> Path:
    """Where huggingface_hub keeps its files: HF_HUB_CACHE, HF_HOME or its default."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


@dataclass(frozen=True)
class RepoCache:
    """The folder of one repository."""

    folder: Path

    @property
    def repo(self) -> str:
        return self.folder.name.removeprefix("models--").replace("--", "/")

    def blob(self, etag: str) -> Path:
        return self.folder / "blobs" / etag

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str:
        """The commit of a branch when it was last looked up, the newest one if that of the main branch is unknown;
        ``revision`` itself if it is a commit that is here; empty: none is here."""
        with suppress(OSError, ValueError):
            return (self.folder / "refs" / revision).read_text("ascii").strip()[:64]
        if revision == MAIN:
            return next(iter(self.snapshots()), "")
        return revision if self.snapshot(revision).is_dir() else ""

    def files(self, commit: str) -> list[RepoFile]:
        """The GGUF files of a snapshot that are here as a whole."""
        found = []
        for path in _ggufs(self.snapshot(commit)):
            with suppress(OSError):
                size, name = path.stat().st_size, path.relative_to(self.snapshot(commit)).as_posix()
                found.append(RepoFile(name, size, Path(os.readlink(path) if path.is_symlink() else path).name))
        return found

    def snapshots(self) -> list[str]:
        """The commits, the newest first."""
        with suppress(OSError):
            found = [(path.stat().st_mtime, path.name) for path in (self.folder / "snapshots").iterdir()]
            return [name for _, name in sorted(found, reverse=True)]
        return []

    def incomplete(self) -> list[Path]:
        """Downloads that were cut off, also those of other programs."""
        with suppress(OSError):
            return [path for path in (self.folder / "blobs").iterdir() if path.name.endswith(INCOMPLETE)]
        return []

    def link(self, file: RepoFile, commit: str) -> Path:
        """Give the content of ``file`` its name in the snapshot, as huggingface_hub does. Raises LocalError."""
        path, blob = self.snapshot(commit) / file.path, self.blob(file.etag)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_symlink() and not path.exists():
                path.unlink(missing_ok=True)
            if not path.exists():
                _link(path, blob)
        except OSError as exc:
            raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc
        return path

    def set_ref(self, revision: str, commit: str) -> None:
        """Note the commit of a branch, unless the cache is read-only."""
        path = self.folder / "refs" / revision
        if revision != commit:
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path, f"{path.name}.{os.getpid()}.tmp", mode=0o666) as file:
                    file.write(commit.encode())

    def remove(self, files: list[RepoFile]) -> int:
        """Remove files of all snapshots, and contents that no other file has. Returns the bytes that are free now.
        Raises LocalError."""
        etags = {file.etag for file in files}
        paths = [
            self.snapshot(commit) / file.path
            for commit in self.snapshots()
            for file in self.files(commit)
            if file.etag in etags
        ]
        freed = remove_files([*paths, *map(self.blob, etags)])
        for path in paths:
            _remove_empty(path.parent, self.folder)
        return freed


def remove_files(paths: list[Path]) -> int:
    """Remove those that are there. Returns the bytes that are free now. Raises LocalError."""
    freed = 0
    for path in paths:
        try:
            freed += 0 if path.is_symlink() else path.stat().st_size
            path.unlink()
        except FileNotFoundError:
            pass
        except OSError as exc:
            raise LocalError(f"cannot remove {path}: {exc.strerror or exc}") from exc
    return freed


def cache_of(repo: str) -> RepoCache:
    return RepoCache(cache_folder() / f"models--{repo.replace('/', '--')}")


def find_in_cache(model: HubModel) -> tuple[RepoCache, str, list[RepoFile]] | None:
    """(the repository's cache, commit, the model's files) if all of them are here."""
    cache = cache_of(model.repo)
    commit = cache.commit_of(model.revision)
    if commit:
        with suppress(LocalError):
            return cache, commit, choose_files(model, cache.files(commit))
    return None


def all_caches() -> Iterator[RepoCache]:
    """The repositories with models that are here, by name."""
    with suppress(OSError):
        for folder in sorted(cache_folder().iterdir()):
            if folder.name.startswith("models--"):
                yield RepoCache(folder)


def _ggufs(folder: Path) -> list[Path]:
    found = []
    for root, _, names in os.walk(folder):
        found += [Path(root) / name for name in names if name.lower().endswith(".gguf")]
        if len(found) > MAX_LISTED:
            break
    return sorted(found)


def _link(path: Path, blob: Path) -> None:
    try:
        path.symlink_to(os.path.relpath(blob, path.parent))
    except FileExistsError:
        pass  # another process was faster
    except OSError:
        os.replace(blob, path)  # a file system without links: huggingface_hub moves the content, too


def _remove_empty(folder: Path, stop: Path) -> None:
    """Remove ``folder`` and those above it, up to ``stop``, as long as they are empty."""
    with suppress(OSError):  # (as soon as one is not empty)
        while folder != stop:
            folder.rmdir()
            folder = folder.parent
