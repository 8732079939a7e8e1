"""What ``mycelia model show`` tells about a model on this machine."""

from pathlib import Path

from msgspec import Struct

from mycelia.node.engine.gguf import parts_of
from mycelia.node.engine.kinds import TEXT
from mycelia.node.engine.probe.probe import Model, Problem, Question, probe
from mycelia.node.errors import one_line
from mycelia.proto.wire.errors import LocalError


class ModelCard(Struct, frozen=True):
    """The shape of ``mycelia model show --json``."""

    served_as: str
    path: str
    files: int
    bytes: int
    kind: str
    """text, embedding or rerank. The last two have no template, and share no prefixes."""
    architecture: str
    parameters: int
    quantisation: str
    layers: int
    context: int
    """The longest sequence that it was trained on; 0: unknown."""
    template: str
    """own, chatml (it has none) or broken; none: it holds no conversations."""
    template_problem: str
    thinks: bool
    tools: str
    """template (it describes functions itself), or system (a system message describes them)."""
    format: str
    """The form in which it writes thoughts and calls."""
    reuse: str
    """prefix, checkpoints for a recurrent or hybrid model, or none."""
    weight_bytes: int
    cell_bytes: int
    """Keys and values of one token."""
    buffer_bytes: int
    tokens: int
    memory_bytes: int
    """For weights, buffers and that many ``tokens`` of context, without the states of a recurrent or hybrid model."""


def card_of(served_as: str, path: Path, tokens: int | None) -> ModelCard:
    """Read a model's header in a process of llama.cpp: some tenths of a second. tokens: of context; None: what it was
    trained on, at most 8,192. Raises LocalError for a file that llama.cpp cannot load."""
    found = probe(Question(slots=1, cells=512, host_bytes=None), path)
    if problem := next((one.message for one in found if isinstance(one, Problem)), ""):
        raise LocalError(one_line(problem))
    model = next((one for one in found if isinstance(one, Model)), None)
    if model is None or model.card is None:
        raise LocalError(f"llama.cpp says nothing about {path}")
    card = model.card
    count = tokens or min(model.trained_tokens or 8_192, 8_192)
    template = "broken" if model.chat_problem else "own" if card.has_template else "chatml"
    reuse = "checkpoints" if model.keeps_states else "prefix"
    if model.kind != TEXT:
        template = reuse = "none"
    parts = parts_of(path)
    return ModelCard(
        served_as=one_line(served_as),
        path=one_line(str(path)),
        files=len(parts),
        bytes=sum(part.stat().st_size for part in parts if part.exists()),
        kind=model.kind,
        architecture=one_line(card.architecture),
        parameters=card.parameters,
        quantisation=one_line(card.quantisation),
        layers=model.layers - 1,
        context=model.trained_tokens,
        template=template,
        template_problem=one_line(model.chat_problem),
        thinks=card.thinks,
        tools="template" if card.reads_tools else "system",
        format=card.format,
        reuse=reuse,
        weight_bytes=model.weight_bytes,
        cell_bytes=card.cell_bytes,
        buffer_bytes=card.buffer_bytes,
        tokens=count,
        memory_bytes=model.weight_bytes + card.buffer_bytes + count * card.cell_bytes,
    )
