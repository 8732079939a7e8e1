"""The tokens of texts for embedding and reranking models.

A text to embed gets the tokens around it that llama.cpp adds. A reranking model reads a query and a document together:
by the template in its file, or else with separators between them, as in llama-server. Control tokens that people spell
in a query or a document stay text: a document could otherwise end itself and speak as the query.
"""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn, Protocol

from mycelia.node.engine.child.chat import NO_LIMIT, Tokenizer, tokens_of
from mycelia.node.engine.child.controls import Part
from mycelia.node.engine.prompts import PromptLimit, TooLongError, over_context
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import ChatMessage

_PLACES = re.compile(r"\{(query|document)\}")
_PATIENT_CUTS = 8
"""Cuts of a document by its mean length of a token; it is halved after them."""


class PooledVocabulary(Tokenizer, Protocol):
    """See ``ModelVocabulary``."""

    @property
    def rerank_template(self) -> str | None: ...

    @property
    def around_texts(self) -> tuple[list[int], list[int]]: ...

    @property
    def around_pairs(self) -> tuple[list[int], list[int], list[int]]: ...


class PooledTexts:
    """Immutable: any thread may use it."""

    def __init__(self, vocabulary: PooledVocabulary, limit: PromptLimit, no_text: str) -> None:
        """limit: that of a text, or of a pair. no_text: the answer to conversations."""
        self._vocabulary = vocabulary
        self._limit = limit
        self._no_text = no_text
        self._around_texts, self._around_pairs = vocabulary.around_texts, vocabulary.around_pairs
        self._template = vocabulary.rerank_template

    def tokens(
        self, messages: Sequence[ChatMessage], tools: str = "", options: str = "", continues_final: bool = False
    ) -> NoReturn:
        raise LocalError(self._no_text)

    def text_tokens(self, text: str) -> list[int]:
        """The tokens of ``text``; spelled control tokens become control tokens. Raises TooLongError."""
        before, after = self._around_texts
        body = tokens_of([self._vocabulary.controls.all_count(text)], self._vocabulary, self._limit)
        self._limit.check_tokens(len(before) + len(body) + len(after))
        return [*before, *body, *after]

    def pair_tokens(self, query: str, document: str) -> list[int]:
        """The tokens of a query with a document, whose end is left out if it does not fit. Raises TooLongError when the
        query leaves no room for it."""
        most = self._limit.context_tokens
        if self._template is not None:
            return self._templated(self._template, query, document)
        before, between, after = self._around_pairs
        head = [*before, *self._plain(query), *between]
        self._check_query(len(head) + len(after))
        return [*head, *self._plain(document)[: most - len(head) - len(after)], *after]

    def _templated(self, template: str, query: str, document: str) -> list[int]:
        most, tokens = self._limit.context_tokens, self._rendered(template, query, document)
        if len(tokens) < most:
            return tokens
        num_bare, num_cuts = len(self._rendered(template, query, "")), 0
        self._check_query(num_bare)
        while len(tokens) > most:
            share = (most - num_bare) / (len(tokens) - num_bare) if num_cuts < _PATIENT_CUTS else 0.5
            document = document[: min(int(len(document) * share), len(document) - 1)]
            num_cuts += 1
            tokens = self._rendered(template, query, document)
        return tokens

    def _rendered(self, template: str, query: str, document: str) -> list[int]:
        contents = {"query": query, "document": document}
        pieces = _PLACES.split(template)  # (literals, and the names between them)
        pieces[1::2] = (contents[name] for name in pieces[1::2])
        ends = [0]
        for piece in pieces:
            ends.append(ends[-1] + len(piece))
        literals = list(pairwise(ends))[::2]
        rendered = self._vocabulary.controls.written_in("".join(pieces), literals)
        return tokens_of(rendered.parts(), self._vocabulary, NO_LIMIT)

    def _plain(self, text: str) -> list[int]:
        return tokens_of([Part(text, False)], self._vocabulary, NO_LIMIT)

    def _check_query(self, num_tokens: int) -> None:
        """num_tokens: those of a pair without its document."""
        most = self._limit.context_tokens
        if num_tokens >= most:
            raise TooLongError(over_context(most, f"{num_tokens} tokens (in the query, without any document)"))
