"""Hostile questions for vectors and ranks, after the codec, and hostile answers to a node's own ones.

Any question gets an answer that can be sent. Any answer leads to as many vectors as there are texts, all finite and of
one width, or to a LocalError.
"""

import random
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import trio

from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.kinds import RERANK
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.vectors import Vectors
from mycelia.proto.events import Event
from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import EmbedTexts, Failed, LinksQuery, Message, TextVectors

_OWN, _RANKER = FakeEngine(FakeSettings()), FakeEngine(FakeSettings(model_name="ranker", kind=RERANK))
_OVERLAY = SimpleNamespace(members=SimpleNamespace(is_leaving=False, is_paused=False))
_NAMESPACES = (b"", _OWN.info.namespace, _RANKER.info.namespace, bytes(16), b"x")
_TEXTS = ("", "a", "a cat", "\ud800", "é😀", "\x00")
_LONG = ("y" * 20_000, "y" * 100_001)
_PEERS = (b"a" * 38, b"b" * 38)

Answer = tuple[bytes, bytes, int] | str
"""namespace, vectors, number of tokens; or the code of a failure."""
Item = tuple[str, bytes, str, list[str], bool, list[Answer]]
"""model, namespace, query, texts, whether it is passed on, answers of peers."""


class VectorsOfTexts:
    """Both sides of a question for vectors."""

    name = "vectors"
    weight = 0.3

    def make(self, rng: random.Random) -> Item:
        width = rng.choice((1, 1, 3, 32))
        texts = [rng.choice(_TEXTS) for _ in range(rng.choice((1, 2, 2, 16, 40)))]
        if rng.random() < 0.1:
            texts[0] = rng.choice(_LONG)
        answers: list[Answer] = []
        for _ in range(rng.randrange(9)):
            if rng.random() < 0.3:
                answers.append(rng.choice(("overloaded", "bad_request", "too_long", "unknown_model", "leaving", "x")))
            else:
                numbers = rng.choice((0.5, 0.5, 0.5, 1e30, -1.0, float("nan"), float("inf")))
                size = 4 * width * rng.choice((len(texts), len(texts), 1, 2, 16)) + rng.choice((0, 0, 0, 1, 2))
                data = np.full(-(-size // 4), numbers, "<f4").tobytes()[:size]
                answers.append((rng.choice(_NAMESPACES[1:4]), data, rng.randrange(2**31)))
        model, query = rng.choice(("fake", "ranker", "other")), rng.choice(("", "", *_TEXTS, _LONG[1]))
        return model, rng.choice(_NAMESPACES), query, texts, rng.random() < 0.5, answers

    def check(self, item: Item) -> bool:
        return trio.run(_check, item)


class _Stream:
    peer = _PEERS[0]

    def __init__(self, message: Message) -> None:
        self._message: Message | None = message
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        message, self._message = self._message, None
        if message is None:
            await trio.sleep_forever()
        assert message is not None
        return message

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def aclose(self) -> None: ...

    async def reset(self) -> None: ...


class _Network:
    """Peers that answer with what is scripted, and are silent afterwards."""

    def __init__(self, answers: Sequence[Answer]) -> None:
        self._answers = list(answers)

    def remote_address(self, peer: bytes) -> str:
        return "/ip4/127.0.0.1/tcp/1"

    async def open(self, peer: bytes, protocol: str, waits: bool = True) -> _Stream:
        await trio.lowlevel.checkpoint()
        answer = self._answers.pop(0) if self._answers else "leaving"
        if isinstance(answer, str):
            failed = Failed(code=answer, message="no", retryable=False)
            return _Stream(failed if answer != "x" else LinksQuery())
        namespace, vectors, num_tokens = answer
        return _Stream(TextVectors(namespace=namespace, vectors=vectors, num_tokens=num_tokens))


class _Models:
    """Both peers serve every model."""

    async def find(self, model: str, client: bytes = b"", peer: bytes = b"") -> list[bytes]:
        await trio.lowlevel.checkpoint()
        return list(_PEERS)

    def name_of(self, model: str) -> str:
        return model

    def servers(self, model: str) -> list[bytes]:
        return list(_PEERS)

    def others(self, engine: FakeEngine) -> list[bytes]:
        return list(_PEERS)

    def sooner(self, engine: FakeEngine) -> list[bytes]:
        return []

    def known_names(self) -> list[str]:
        return []


async def _check(item: Item) -> bool:
    model, namespace, query, texts, is_passed_on, answers = item
    own, events = OwnModels(_OWN), list[Event]()
    own.add(_RANKER)
    vectors = Vectors(own, _Network(answers), _Models(), _OVERLAY, events.append)  # type: ignore[arg-type]
    try:
        made = await (vectors.rank(query, texts, b"c", model) if query else vectors.embed(texts, b"c", model))
    except LocalError:
        is_made = False
    else:
        is_made = True
        assert len(made.vectors) == len(texts) and len({len(vector) for vector in made.vectors}) == 1
        assert all(np.isfinite(vector).all() for vector in made.vectors)
        assert not query or all(0 <= vector[0] <= 1 for vector in made.vectors)
    try:
        sent = EmbedTexts(
            model=model, namespace=namespace, query=query, texts=tuple(texts[:16]), is_passed_on=is_passed_on
        )
        question = decode(encode(sent))
    except (LocalError, UnicodeEncodeError):
        return is_made
    stream = _Stream(question)
    with trio.fail_after(20):
        await vectors.serve_stream(stream)
    (answer,) = stream.sent
    assert isinstance(answer, TextVectors | Failed) and decode(encode(answer)) == answer
    return is_made or isinstance(answer, TextVectors)
