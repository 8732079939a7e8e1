"""The process that answers the questions of ``mycelia doctor``, started by ``probe.py``."""

import os
import re
import sys
from pathlib import Path
from typing import Any

import msgspec

from mycelia.node.engine.child.chat import ChatTemplate
from mycelia.node.engine.child.llama.bindings import LIBRARY, L, Log, bindings_version
from mycelia.node.engine.child.llama.devices import library_version, read_metadata, read_shape
from mycelia.node.engine.child.llama.models import (
    find_gpus,
    keeps_states,
    list_backends,
    list_devices,
    load_model,
    model_kind,
    model_params,
    unusable_backends,
)
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.probe.probe import Card, Finding, Library, Model, Problem, Question
from mycelia.node.engine.sizing import CellBudget, CellChoice, Offload, choose_cells, free_after_weights, place_layers
from mycelia.node.formats.choosing import format_name
from mycelia.proto.wire.errors import LocalError

_FEATURE = re.compile(r"(\w+) = 1\b")
_SIZES = {"Small": "_S", "Medium": "_M", "Large": "_L"}
"""llama.cpp's words for the last letter of a quantisation's name."""


def inspect_library() -> Library:
    return Library(
        llama_cpp=library_version(LIBRARY),
        bindings=bindings_version(),
        built_for=list_backends(),
        unusable=unusable_backends(),
        can_offload=bool(L.llama_supports_gpu_offload()),
        devices=list_devices(),
        features=_FEATURE.findall((L.llama_print_system_info() or b"").decode("utf-8", "replace")),
    )


def inspect_model(path: Path, question: Question) -> Model:
    """Read a model's metadata, without its weights, and decide as ``Llama`` would. Raises LocalError."""
    log = Log()
    L.llama_backend_init()
    offload = Offload(question.gpu_layers, question.tensor_split, question.main_gpu)
    gpus = find_gpus(offload)
    params = model_params(offload, gpus)
    params.no_alloc = True
    params.load_mode = L.LLAMA_LOAD_MODE_NONE  # With a mapped file llama.cpp abort()s.
    model = load_model(path, params, log)
    shape = read_shape(L, model, path)
    placement = place_layers(shape.num_layers, offload, gpus)
    kind = model_kind(model)
    choice = CellChoice(question.cells if kind == TEXT else 0)
    if not question.cells and kind == TEXT:
        budget = CellBudget(question.slots, question.host_bytes)
        choice = choose_cells(shape, placement, free_after_weights(shape, placement), budget)
    vocabulary = ModelVocabulary(model)
    template = ChatTemplate(vocabulary.chat_template, vocabulary, tools_text=vocabulary.tools_template)
    card = Card(
        architecture=read_metadata(L, model, "general.architecture"),
        parameters=int(L.llama_model_n_params(model)),
        quantisation=_quantisation(model),
        has_template=bool(vocabulary.chat_template),
        thinks="+" in format_name(vocabulary.chat_template, vocabulary.has_token),
        reads_tools=template.reads_tools,
        format=format_name(vocabulary.chat_template, vocabulary.has_token),
        cell_bytes=shape.cell_bytes if kind == TEXT else 0,
        buffer_bytes=shape.batch_bytes,
    )
    return Model(
        description=f"{card.architecture} {_rounded(card.parameters)} {card.quantisation}",
        weight_bytes=shape.weight_bytes,
        trained_tokens=shape.trained_tokens,
        keeps_states=keeps_states(model),
        layers=shape.num_layers + 1,
        gpu_layers=placement.offloaded,
        offload=placement.describe(),
        cells=choice.cells,
        cells_bytes=choice.cells * shape.cell_bytes,
        cells_note=choice.note,
        chat_problem=template.problem if kind == TEXT else "",
        card=card,
        kind=kind,
    )


def _quantisation(model: Any) -> str:
    """Such as Q4_K_M."""
    told = (L.llama_ftype_name(L.llama_model_ftype(model)) or b"").decode("utf-8", "replace")
    name, _, size = told.removeprefix("(guessed) ").removeprefix("all ").partition(" - ")
    return name.split(" ")[0] + _SIZES.get(size, "")


def _rounded(parameters: int) -> str:
    """A number of parameters as models' names have it, such as 135M or 8B."""
    return f"{parameters / 1e9:.1f}B".replace(".0B", "B") if parameters >= 1e9 else f"{parameters / 1e6:.0f}M"


def _say(finding: Finding) -> None:
    os.write(1, msgspec.json.encode(finding) + b"\n")


def main() -> None:
    question, path = msgspec.json.decode(sys.argv[1], type=Question), sys.argv[2]
    _say(inspect_library())
    if path:
        try:
            _say(inspect_model(Path(path), question))
        except LocalError as exc:
            _say(Problem(str(exc)))


if __name__ == "__main__":
    main()
