"""The sizes and rates of an engine without a model, and which requests it refuses."""

from dataclasses import dataclass

from mycelia.node.engine.engine import EngineFailed, EngineRequest
from mycelia.node.engine.fake.model import NUM_VOCAB
from mycelia.node.engine.kinds import TEXT, cannot
from mycelia.node.engine.prompts import prompt_over_context
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LocalError


@dataclass(frozen=True)
class FakeSettings:
    """Sizes and rates. Rates are in tokens/s; 0: no time passes."""

    model_name: str = "fake"
    cells: int = 65_536
    slots: int = 8
    max_waiting: int = 64
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    """Rate of each request; requests do not slow each other."""
    coalesce_s: float = 0.0
    """See ``COALESCE_S``; 0: one item per token."""
    kind: str = TEXT
    """See ``kinds.py``."""


def refusal_of(request: EngineRequest, settings: FakeSettings) -> EngineFailed | None:
    prompt, cells, kind = request.prompt, settings.cells, settings.kind
    if kind != TEXT:
        return EngineFailed("bad_request", cannot(settings.model_name, kind, TEXT), False)
    try:
        check_sampling(request.sampling)
    except LocalError as exc:
        return EngineFailed("bad_request", str(exc), False)
    if request.sampling.grammar:
        return EngineFailed("bad_request", "the fake engine reads no grammars", False)
    if not prompt:
        return EngineFailed("bad_request", "the prompt has no tokens", False)
    if not 0 <= min(prompt) <= max(prompt) < NUM_VOCAB:
        return EngineFailed("bad_request", f"token ids must be below {NUM_VOCAB}", False)
    if len(prompt) >= cells:
        return EngineFailed("too_long", prompt_over_context(cells, len(prompt)), False)
    return None


def reported_of(request: EngineRequest) -> range:
    """The tokens of the prompt whose logprobs are asked for."""
    if not request.sampling.prompt_logprobs:
        return range(0)
    return range(max(request.sampling.logprobs_from, 1), len(request.prompt) - request.resumed_tokens)
