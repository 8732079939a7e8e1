"""The part of an engine's parent that asks the child about texts: their tokens, the texts of tokens, and vectors."""

import itertools
from collections.abc import Callable, Hashable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.calls import Calls, Question
from mycelia.node.engine.kinds import RERANK, TEXT, cannot
from mycelia.node.engine.known_model import KnownModel
from mycelia.node.engine.prompts import PromptLimit
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.blocks import pack_tokens, token_array
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Conversation

NO_TOKENS = "token ids are integers from 0 to 2^32 - 1"


class AskedTexts(KnownModel):
    """See ``Engine``. Questions survive restarts of the child, except those that the text may have caused."""

    def __init__(self, settings: EngineSettings) -> None:
        super().__init__(settings)
        self._keys = itertools.count()
        self._calls = Calls(self._keys)

    async def tokenize_chat(self, conversation: Conversation, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        if self.info.kind != TEXT:
            raise LocalError(cannot(self.info.name, self.info.kind, TEXT))
        size = sum(len(message.content) for message in conversation.messages)
        question = partial(ipc.Render.of, conversation, client, subnet)
        return await self._tokens(size, conversation, question, client, subnet)

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        return await self._tokens(len(text), text, lambda key: ipc.Parse(key, text, client, subnet), client, subnet)

    async def tokenize_pair(self, query: str, document: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        if self.info.kind != RERANK:
            raise LocalError(cannot(self.info.name, self.info.kind, RERANK))
        document = document[: self.info.context_tokens * self.info.token_bytes]  # (the rest is not read)
        question = partial(ipc.Pair, query=query, document=document, client=client, subnet=subnet)
        return await self._tokens(len(query), (query, document), question, client, subnet)

    async def _tokens(
        self, size: int, identity: Hashable, question: Callable[[int], Question], client: bytes, subnet: str
    ) -> Sequence[int]:
        PromptLimit(self.info.context_tokens, self.info.token_bytes).check_size(size)
        answer = await self._calls.ask_once(identity, question, client, subnet)
        assert isinstance(answer, ipc.Rendered)
        return token_array(answer.tokens)

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        packed = _packed(sequences)
        answer = await self._calls.ask(lambda key: ipc.Spell(key, packed))
        assert isinstance(answer, ipc.Spelled)
        return answer.texts

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        packed = _packed(texts)
        answer = await self._calls.ask(lambda key: ipc.Embed(key, packed, client, subnet), client, subnet)
        assert isinstance(answer, ipc.Embedded)
        return [np.frombuffer(vector, np.float32) for vector in answer.vectors]


def _packed(sequences: Sequence[Sequence[int]]) -> list[bytes]:
    """The sequences, packed. Raises LocalError for invalid tokens."""
    try:
        return [pack_tokens(tokens) for tokens in sequences]
    except (OverflowError, TypeError) as exc:
        raise LocalError(NO_TOKENS) from exc
