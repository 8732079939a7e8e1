"""Fetches the files of a model. What it fetches is whole or absent, and is checked: by its checksum, and by llama.cpp,
which reads its header."""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx2
from huggingface_hub.errors import OfflineModeIsEnabled

from mycelia.node.engine.gguf import parts_of_name
from mycelia.node.engine.models import resolve_model
from mycelia.node.engine.probe.probe import Problem, Question, free_gpu_bytes, probe
from mycelia.node.engine.settings import available_memory_bytes
from mycelia.node.errors import PassingError, one_line
from mycelia.node.models import hub
from mycelia.node.models.choose import RepoFile, choose_files
from mycelia.node.models.find import MissingError, find_model, find_source, note_url, source_of, web_paths
from mycelia.node.models.hub_cache import RepoCache, cache_of
from mycelia.node.models.names import HubModel, WebModel
from mycelia.node.models.sizes import INCOMPLETE, size_text
from mycelia.node.models.transfer import (
    HEADER_BYTES,
    TIMEOUT,
    CutError,
    RefusedError,
    Remote,
    Watch,
    check_status,
    fetch_file,
    incomplete_of,
    no_file,
)
from mycelia.proto.wire.errors import LocalError

SPARE_DISK_BYTES = 64_000_000
_UNKNOWN = "unknown model architecture"
_DAMAGED = ("corrupted or incomplete", "not within the file bounds")
"""What llama.cpp writes about an architecture that it does not know, and about a file that is cut."""


@dataclass(frozen=True)
class Wanted:
    """One file to fetch, and its place."""

    remote: Remote
    target: Path

    @property
    def missing_bytes(self) -> int:
        if self.target.exists():
            return 0
        with suppress(OSError):
            return max(self.remote.size - incomplete_of(self.target, self.remote).stat().st_size, 0)
        return self.remote.size


Admit = Callable[[str, int], None]
"""Called with the name and the size of a model before it is fetched; may raise LocalError."""


def obtain(name: str, watch: Watch) -> Path:
    """The model's file for a node that is to serve it: fetched if it is missing and fits into memory. Raises
    LocalError."""
    try:
        return find_model(name)
    except MissingError:
        watch.say(f"the model {name} is not on this machine")
        return pull(name, watch, check_fits)


def pull(name: str, watch: Watch, admit: Admit = lambda name, size: None) -> Path:
    """Fetch a model, or its new version if its repository has one. Returns its first file. Raises LocalError."""
    source = source_of(name)
    match source:
        case None:
            return resolve_model(name)
        case HubModel():
            path = _pull_from_hub(source, watch, admit)
        case WebModel():
            path = _pull_from_web(source, watch, admit)
    return path


def check_fits(name: str, size: int) -> None:
    """Raises LocalError if a model of this size is larger than the memory that is free, with that of GPUs."""
    host = available_memory_bytes()
    if host is None or size <= host:  # (to ask for GPUs takes a process)
        return
    room = host + free_gpu_bytes()
    if size > room:
        raise LocalError(
            f"{name} takes {size_text(size)} of memory, and {size_text(room)} are free here: choose a smaller one, or a"
            " smaller quantisation ('mycelia model catalogue' says what models need)"
        )


def _pull_from_hub(model: HubModel, watch: Watch, admit: Admit) -> Path:
    try:
        listing = hub.look_up(model)
    except hub.OfflineError as exc:
        found = find_source(model)
        if found is None:
            raise
        watch.say(f"{exc.in_short}. The one that is here is taken, which may not be the newest")
        return found
    files, cache = choose_files(model, listing.files), cache_of(model.repo)
    wanted = [Wanted(hub.remote_of(model, listing.commit, file), _place(cache, listing.commit, file)) for file in files]
    try:
        _fetch(str(model), wanted, watch, admit)
    except RefusedError as exc:
        if listing.is_gated or exc.code == "GatedRepo":
            raise hub.gated(model.repo) from exc
        raise
    paths = [cache.link(file, listing.commit) for file in files]
    cache.set_ref(model.revision, listing.commit)
    _check_loads(paths)
    return paths[0]


def _place(cache: RepoCache, commit: str, file: RepoFile) -> Path:
    """Where the content of ``file`` belongs, or where it is already, as on a file system without links."""
    named = cache.snapshot(commit) / file.path
    return named if named.is_file() else cache.blob(file.etag)


def _pull_from_web(model: WebModel, watch: Watch, admit: Admit) -> Path:
    paths = web_paths(model)
    if all(path.is_file() for path in paths):
        watch.say(f"{model} is here already; 'mycelia model rm' removes it")
        return paths[0]
    urls = [model.url] if len(paths) == 1 else [model.url_of(name) for name in parts_of_name(model.file)]
    wanted = [Wanted(_look_at(url, model.sha256), path) for url, path in zip(urls, paths, strict=True)]
    note_url(model)
    _fetch(str(model), wanted, watch, admit)
    for path in paths:
        for left in path.parent.glob(f"*{INCOMPLETE}"):  # (of versions that the server no longer has)
            left.unlink(missing_ok=True)
    try:
        _check_loads(paths)
    except LocalError as exc:
        if any(word in str(exc) for word in _DAMAGED):
            for path in paths:
                path.unlink(missing_ok=True)
            raise LocalError(f"the file at {model} is damaged or cut, and is removed again: {exc}") from exc
        raise
    return paths[0]


