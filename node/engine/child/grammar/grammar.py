"""Grammars by llguidance: after each token of an answer, which tokens may come next.

A grammar is a program from a stranger. ``checker.py`` reads it first, in a process of its own, under limits. Then it
runs here: llguidance bounds the work and the memory of each mask, ``pool.py`` the time of all masks of an answer.
llguidance releases the interpreter's lock while it reads grammars and computes masks.

llguidance is imported, and its copy of the vocabulary made (0.3 s, 20 MB), when the first grammar comes.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.grammar.checker import Checker
from mycelia.node.engine.child.grammar.guidance import GrammarError, matcher, reason
from mycelia.node.engine.child.grammar.thought import ThoughtFirst
from mycelia.node.engine.child.llama.vocabulary import ModelVocabulary
from mycelia.proto.wire.messages import Sampling


class Grammars:
    """Opens the grammars of one model. For any thread."""

    def __init__(self, vocabulary: ModelVocabulary) -> None:
        self.vocabulary = vocabulary
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self.checker = Checker()
        self.num_vocab = vocabulary.num_vocab
        self.ending = np.array([token for token in range(self.num_vocab) if vocabulary.ends_generation(token)], np.intp)
        """The tokens that end an answer."""

    def open(self, sampling: Sampling, tokens: Sequence[int]) -> "Grammar":
        """The grammar of an answer that already has ``tokens``."""
        return Grammar(self, sampling, tokens)

    def thought(self, sampling: Sampling) -> ThoughtFirst | None:
        """The thought that may come first; None: none may."""
        if not sampling.thought_closing:
            return None
        vocabulary, opening = self.vocabulary, sampling.thought_opening
        tokens = vocabulary.tokenize(opening, special=True) if opening else []
        return ThoughtFirst(tokens, sampling.thought_closing.encode(), vocabulary.spelling)

    def tokenizer(self) -> Any:
        """llguidance's copy of the vocabulary. It has one token more: the end of the answer, whichever token is drawn
        for it, so that models with several such tokens or none are alike."""
        from llguidance import LLTokenizer

        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = LLTokenizer.from_llamacpp(  # type: ignore[attr-defined,unused-ignore]
                    tokens=[*self.vocabulary.spellings(), b"\xff<end of the answer>"],
                    vocab_ptr=self.vocabulary.handle,
                    tokenize_fptr=self.vocabulary.tokenize_address,
                    eos_token=self.num_vocab,
                )
            return self._tokenizer


class Grammar:
    """The grammar of one answer. One call at a time, each in a thread with ``STACK_BYTES`` of stack."""

    cpu_s = 0.0
    """CPU time of all calls so far."""

    def __init__(self, grammars: Grammars, sampling: Sampling, tokens: Sequence[int]) -> None:
        """tokens: those of the answer so far. Computes nothing: call ``compile``."""
        self._grammars = grammars
        self._sampling = sampling
        self._tokens = tokens
        self._matcher: Any = None
        self._thought = grammars.thought(sampling)
        self._bits = np.zeros((1, grammars.num_vocab // 32 + 1), np.int32)

    def compile(self) -> str:
        """Read the grammar and go on to the end of the tokens so far; returns the error, empty if none. The first
        call, made once."""
        try:
            tokenizer = self._grammars.tokenizer()
        except ValueError as exc:
            return f"the vocabulary of this model cannot be limited by a grammar: {exc}"
        checked = self._grammars.checker.check(self._sampling.grammar_kind, self._sampling.grammar)
        self.cpu_s += checked.cpu_s
        if checked.error:
            return checked.error
        try:
            with self._timed():
                self._matcher = matcher(tokenizer, checked.guidance)
                for token in self._tokens:
                    # (one at a time: llguidance holds the interpreter's lock here)
                    if self._thought is not None and self._thought.accept(token):
                        continue
                    if token not in self._grammars.ending and not self._matcher.consume_token(token):
                        raise GrammarError("the tokens generated before do not match the grammar")
        except GrammarError as exc:
            return str(exc)
        return ""

    def accept(self, token: int) -> None:
        """Go on by ``token``. Raises GrammarError where the grammar does not allow it or becomes too costly."""
        if self._thought is not None and self._thought.accept(token):
            return
        with self._timed():
            if not self._matcher.consume_token(token):
                raise GrammarError(reason(self._matcher.get_error()))

    def allowed(self) -> NDArray[np.bool_]:
        """Which token may come next, by its id; the last entry: whether the answer may end here. Raises
        GrammarError."""
        thought = self._thought
        if thought is None or thought.is_over:
            return self._allowed_by_grammar()
        passed = self._allowed_by_grammar() if thought.needs_grammar else self._nothing()
        thought.widen(passed, self._grammars.ending)
        return passed

    def _nothing(self) -> NDArray[np.bool_]:
        return np.zeros(self._grammars.num_vocab + 1, np.bool_)

    def _allowed_by_grammar(self) -> NDArray[np.bool_]:
        from llguidance.numpy import fill_next_token_bitmask

        with self._timed():
            fill_next_token_bitmask(self._matcher, self._bits)
            if self._matcher.is_error():
                raise GrammarError(reason(self._matcher.get_error()))
            num_vocab = self._grammars.num_vocab
            bits = np.unpackbits(self._bits.view(np.uint8)[0], count=num_vocab + 1, bitorder="little")
            passed = bits.view(np.bool_)
            if passed[num_vocab]:
                passed[self._grammars.ending] = True
        return passed

    def close(self) -> None:
        """Free the grammar; the last call."""
        self._matcher = None

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.thread_time()
        try:
            yield
        except GrammarError:
            raise
        except BaseException as exc:
            raise GrammarError(reason(str(exc))) from exc
        finally:
            self.cpu_s += time.thread_time() - began
