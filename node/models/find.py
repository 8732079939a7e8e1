"""The model that a name means, if it is on this machine. Asks no network.

A name is that of a packaged model, ``fake``, a path, a model of the catalogue, a repository or a URL, in this order.
"""

import difflib
import os
from hashlib import sha256
from pathlib import Path

from mycelia.node.engine.gguf import check_parts, name_of, parts_of_name
from mycelia.node.engine.models import PACKAGED_MODELS, is_fake, resolve_model
from mycelia.node.models.catalogue import load_catalogue
from mycelia.node.models.hub_cache import find_in_cache
from mycelia.node.models.names import HubModel, WebModel, read_name
from mycelia.node.storage.files import replacing
from mycelia.proto.wire.errors import LocalError

URL_FILE = "url.txt"
Source = HubModel | WebModel | None
"""None: a packaged model or a path."""


class MissingError(LocalError):
    """The model is known but not on this machine."""


def source_of(name: str) -> Source:
    """Where the model ``name`` would be fetched from. Raises LocalError for a name that means nothing."""
    if name in PACKAGED_MODELS or is_fake(name):
        return None
    found = read_name(name)
    if found is not None or (name and _is_path(name)):
        return found
    catalogue = load_catalogue()
    if name.lower() in catalogue:
        return catalogue[name.lower()].model
    near = difflib.get_close_matches(name.lower(), [*catalogue, *PACKAGED_MODELS], 3, 0.5)
    hint = f" (did you mean {' or '.join(near)}?)" if near else ""
    raise LocalError(
        f"unknown model {name!r}{hint}: give the path of a GGUF file, hf:OWNER/REPO:QUANT, a URL, or a name such as"
        " smollm2 or qwen3-4b ('mycelia model catalogue' lists them)"
    )


def find_model(name: str) -> Path:
    """The file of the model; of a model in several files, the first one. Raises MissingError when it has to be fetched
    first, LocalError when it cannot be served."""
    source = source_of(name)
    if source is None:
        return resolve_model(name)
    path = find_source(source)
    if path is None:
        raise MissingError(f"the model {name} is not on this machine: fetch it with 'mycelia model pull {name}'")
    return check_parts(path)


def served_name(name: str, path: Path) -> str:
    """The name by which a swarm knows the model: a packaged model's own, else its file's without the ending."""
    return name if name in PACKAGED_MODELS or is_fake(name) else name_of(path)[:128] or "model"


def find_source(source: HubModel | WebModel) -> Path | None:
    """The first file of a fetched model, if it is here as a whole."""
    if isinstance(source, WebModel):
        paths = web_paths(source)
        return paths[0] if all(path.is_file() for path in paths) else None
    found = find_in_cache(source)
    if found is None:
        return None
    cache, commit, files = found
    return cache.snapshot(commit) / files[0].path


def web_folder() -> Path:
    """Where models from URLs are kept."""
    from platformdirs import user_cache_path

    return user_cache_path("mycelia", appauthor=False) / "models"


def web_paths(model: WebModel) -> list[Path]:
    """The files of a model from a URL, which may be one of several parts; they have a folder of their own."""
    names = parts_of_name(model.file)
    url = model.url_of(names[0]) if len(names) > 1 else model.url
    folder = web_folder() / sha256(f"{url}#{model.sha256}".encode()).hexdigest()[:16]
    return [folder / name for name in names]


def note_url(model: WebModel) -> None:
    """Write beside a model's file where it is from, for lists. Raises LocalError."""
    path = web_paths(model)[0].parent / URL_FILE
    text = f"{model.url}#sha256={model.sha256}" if model.sha256 else model.url
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, f"{URL_FILE}.{os.getpid()}.tmp", mode=0o666) as file:
            file.write(text.encode())
    except OSError as exc:
        raise LocalError(f"cannot write {path}: {exc.strerror or exc}") from exc


def _is_path(name: str) -> bool:
    """Whether ``name`` can only be a path. One that names nothing is for ``resolve_model`` to report."""
    try:
        path = Path(name).expanduser()
        return bool(path.suffix.lower() == ".gguf" or "/" in name or path.exists())
    except (OSError, RuntimeError, ValueError):
        return True
