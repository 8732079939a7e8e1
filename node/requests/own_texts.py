"""What the HTTP API asks the engines for, without a request to the swarm: tokens and texts."""

from collections.abc import Sequence

from mycelia.node.engine.engine import Engine
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.serve.api import VocabularyTexts
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Conversation


class OwnTexts:
    """See the methods of ``Api``. model: one that is served here; empty: the first."""

    def __init__(self, models: OwnModels) -> None:
        self._models = models

    async def tokenize(self, conversation: Conversation, client: bytes = b"", model: str = "") -> list[int]:
        return list(await self._engine(model).tokenize_chat(conversation, client))

    async def tokenize_text(self, text: str, client: bytes = b"", model: str = "") -> list[int]:
        return list(await self._engine(model).tokenize_text(text, client))

    async def detokenize(self, tokens: Sequence[int], model: str = "") -> str:
        (text,) = await self._engine(model).detokenize([tokens])
        return text

    def vocabulary(self, model: str = "") -> VocabularyTexts:
        info = self._engine(model).info
        return VocabularyTexts(info.begin_text, info.end_text, info.begin_token, info.chat_template)

    def _engine(self, model: str) -> Engine:
        engine = self._models.named(model)
        if engine is None:
            raise LocalError(f"this node does not serve {model!r}")
        return engine
