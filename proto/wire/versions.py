"""The fields that a wire version added to older kinds, and how nodes of two versions work together.

A node speaks its own version and the one before. A version adds fields with a default at the end of a kind. They are
left out of the encoding while they have their default, and are never sent to a peer of the version before.
"""

from typing import Any, TypeVar

import msgspec

from mycelia.proto.wire.messages import Ask, Generate, Message, Route, Sampling

ADDED_IN_2: dict[type, dict[str, Any]] = {
    Generate: {"tag": b"", "scope": 0, "open_tokens": 0},
    Ask: {
        "cache_salt": "",
        "shared_messages": 0,
        "template_options": "",
        "continues_final": False,
        "reads_format": False,
    },
    Route: {"format": "", "opened": ""},
    Sampling: {
        "prompt_logprobs": 0,
        "logprobs_from": 0,
        "logit_bias": b"",
        "thought_opening": "",
        "thought_closing": "",
    },
}
"""Kind or record -> field -> default."""

LEFT_OUT: dict[type, dict[str, Any]] = {
    kind: {info.encode_name: fields[info.name] for info in msgspec.structs.fields(kind) if info.name in fields}
    for kind, fields in ADDED_IN_2.items()
}
"""The same by the fields' names on the wire."""

MAX_STOP_CHARS_1 = 256
"""The bound of a stop string in version 1."""
GRAMMAR_KINDS_1 = ("gbnf", "json_schema")
"""The kinds of grammars in version 1."""

MessageT = TypeVar("MessageT", bound=Message)


def for_version(message: MessageT, wire_version: int) -> MessageT:
    """``message`` without the fields that a peer of ``wire_version`` does not know."""
    added = ADDED_IN_2.get(type(message))
    return msgspec.structs.replace(message, **added) if added and wire_version < 2 else message


def version_of(sampling: Sampling) -> int:
    """The first version whose nodes can serve this: without these fields they would answer another request."""
    if sampling.prompt_logprobs or sampling.logit_bias or sampling.thought_closing or not sampling.max_tokens:
        return 2
    if sampling.grammar and sampling.grammar_kind not in GRAMMAR_KINDS_1:
        return 2
    return 2 if any(len(stop) > MAX_STOP_CHARS_1 for stop in sampling.stop) else 1
