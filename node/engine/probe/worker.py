"""The process that answers the questions of ``mycelia doctor``, started by ``probe.py``."""

import ctypes
import os
import sys
from pathlib import Path

import msgspec

from mycelia.node.engine.child.llama.bindings import L, Log, bindings_version
from mycelia.node.engine.child.llama.devices import library_version, read_shape
from mycelia.node.engine.child.llama.models import (
    find_gpus,
    keeps_states,
    list_backends,
    list_devices,
    load_model,
    model_params,
)
from mycelia.node.engine.child.template import Template
from mycelia.node.engine.probe.probe import Finding, Library, Model, Problem, Question
from mycelia.node.engine.sizing import CellBudget, CellChoice, Offload, choose_cells, free_after_weights, place_layers
from mycelia.proto.wire.errors import LocalError


def inspect_library() -> Library:
    return Library(
        llama_cpp=library_version(L._lib),
        bindings=bindings_version(),
        built_for=list_backends(),
        can_offload=bool(L.llama_supports_gpu_offload()),
        devices=list_devices(),
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
    shape, text = read_shape(L, model), ctypes.create_string_buffer(256)
    L.llama_model_desc(model, text, len(text))
    placement = place_layers(shape.num_layers, offload, gpus)
    choice = CellChoice(question.cells)
    if not question.cells:
        budget = CellBudget(question.slots, question.host_bytes)
        choice = choose_cells(shape, placement, free_after_weights(shape, placement), budget)
    return Model(
        description=text.value.decode("utf-8", "replace"),
        weight_bytes=shape.weight_bytes,
        trained_tokens=shape.trained_tokens,
        keeps_states=keeps_states(model),
        layers=shape.num_layers + 1,
        gpu_layers=placement.offloaded,
        offload=placement.describe(),
        cells=choice.cells,
        cells_bytes=choice.cells * shape.cell_bytes,
        cells_note=choice.note,
        chat_problem=_chat_problem(L.llama_model_chat_template(model, None) or b""),
    )


def _chat_problem(source: bytes) -> str:
    try:
        Template(source.decode("utf-8", "replace"), str)
    except LocalError as exc:
        return str(exc)
    return ""


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
