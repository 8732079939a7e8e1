"""Which files of a repository are the model that a name means."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.node.engine.gguf import parts_of_name
from mycelia.node.models.names import HubModel
from mycelia.proto.wire.errors import LocalError

USUAL = ("Q4_K_M", "Q4_0", "MXFP4", "Q8_0")
"""The quantisation of a name that gives none: the first of these that there is. Ollama and llama.cpp begin with the
same one."""
MAX_SHOWN = 12
_NO_MODEL = re.compile(r"mmproj|imatrix|control[-_]?vector|[-_.]lora[-_.]|[-_.]adapter[-_.]", re.IGNORECASE)
"""Files of a repository that are no model by themselves."""


@dataclass(frozen=True)
class RepoFile:
    path: str
    size: int
    etag: str
    """The name of its content: the SHA-256 of a large file, else git's hash of it."""

    @property
    def sha256(self) -> str:
        return self.etag if len(self.etag) == 64 else ""


def choose_files(model: HubModel, files: Sequence[RepoFile]) -> list[RepoFile]:
    """The files of the model, in order: more than one if it is split. Raises LocalError that says what there is."""
    sets = sets_of(files)
    if model.wants_file:
        chosen = [one for one in sets if model.wanted in (file.path for file in one)]
        if not chosen:
            raise LocalError(f"{model.repo} has no file {model.wanted}; {_told(sets)}")
    elif not sets:
        raise LocalError(
            f"{model.repo} has no GGUF file: look for a repository of the same model whose name ends in -GGUF"
        )
    elif model.wanted:
        chosen = _of_quant(sets, model.wanted)
        if not chosen:
            raise LocalError(f"{model.repo} has no {model.wanted}; {_told(sets)}")
    else:
        chosen = next((found for quant in USUAL if (found := _of_quant(sets, quant))), sets)
        if len(chosen) > 1 and chosen is sets:
            raise LocalError(f"{model.repo} has several models: add :QUANT or :FILE to the name; {_told(sets)}")
    # (of UD-Q4_K_M and Q4_K_M the plain one)
    return min(chosen, key=lambda one: (len(one[0].path), one[0].path))


def sets_of(files: Sequence[RepoFile]) -> list[list[RepoFile]]:
    """The models of a repository; one that lacks a part is left out."""
    by_path = {file.path: file for file in files if file.path.lower().endswith(".gguf")}
    sets: dict[str, list[RepoFile]] = {}
    for path in sorted(by_path):
        folder, _, name = path.rpartition("/")
        if _NO_MODEL.search(name):
            continue
        parts = [f"{folder}/{part}" if folder else part for part in parts_of_name(name)]
        if all(part in by_path for part in parts):
            sets.setdefault(parts[0], [by_path[part] for part in parts])
    return list(sets.values())


def _of_quant(sets: Sequence[list[RepoFile]], quant: str) -> list[list[RepoFile]]:
    """The models with ``quant`` as a word of their path."""
    word = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?:[-._/]|$)", re.IGNORECASE)
    return [one for one in sets if word.search(one[0].path)]


def _told(sets: Sequence[list[RepoFile]]) -> str:
    names = [one[0].path for one in sets]
    more = ", ..." if len(names) > MAX_SHOWN else ""
    return f"it has {', '.join(names[:MAX_SHOWN])}{more}" if names else "it has no GGUF file"