def _look_at(url: str, told_sha256: str) -> Remote:
    """What a server says about a file: its size and its version. Raises LocalError."""
    try:
        with hub.client().stream("GET", url, headers={"Range": "bytes=0-3"}, timeout=TIMEOUT) as response:
            check_status(response, url)
            if response.headers.get("Content-Type", "").lower().startswith("text/html"):
                raise no_file(url.partition("?")[0])
            size = response.headers.get("Content-Length", "")
            if response.status_code == 206:
                size = response.headers.get("Content-Range", "").rpartition("/")[2]
            etag = response.headers.get("ETag", "")
            version = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    except (OfflineModeIsEnabled, CutError, httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise PassingError(
            f"cannot fetch {url}: {one_line(hub.reason_of(exc)).strip(' .')[:160]}; copy the file to this machine in"
            " another way, and give its path"
        ) from exc
    if not size.isascii() or not size.isdigit() or len(size) > 15:
        raise LocalError(f"{url} does not say how large it is, so that nobody could see whether it is whole")
    same = told_sha256 or version
    key = sha256(f"{same} {size}".encode()).hexdigest()[:12] if same else ""
    return Remote(url, int(size), told_sha256, validator=version, key=key)


def _fetch(name: str, wanted: Sequence[Wanted], watch: Watch, admit: Admit) -> None:
    """Fetch what is missing, after saying how much that is and whether there is room. Raises LocalError."""
    total, missing = sum(one.remote.size for one in wanted), sum(one.missing_bytes for one in wanted)
    admit(name, total)
    folder = wanted[0].target.parent
    if not missing and all(one.target.exists() for one in wanted):
        watch.say(f"{name}: {size_text(total)}, all of it is here")
        return
    free = _free_disk_bytes(folder)
    count = f" in {len(wanted)} files" if len(wanted) > 1 else ""
    here = f", {size_text(total - missing)} of it here already" if missing < total else ""
    watch.say(f"{name}: {size_text(total)}{count}{here}; to {folder}, where {size_text(free)} are free")
    if missing + SPARE_DISK_BYTES > free:
        raise LocalError(
            f"no room for {name}: {size_text(missing)} are missing, and {size_text(free)} are free in {folder}; free"
            " some, or set HF_HOME (for URLs XDG_CACHE_HOME) to a folder on another disk"
        )
    for number, one in enumerate(wanted):
        shown = _Shifted(watch, sum(other.remote.size for other in wanted[:number]), total)
        fetch_file(hub.client(), one.remote, one.target, shown, check_header=_checks_header_of(one.remote.size))
    watch.show(total, total)


class _Shifted:
    """A watch that is shown several files as one."""

    def __init__(self, watch: Watch, before: int, total: int) -> None:
        self._watch, self._before, self._total = watch, before, total
        self.say = watch.say

    def show(self, done: int, total: int) -> None:
        self._watch.show(self._before + done, self._total)


def _free_disk_bytes(folder: Path) -> int:
    """Also makes ``folder``. Raises LocalError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free
    except OSError as exc:
        raise LocalError(f"cannot write to {folder}: {exc.strerror or exc}; set HF_HOME to another folder") from exc


def _checks_header_of(size: int) -> Callable[[Path], None]:
    """A check of an incomplete file, by which a model of a kind that llama.cpp does not know is not fetched in vain."""

    def check(partial: Path) -> None:
        # A copy of the beginning in a file with holes, of the size of the whole one.
        copy = partial.with_name(f"{partial.name.removesuffix(INCOMPLETE)}.{os.getpid()}.header{INCOMPLETE}")
        try:
            with partial.open("rb") as source, copy.open("wb") as target:
                target.write(source.read(HEADER_BYTES))
                target.truncate(size)
            problem = _problem_of(copy)
        except OSError:
            return  # (the disk may be full: what follows says so)
        finally:
            copy.unlink(missing_ok=True)
        if _UNKNOWN in problem:
            raise LocalError(f"{problem.replace(str(copy), partial.name)}. It is not fetched further")

    return check


def _check_loads(paths: Sequence[Path]) -> None:
    """Raises LocalError for files that llama.cpp cannot load."""
    if problem := _problem_of(paths[0]):
        size = sum(path.stat().st_size for path in paths)
        raise LocalError(f"{problem}. The file is kept ({size_text(size)}); 'mycelia model rm' removes it")


def _problem_of(path: Path) -> str:
    """Why llama.cpp cannot load a model; empty: it can."""
    found = probe(Question(slots=1, cells=512, host_bytes=None), path)
    problem = next((one.message for one in found if isinstance(one, Problem)), "")
    hint = "; a newer version of Mycelia may know it" if _UNKNOWN in problem else ""
    return one_line(problem) + hint
