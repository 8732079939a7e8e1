"""The models that are on this machine: listing and removing them."""

from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from mycelia.node.engine.gguf import name_of, parts_of
from mycelia.node.engine.models import PACKAGED_MODELS, resolve_model
from mycelia.node.models.catalogue import Catalogue, load_catalogue
from mycelia.node.models.choose import RepoFile, choose_files, sets_of
from mycelia.node.models.find import URL_FILE, source_of, web_folder, web_paths
from mycelia.node.models.hub_cache import RepoCache, all_caches, cache_of, remove_files
from mycelia.node.models.names import MAIN, HubModel, WebModel
from mycelia.node.models.sizes import INCOMPLETE
from mycelia.proto.wire.errors import LocalError

MAX_URL_BYTES = 4_096


class HeldModel(Struct, frozen=True):
    """A row of ``mycelia model ls``."""

    name: str
    """What ``--model`` takes."""
    served_as: str
    """The name by which a swarm knows it; empty for an incomplete one."""
    bytes: int
    source: str
    """package, hub or url."""
    path: str
    is_whole: bool = True
    """False: its download was cut off; the bytes are those that are here."""


def list_models() -> list[HeldModel]:
    """The packaged models that are installed, and those of huggingface_hub's cache and from URLs."""
    try:
        catalogue = load_catalogue()
    except LocalError:
        catalogue = {}  # (a mistake in it hides no model)
    found = [*_packaged()]
    for cache in all_caches():
        found += _in_cache(cache, catalogue)
    return [*found, *_from_urls()]


def remove_model(name: str) -> int:
    """Remove the files of a fetched model, also those of a download that was cut off. Returns the bytes that are free
    now. Raises LocalError when there is nothing to remove."""
    source = source_of(name)
    if name in PACKAGED_MODELS:
        package = PACKAGED_MODELS[name].package
        raise LocalError(f"the model {name} is in the package {package}: remove it with 'pip uninstall {package}'")
    match source:
        case None:
            raise LocalError(f"{name} is a file of your own, which only you remove")
        case WebModel():
            folder = web_paths(source)[0].parent
            freed = remove_files(sorted(folder.iterdir())) if folder.is_dir() else 0
            with suppress(OSError):
                folder.rmdir()
        case HubModel():
            freed = _remove_from_cache(source)
    if not freed:
        raise LocalError(f"the model {name} is not on this machine: 'mycelia model ls' lists those that are")
    return freed


def left_of(name: str) -> list[HeldModel]:
    """The models on this machine that come from the same repository as ``name``, such as other quantisations."""
    match source_of(name):
        case HubModel(repo=repo):
            folder = cache_of(repo).folder
            return [one for one in list_models() if one.is_whole and Path(one.path).is_relative_to(folder)]
        case _:
            return []


def _packaged() -> list[HeldModel]:
    found = []
    for name in PACKAGED_MODELS:
        with suppress(LocalError, OSError):
            path = resolve_model(name)
            found.append(HeldModel(name, name, path.stat().st_size, "package", str(path)))
    return found


def _in_cache(cache: RepoCache, catalogue: Catalogue) -> list[HeldModel]:
    found: dict[tuple[RepoFile, ...], HeldModel] = {}
    main = cache.commit_of(MAIN)
    for commit in sorted(cache.snapshots(), key=lambda commit: commit != main):
        files = cache.files(commit)
        for one in sets_of(files):
            path = cache.snapshot(commit) / one[0].path
            size = sum(file.size for file in one)
            name = _catalogue_name(cache, commit, one, catalogue)
            if not name and commit == main:
                name = f"hf:{cache.repo}:{one[0].path}"
            name = name or f"https://huggingface.co/{cache.repo}/blob/{commit}/{quote(one[0].path)}"
            found.setdefault(tuple(one), HeldModel(name, name_of(path), size, "hub", str(path)))
    rows = list(found.values())
    if cut := cache.incomplete():
        size = sum(path.stat().st_size for path in cut)
        rows.append(HeldModel(f"hf:{cache.repo}", "", size, "hub", str(cut[0].parent), is_whole=False))
    return rows


def _catalogue_name(cache: RepoCache, commit: str, one: list[RepoFile], catalogue: Catalogue) -> str:
    for name, entry in catalogue.items():
        if entry.model.repo == cache.repo and cache.commit_of(entry.model.revision) == commit:
            with suppress(LocalError):
                if choose_files(entry.model, cache.files(commit)) == one:
                    return name
    return ""


def _from_urls() -> list[HeldModel]:
    found = []
    with suppress(OSError):
        for folder in sorted(web_folder().iterdir()):
            url = _url_of(folder)
            parts = [path for path in sorted(folder.glob("*.gguf")) if parts_of(path)[0] == path]
            for path in parts:
                size = sum(part.stat().st_size for part in parts_of(path) if part.exists())
                found.append(HeldModel(url, name_of(path), size, "url", str(path)))
            if cut := list(folder.glob(f"*{INCOMPLETE}")):
                size = sum(path.stat().st_size for path in cut)
                found.append(HeldModel(url, "", size, "url", str(folder), is_whole=False))
    return found


def _url_of(folder: Path) -> str:
    with suppress(OSError, UnicodeDecodeError), (folder / URL_FILE).open("rb") as file:
        return file.read(MAX_URL_BYTES).decode().strip()
    return str(folder)


def _remove_from_cache(model: HubModel) -> int:
    cache = cache_of(model.repo)
    chosen: list[RepoFile] = []
    problem: LocalError | None = None
    for commit in cache.snapshots() if model.revision == MAIN else [model.revision]:
        if files := cache.files(commit):
            try:
                chosen += choose_files(model, files)
            except LocalError as exc:
                problem = problem or exc
    if problem is not None and not chosen and not cache.incomplete():
        raise LocalError(f"of what is here, {problem}") from problem
    cut = [path for path in cache.incomplete() if path.name.endswith(f".mycelia{INCOMPLETE}")]
    return cache.remove(chosen) + remove_files(cut)
