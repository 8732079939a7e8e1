"""Hostile bytes for ``proto.codec.decode``, which answers any bytes with a Message or a RemoteError, within bounded
memory.

Tracing memory makes decoding three times slower. So it is on for every input that could be expensive (much structure,
false lengths, or long) and for a share of the rest.
"""

import random

import cbor2

from mycelia.node.requests.failures import failed_of
from mycelia.proto.wire.codec import MAX_MESSAGE_BYTES, decode, encode
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    Announce,
    Ask,
    ChatMessage,
    Delta,
    Generate,
    Hello,
    Message,
    Reconcile,
    Repair,
    Text,
    Version,
)
from tests.fuzz.mutate import bomb, splice, spoil_bytes, spoil_value
from tests.proto.examples import EXAMPLES, HEAD, LOGPROBS, PEER, SAMPLING, SPACE

STRUCTURE_BYTES = 1 << 20
"""Memory that any input may take."""
STRING_FACTOR = 7
"""Additional memory, times the input's length: a chat with one character of four bytes has all characters in four
bytes, then its bytes and its encoding."""
DEAR_BYTES = 2_048

LARGE: list[Message] = [
    Hello(wire_version=1, agent="a" * 64, served=EXAMPLES[0].served * 16),  # type: ignore[union-attr]
    Repair(head=HEAD, mode=1, from_seq=1, upserts=bytes(range(252)) * 9, removes=bytes(800)),
    Reconcile(versions=tuple(Version(owner=PEER, namespace=SPACE, epoch=2**40, seq=i) for i in range(200))),
    Delta(head=HEAD, from_seq=1, upserts=bytes(9 * 600), removes=bytes(8 * 50)),
    Generate(request_id=bytes(16), namespace=SPACE, prompt=bytes(4_096), sampling=SAMPLING, promised_tokens=64),
    Ask(
        request_id=bytes(16),
        model="m",
        messages=tuple(ChatMessage(role="user", content="😀" * i) for i in range(30)),
        sampling=SAMPLING,
    ),
    Text(text="é" * 200, logprobs=(LOGPROBS,) * 32),
    Announce(head=HEAD),
]
CORPUS = [encode(message) for message in (*EXAMPLES, *EXAMPLES, *LARGE)]
"""The small messages twice: most kinds of mistakes fit there, and they cost little time."""
VALUES = [cbor2.loads(data) for data in CORPUS]

Item = tuple[bytes, bool]
"""The bytes, and whether they were made to be expensive."""


class Codec:
    """A peer's bytes."""

    name = "codec"
    weight = 8.0
    """Every message of every peer comes this way, and a check takes 30 µs."""

    def make(self, rng: random.Random) -> Item:
        way = rng.randrange(100)
        if way < 45:
            return spoil_bytes(rng.choice(CORPUS), rng), False
        if way < 85:
            return spoil_value(rng.choice(VALUES), rng, rng.choice((0.02, 0.1, 0.3))), True
        if way < 92:
            return splice(rng.choice(CORPUS), rng.choice(CORPUS), rng), False
        if way < 97:
            return bomb(rng), True
        return rng.choice((b"", b"\xa2\x00", b"\xa3\x00\x06\x01")) + rng.randbytes(rng.randrange(300)), False

    def check(self, item: Item) -> bool:
        data, _ = item
        try:
            message = decode(data)
        except RemoteError as exc:
            encode(failed_of(exc))  # (clients are told)
            return False
        if len(data) > MAX_MESSAGE_BYTES or encode(message) != data:
            raise AssertionError("a message has two encodings")
        return True

    def allowance(self, item: Item) -> int:
        return STRUCTURE_BYTES + STRING_FACTOR * len(item[0])

    def is_dear(self, item: Item) -> bool:
        data, was_made_dear = item
        return was_made_dear or len(data) >= DEAR_BYTES
