"""The catalogue: models that can be named in one word, with what one wants to know before fetching them."""

import re
import tomllib
from collections.abc import Callable, Collection, Mapping
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from mycelia.node.engine.gguf import name_of
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.models import FAKE_MODEL, PACKAGED_MODELS
from mycelia.node.models.names import MAIN, HubModel, read_name
from mycelia.proto.wire.errors import LocalError

OWN_FILE = "catalogue.toml"
MAX_BYTES, MAX_MODELS = 262_144, 1_000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_PARAMETERS = re.compile(r"([0-9.]{1,9})([MBT])")
_ACTIVE = re.compile(r"([0-9.]{1,9})([MBT]) active")
_BUFFER_BYTES = 300_000_000
"""What an engine takes besides weights and KV cells: buffers of a batch, and its program."""

Line = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


class Entry(Struct, frozen=True, forbid_unknown_fields=True):
    source: Line
    parameters: Line
    size_mb: Annotated[int, Meta(ge=1, le=10_000_000)]
    cell_bytes: Annotated[int, Meta(ge=0, le=100_000_000)]
    """Keys and values of one token."""
    context: Annotated[int, Meta(ge=1, le=100_000_000)]
    licence: Line
    about: Line
    kind: Annotated[str, Meta(pattern="^(text|embedding|rerank)$")] = TEXT
    revision: Line = MAIN
    file: Annotated[str, Meta(max_length=128)] = ""
    """The name of the file without its ending, where that is not made of repository and quantisation as usual."""

    @property
    def served(self) -> str:
        """The name by which swarms know the model, without regard to case."""
        model = self.model
        if model.wants_file:
            return name_of(Path(model.wanted))
        repo = re.sub("-gguf$", "", model.repo.rpartition("/")[2], flags=re.IGNORECASE)
        return self.file or f"{repo}-{model.wanted}"

    @property
    def model(self) -> HubModel:
        found = read_name(self.source)
        if not isinstance(found, HubModel):
            raise LocalError(f"its source {self.source!r} is not of the form hf:OWNER/REPO:QUANT")
        return HubModel(found.repo, found.wanted, self.revision)

    @property
    def active_bytes(self) -> int:
        """Weights that are read for each token: of a mixture of experts the active part."""
        whole, active = _PARAMETERS.match(self.parameters), _ACTIVE.search(self.parameters)
        if whole is None or active is None:
            return self.size_bytes
        return round(self.size_bytes * min(_number(active) / max(_number(whole), 1.0), 1.0))

    @property
    def size_bytes(self) -> int:
        return self.size_mb * 1_000_000

    def memory_bytes(self, tokens: int) -> int:
        """An estimate of the memory for weights, buffers and ``tokens`` tokens of context."""
        return self.size_bytes + _BUFFER_BYTES + tokens * self.cell_bytes


Catalogue = dict[str, Entry]


def load_catalogue() -> Catalogue:
    """The catalogue of the program, with the user's own. Raises LocalError that names the file and the mistake."""
    own = _own_path()
    return _built_in() | (read_catalogue(str(own), _text(own)) if own.exists() else {})


def _built_in() -> Catalogue:
    return read_catalogue(OWN_FILE, files("mycelia.node.models").joinpath(OWN_FILE).read_text("utf-8"))


def _served() -> Mapping[str, str]:
    """Name -> ``Entry.served`` in small letters. Of the user's own catalogue there is none if it cannot be read."""
    return _known()[0]


def _known() -> tuple[Mapping[str, str], Mapping[str, str]]:
    """See ``_served`` and ``catalogue_names``."""
    own = _own_path()
    return _names(own, _version(own))


@lru_cache(maxsize=1)
def _names(own: Path, version: tuple[int, int]) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """See ``_known``. version: of the user's own catalogue at ``own``."""
    try:
        catalogue = load_catalogue()
    except (LocalError, OSError):
        catalogue = _built_in()
    served = {name: entry.served.casefold() for name, entry in catalogue.items()}
    return served, {file: name for name, file in served.items()} | {name: name for name in served}


def _version(own: Path) -> tuple[int, int]:
    """Other numbers when the user's own catalogue was changed."""
    try:
        found = own.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _own_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("mycelia", appauthor=False) / OWN_FILE


def served_as(name: str, models: Callable[[], Collection[str]]) -> str:
    """The one of ``models``, the names in a swarm, that ``name`` means: itself, or the one of which the catalogue says
    so; ``name`` if there is none. models: called only if the catalogue has the name."""
    file = _served().get(name.lower())
    if file is None or name in (known := models()):
        return name
    return next((model for model in known if model.casefold() == file), name)


def catalogue_names() -> Mapping[str, str]:
    """The names in small letters by which the catalogue's models are known, their own and those of their files -> their
    own."""
    return _known()[1]


def one_name(model: str, names: Mapping[str, str] | None = None) -> str:
    """The catalogue's name of a model, if it is known by it or by its file; otherwise ``model``. names: what
    ``catalogue_names`` gave, which looks at the user's file, for the names of many models."""
    return (catalogue_names() if names is None else names).get(model.casefold(), model)


def read_catalogue(where: str, text: str) -> Catalogue:
    """The models in ``text``. Raises LocalError, in one line that begins with ``where``."""
    try:
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise LocalError(f"{where} is not TOML: {exc}") from exc
    if len(tables) > MAX_MODELS:
        raise LocalError(f"{where} has {len(tables)} models: at most {MAX_MODELS}")
    return {name: _entry(where, name, table) for name, table in tables.items()}


def _number(found: re.Match[str]) -> float:
    try:
        return float(found[1]) * {"M": 1e6, "B": 1e9, "T": 1e12}[found[2]]
    except ValueError:
        return 1.0


def _entry(where: str, name: str, table: object) -> Entry:
    place = f"{where}: [{name}]"
    if not _NAME.fullmatch(name) or name in PACKAGED_MODELS or name == FAKE_MODEL:
        raise LocalError(f"{place} cannot be the name of a model: small letters, digits and . _ - make a free name")
    try:
        entry = msgspec.convert(table, Entry)
        _ = entry.model  # (its check)
    except (msgspec.ValidationError, LocalError) as exc:
        raise LocalError(f"{place} {exc}") from exc
    return entry


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise LocalError(f"{path} has more than {MAX_BYTES} bytes")
        return data.decode()
    except OSError as exc:
        raise LocalError(f"cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise LocalError(f"{path} is not UTF-8 text") from exc
