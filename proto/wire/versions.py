"""What a wire version added to kinds that are older, and how nodes of both versions get on.

A node speaks its own version and the one before. What a version adds to a kind are last fields with a default, which
are left out of the encoding while they have it; to a peer of the version before they are not sent otherwise.
"""

from typing import Any, TypeVar

import msgspec

from mycelia.proto.wire.messages import Ask, Generate, Message

ADDED_IN_2: dict[type, dict[str, Any]] = {
    Generate: {"tag": b"", "scope": 0, "open_tokens": 0},
    Ask: {"cache_salt": "", "shared_messages": 0},
}
"""Kind -> field -> default."""

LEFT_OUT: dict[type, dict[str, Any]] = {
    kind: {info.encode_name: fields[info.name] for info in msgspec.structs.fields(kind) if info.name in fields}
    for kind, fields in ADDED_IN_2.items()
}
"""The same by the fields' names on the wire."""

MessageT = TypeVar("MessageT", bound=Message)


def for_version(message: MessageT, wire_version: int) -> MessageT:
    """``message`` without what a peer of ``wire_version`` does not know."""
    added = ADDED_IN_2.get(type(message))
    return msgspec.structs.replace(message, **added) if added and wire_version < 2 else message
