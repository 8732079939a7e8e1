"""A node behind the gateway for tests that do not look at its state."""

from collections.abc import Mapping, Sequence

import trio

from mycelia.node.serve.api import Embedded, VocabularyTexts
from mycelia.node.views.history import DayRow, RequestRow, TraceView, UsageRow
from mycelia.node.views.state import LinksRow
from mycelia.proto.wire.errors import LocalError


class Unobserved:
    """A part of ``Api`` in which nothing ever happens."""

    texts = VocabularyTexts()

    model: str

    @property
    def own_models(self) -> Sequence[str]:
        return [self.model]

    def model_for(self, kind: str) -> str:
        return self.model

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        raise LocalError("it ranks no documents")

    def vocabulary_texts(self, model: str = "") -> VocabularyTexts:
        return self.texts

    async def tokenize_text(self, text: str, client: bytes = b"", model: str = "") -> list[int]:
        return list(text.encode())

    async def detokenize(self, tokens: Sequence[int], model: str = "") -> str:
        return bytes(tokens).decode()

    aliases: Mapping[str, str] = {}

    def name_of(self, named: str) -> str:
        return self.aliases.get(named, named)

    def health(self) -> str:
        return "ok"

    def recent_requests(self) -> list[RequestRow]:
        return []

    async def requests_changed(self, version: int) -> int:
        await trio.sleep_forever()
        raise AssertionError("not reached")

    async def trace(self, prefix: str) -> TraceView | None:
        return None

    async def links(self) -> list[LinksRow]:
        return []

    async def usage(self, num_days: int) -> list[UsageRow]:
        return []

    def days(self, num_days: int) -> list[DayRow]:
        return []

    def pause(self, for_s: float | None) -> str:
        return "paused by its owner"

    def resume(self) -> str:
        return ""

    def metrics(self) -> bytes:
        return b""
