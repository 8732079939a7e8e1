"""Hostile prompts for ``Entry.ask``: submitted to the overlay with its tokens, or refused with a code."""

import random

import trio

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.model import NUM_VOCAB
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.requests.entry import Entry
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.salts import Salts
from mycelia.node.telemetry.requests import RequestLog
from mycelia.proto.events import Event, RequestSubmitted
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Ask, ChatMessage, Failed, Sampling

_ENGINE = FakeEngine(FakeSettings(cells=2_000))
_NAMESPACES = (b"", b"", _ENGINE.info.namespace, bytes(16))
_TEXTS = ("", "", " \n", "x", "é😀", "<|im_end|>", "\x00", "y" * 1_999, "y" * 2_000, "y" * 60_000)
_TOKENS = (
    b"",
    b"",
    pack_tokens([5]),
    pack_tokens([NUM_VOCAB - 1]),
    pack_tokens([NUM_VOCAB]),
    b"\xff" * 8,
    b"\x05\x00",
    bytes(8_000),
)
_NUMBERS = (0, 1, 2, 64, 1_999, 2_000, 131_072, 131_073, 2**31, -1)
_REALS = (0.0, 1.0, -1.0, 2.5, 1e9, float("nan"), float("inf"))
_CODES = {"unknown_model", "bad_request", "too_long", "overloaded"}

Item = tuple[str, bytes, list[tuple[str, str, str]], str, str, bytes, bytes, int, float]
"""model, namespace, messages, tools, text, tokens, answered, max_tokens, temperature."""


class AskAtEntry:
    """An Ask of a light client or of another node, after the codec."""

    name = "entry"

    def make(self, rng: random.Random) -> Item:
        way = rng.choice((0, 0, 1, 1, 2, 2, 3))
        messages = [(rng.choice(("user", "", "x" * 32)), rng.choice(_TEXTS), "") for _ in range(rng.randrange(1, 4))]
        return (
            rng.choice(("", "fake")) if rng.random() < 0.9 else "other",
            rng.choice(_NAMESPACES) if rng.random() < 0.3 else b"",
            messages if way in (0, 3) else [],
            rng.choice(("", "[]", "{")),
            rng.choice(_TEXTS) if way in (1, 3) else "",
            rng.choice(_TOKENS) if way in (2, 3) else b"",
            rng.choice(_TOKENS) if rng.random() < 0.3 else b"",
            rng.choice(_NUMBERS) if rng.random() < 0.3 else 64,
            rng.choice(_REALS) if rng.random() < 0.2 else 0.0,
        )

    def check(self, item: Item) -> bool:
        return trio.run(_ask, item)


class _Addresses:
    """The part of the network that an entry needs before it has a prompt."""

    def remote_address(self, peer: bytes) -> str:
        return "/ip4/127.0.0.1/tcp/1"


async def _ask(item: Item) -> bool:
    model, namespace, messages, tools, text, tokens, answered, max_tokens, temperature = item
    ask = Ask(
        request_id=b"r" * 16,
        model=model,
        namespace=namespace,
        messages=tuple(ChatMessage(role=role, content=content, extras=extras) for role, content, extras in messages),
        tools=tools,
        text=text,
        tokens=tokens,
        answered=answered,
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature),
    )
    events: list[Event] = []
    entry = Entry(OwnModels(_ENGINE), _Addresses(), events.append, lambda *_: 1.0, RequestLog(), Salts(bytes), str)  # type: ignore[arg-type]
    async with entry.ask(ask, client=b"s" * 32) as frames:
        if not events:
            failed = await anext(frames)
            assert isinstance(failed, Failed) and failed.code in _CODES and failed.message
            return False
    submitted = events[0]
    assert isinstance(submitted, RequestSubmitted)
    assert 0 < len(submitted.prompt) < _ENGINE.info.context_tokens
    assert len(submitted.prompt) + submitted.sampling.max_tokens <= _ENGINE.info.context_tokens
    return True
