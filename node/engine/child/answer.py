"""The part of a running request that needs the model: it chooses tokens and decides when they are sent."""

import math
from collections import deque
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mycelia.node.engine.child.grammar.guidance import GrammarError
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.llama.sampler import logprobs
from mycelia.node.engine.engine import EngineTokens, append_tokens
from mycelia.node.engine.stops import TextGate
from mycelia.proto.wire.messages import Sampling, TokenLogprobs


class Answer:
    """The tokens of one answer that this node generates."""

    def __init__(self, llama: Llama, sampling: Sampling, prompt: Sequence[int], resumed: int) -> None:
        """prompt: the last ``resumed`` tokens of it are the part of this answer that another node generated."""
        self._llama = llama
        self._num_logprobs = sampling.logprobs
        self._num_prompt_logprobs = sampling.prompt_logprobs
        self._sampler = llama.sampler(sampling, prompt, resumed)
        self._held: NDArray[np.float32] | None = None
        self._gate = TextGate([stop.encode() for stop in sampling.stop])
        if sampling.stop and resumed:
            self._gate.skip(b"".join(llama.piece(token) for token in prompt[len(prompt) - resumed :]))
        self._is_ended = self.has_end and resumed > 0 and llama.ends_generation(prompt[-1])
        self._waiting: deque[tuple[int, tuple[TokenLogprobs, ...]]] = deque()
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        self.due_s = -math.inf
        """The earliest time to send the next item, by ``time.monotonic``; set by the caller of ``take``."""

    @property
    def is_stopped(self) -> bool:
        """Whether the answer is over: a stop string is complete, here or already in the resumed tokens, or these end
        with an end token."""
        return self._gate.is_stopped or self._is_ended

    @property
    def has_end(self) -> bool:
        """Whether an end token is a part of the answer."""
        return self._num_prompt_logprobs > 0

    def report(self, outputs: Iterable[int], tokens: Iterable[int]) -> list[TokenLogprobs]:
        """The logprobs of ``tokens`` of the prompt. outputs: for each of them the output index of the token before."""
        count, llama = self._num_prompt_logprobs, self._llama
        return [
            logprobs(llama.logits(at), token, count, llama.piece) for at, token in zip(outputs, tokens, strict=True)
        ]

    def choose(self, output: int) -> int:
        """Choose the next token from the row with this output index; ``add`` it unless it ends the answer. Not with a
        grammar."""
        token = self._sampler.sample(output)
        if self._num_logprobs:
            self._note_logprobs(self._llama.logits(output), token)
        return token

    def hold(self, output: int) -> None:
        """Keep the row with this output index until the grammar's mask is there: other decode calls come first."""
        self._held = self._llama.logits(output).copy()

    def choose_allowed(self, mask: NDArray[np.bool_], output: int | None = None) -> int | None:
        """Choose the next token among those of a grammar's ``Mask.allowed``, from the row with this output index, or
        from the held one; None: the answer ends here, and the model has no token for that. Raises GrammarError when
        nothing is allowed."""
        logits = self._held if output is None else self._llama.logits(output)
        assert logits is not None
        token = self._sampler.choose(logits, mask[:-1])
        if token is None and not mask[-1]:
            raise GrammarError("the grammar allows no token here")
        if token is not None and self._num_logprobs:
            self._note_logprobs(logits, token)
        self._held = None
        return token

    def _note_logprobs(self, logits: NDArray[np.float32], token: int) -> None:
        self._logprobs = (logprobs(logits, token, self._num_logprobs, self._llama.piece),)

    def add(self, token: int) -> None:
        """Append ``token``, the last one chosen, to the answer."""
        self._waiting.append((token, self._logprobs))
        self._gate.feed(self._llama.piece(token))

    def take(self, is_last: bool = False) -> list[EngineTokens]:
        """The items that may be sent now. ``is_last``: the answer is over, so all that is left, cut at its end."""
        items: list[EngineTokens] = []
        for text in self._gate.end() if is_last else self._gate.take():
            token, logprobs = self._waiting.popleft()
            append_tokens(items, EngineTokens([token], text, logprobs))
        return items

    def close(self) -> None:
        self._sampler.close()
