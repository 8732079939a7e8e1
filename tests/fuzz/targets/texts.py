"""Hostile texts for a real tokenizer, which is not Python: tokens of the vocabulary, or a TooLongError."""

import random

from mycelia.node.engine.child.chat import ChatTemplate
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.prompts import PromptLimit, TooLongError
from mycelia.proto.wire.messages import ChatMessage
from tests.node.engine.gguf_files import quick_model

_CRUMBS = (
    "a", "the ", " ", "\n", "\t", "\x00", "\x7f", "\u200b", "\u0301", "\ufeff", "\ud800", "\U0010ffff", "😀", "日本",
    "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_", "<", "|>", "'s", "==", "\r\n", "É", "7", "\u2028",
)  # fmt: skip
_LIMIT = PromptLimit(1_000, 90)


class Texts:
    """The text of an Ask, and of a conversation's messages."""

    name = "texts"
    weight = 2.0

    def __init__(self) -> None:
        self._llama = Llama(quick_model(), num_cells=1_024, num_sequences=4, num_threads=1, batch_tokens=64)
        self._template = ChatTemplate(self._llama.chat_template, self._llama, limit=_LIMIT)
        turns = [ChatMessage(role="user", content="x"), ChatMessage(role="assistant", content="x")]
        self._num_controls = sum(not self._llama.piece(token) for token in self._template.tokens(turns))

    def make(self, rng: random.Random) -> str:
        way = rng.random()
        if way < 0.1:
            return rng.choice(_CRUMBS) * rng.choice((10, 300, 3_000))
        if way < 0.2:
            return "".join(chr(rng.randrange(rng.choice((128, 0x3000, 0x110000)))) for _ in range(rng.randrange(100)))
        return "".join(rng.choices(_CRUMBS, k=rng.choice((1, 5, 30, 200))))

    def check(self, item: str) -> bool:
        try:
            tokens = self._template.text_tokens(item)
            tokens += self._template.tokens([ChatMessage(role="user", content=item)])
        except TooLongError:
            return False
        assert all(0 <= token < self._llama.num_vocab for token in tokens)
        if len(tokens) > 400:
            return True
        turns = [ChatMessage(role="user", content=item), ChatMessage(role="assistant", content=item)]
        written = sum(not self._llama.piece(token) for token in self._template.tokens(turns))
        assert written == self._num_controls, "a content became a control token"
        return True
