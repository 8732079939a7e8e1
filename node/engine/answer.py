"""A running request's half that needs the model: how its tokens are chosen, and which of them may go out yet."""

import math
from collections import deque
from collections.abc import Sequence

from node.engine.engine import EngineTokens, append_tokens
from node.engine.grammar import Grammar, GrammarError
from node.engine.llama import Llama
from node.engine.stops import TextGate
from proto.messages import Sampling, TokenLogprobs


class Answer:
    """The tokens of one answer from this node, from the first choice to the last item."""

    def __init__(
        self, llama: Llama, sampling: Sampling, prompt: Sequence[int], resumed: int, grammar: Grammar | None
    ) -> None:
        """prompt: with its last ``resumed`` tokens, which another node gave as a part of this answer."""
        self._llama = llama
        self._num_logprobs = sampling.logprobs
        self._sampler = llama.sampler(sampling, prompt, resumed)
        self._grammar = grammar
        self._gate = TextGate([stop.encode() for stop in sampling.stop])
        if sampling.stop and resumed:
            self._gate.skip(b"".join(llama.piece(token) for token in prompt[len(prompt) - resumed :]))
        self._waiting: deque[tuple[int, tuple[TokenLogprobs, ...]]] = deque()
        self._logprobs: tuple[TokenLogprobs, ...] = ()
        self.due_s = -math.inf
        """When, by ``time.monotonic``, what there is should go out; kept by whoever calls ``take``."""

    @property
    def is_stopped(self) -> bool:
        """A stop string is complete, here or before in the resumed tokens."""
        return self._gate.is_stopped

    def choose(self, output: int) -> int:
        """The next token, from the row with this output index. ``add`` it unless it ends the answer.

        Raises GrammarError when the grammar allows none, or costs too much.
        """
        token = self._choose(output)
        if self._num_logprobs:
            self._logprobs = (self._llama.logprobs(output, token, self._num_logprobs),)
        return token

    def _choose(self, output: int) -> int:
        if self._grammar is None:
            return self._sampler.sample(output)
        token = self._sampler.sample_allowed(output, self._grammar.allowed)
        if token is None:
            raise GrammarError("the grammar allows no token here")
        if not self._llama.ends_generation(token):
            self._grammar.accept(token)
        return token

    def add(self, token: int) -> None:
        """``token``, which ``choose`` gave last, belongs to the answer."""
        self._waiting.append((token, self._logprobs))
        self._gate.feed(self._llama.piece(token))

    def take(self, is_last: bool = False) -> list[EngineTokens]:
        """What may go out now. ``is_last``: the answer is over, so everything, cut at its end."""
        items: list[EngineTokens] = []
        for text in self._gate.end() if is_last else self._gate.take():
            token, logprobs = self._waiting.popleft()
            append_tokens(items, EngineTokens([token], text, logprobs))
        return items

    def close(self) -> None:
        """Free the sampler. The grammar is not its own."""
        self._sampler.close()
