"""Fields of requests that would change the answer and are not served. They are refused by name, unless they have the
value at which they change nothing: some clients send that for every field they know."""

from typing import Any

import msgspec

from mycelia.node.serve.http.errors import HttpError


class UnservedSampling(msgspec.Struct, kw_only=True):
    """vLLM's and llama-server's. The default of each is the value at which it changes nothing."""

    min_tokens: Any = 0
    ignore_eos: Any = False
    stop_token_ids: Any = None
    allowed_token_ids: Any = None
    bad_words: Any = None
    use_beam_search: Any = False
    length_penalty: Any = 1
    mirostat: Any = 0
    typical_p: Any = 1
    dynatemp_range: Any = 0
    xtc_probability: Any = 0
    dry_multiplier: Any = 0


_NEUTRAL = {field.name: field.default for field in msgspec.structs.fields(UnservedSampling)}


def refuse_sampling(body: UnservedSampling) -> None:
    """Raises HttpError for a field of ``UnservedSampling`` that changes something."""
    for name, neutral in _NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value != neutral and (value or neutral):
            raise HttpError(400, f"{name} is not served", param=name)


def refuse_used(body: msgspec.Struct, *names: str) -> None:
    """Raises HttpError for a field of ``names`` that has a value."""
    for name in names:
        if getattr(body, name):
            raise HttpError(400, f"{name} is not served", param=name)
