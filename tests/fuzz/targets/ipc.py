"""Hostile text on its way to the engine process, and hostile bytes on the way back.

Strangers' text that a node passes to its engine process either cannot be written, which the caller learns, or is read
there unchanged. Bytes that come back are messages or a LocalError.
"""

import random
from io import BytesIO
from typing import Any

from mycelia.node.engine import ipc, pipe
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LimitExceeded, LocalError
from mycelia.proto.wire.messages import Sampling
from tests.fuzz.mutate import splice, spoil_bytes
from tests.proto.examples import LOGPROBS, USAGE, VITALS

_TEXTS = ("", "x", "\x00", "\ud800", "é😀", "y" * 3_000, "{}", '{"tool_calls": 5}')
_NUMBERS = (0, 1, -1, 2**31, 2**32 - 1, 2**63, 2**64, 10**30)
_REALS = (0.0, -0.0, 1.0, -1.0, 1e308, float("nan"), float("inf"), 0.5)
_KINDS = ("gbnf", "json_schema", "regex", "lark", "", "x")
_FROM_CHILD = [
    pipe.encode(message)[4:]
    for message in (
        ipc.Started(1, 64),
        ipc.Generated(1, pack_tokens([1, 2]), b"ab", (LOGPROBS,)),
        ipc.Ended(1, "stop", USAGE),
        ipc.Refused(1, "overloaded", "later", True, 0.5),
        ipc.Rendered(1, pack_tokens([1]), ""),
        ipc.Spelled(1, ["a"], ""),
        ipc.Embedded(1, [bytes(8)], ""),
        ipc.LoadChanged(VITALS),
        ipc.Pong(False, 0.0),
    )
]

Item = tuple[str, bytes | tuple[object, ...]]
"""The direction, and the fields of a question or the bytes of an answer."""


class Ipc:
    """The pipes between a node and its engine process."""

    name = "ipc"

    def make(self, rng: random.Random) -> Item:
        way = rng.choice(("render", "parse", "pair", "spell", "embed", "submit", "back", "back"))
        if way == "back":
            body = rng.choice(_FROM_CHILD)
            spoilt = spoil_bytes(body, rng) if rng.random() < 0.8 else splice(body, rng.choice(_FROM_CHILD), rng)
            frame = len(spoilt).to_bytes(4, "little") + spoilt
            return way, spoil_bytes(frame, rng) if rng.random() < 0.2 else frame
        if way == "submit":
            real = tuple(rng.choice(_REALS) if rng.random() < 0.2 else 0.5 for _ in range(6))
            numbers = tuple(rng.choice(_NUMBERS) if rng.random() < 0.2 else 1 for _ in range(5))
            texts = tuple(rng.choice(_TEXTS) for _ in range(rng.randrange(5)))
            grammar = (rng.choice(_TEXTS), rng.choice(_KINDS)) if rng.random() < 0.5 else ("", "gbnf")
            return way, (real, numbers, texts, grammar, rng.choice((b"", b"abc", pack_tokens([5] * 9))))
        return way, tuple(rng.choice(_TEXTS) for _ in range(rng.randrange(9)))

    def check(self, item: Item) -> bool:
        way, fields = item
        if isinstance(fields, bytes):
            return _read_back(fields)
        try:
            message = _question(way, fields)
            frame = pipe.encode(message)
        except (LocalError, LimitExceeded, UnicodeEncodeError):
            return False
        read = pipe.read_message(BytesIO(frame))
        assert read == message and type(read) is type(message)
        return True


def _question(way: str, fields: tuple[object, ...]) -> ipc.ToChild:
    texts = [text for text in fields if isinstance(text, str)]
    match way:
        case "render":
            return ipc.Render(1, [(text, text, text) for text in texts], "".join(texts))
        case "parse":
            return ipc.Parse(1, "".join(texts))
        case "pair":
            return ipc.Pair(1, "".join(texts[:1]), "".join(texts[1:]), b"c" * 32)
        case "spell":
            return ipc.Spell(1, [text.encode("utf-8", "surrogatepass") for text in texts])
        case "embed":
            return ipc.Embed(1, [text.encode("utf-8", "surrogatepass") for text in texts], b"c" * 32)
    parts: tuple[Any, ...] = fields
    real, numbers, stops, grammar, prompt = parts
    sampling = Sampling(
        **dict(
            zip(
                ("temperature", "top_p", "min_p", "repeat_penalty", "frequency_penalty", "presence_penalty"),
                real,
                strict=True,
            )
        ),
        **dict(zip(("max_tokens", "seed", "top_k", "repeat_last_n", "logprobs"), numbers, strict=True)),
        stop=stops,
        grammar=grammar[0],
        grammar_kind=grammar[1],
    )
    check_sampling(sampling)
    return ipc.Submit(1, prompt, sampling, 0, None, b"c" * 32)


def _read_back(data: bytes) -> bool:
    try:
        return bool(pipe.FrameBuffer().feed(data))
    except LocalError:
        return False
