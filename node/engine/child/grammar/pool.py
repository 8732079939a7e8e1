"""The grammars of all requests, each with a thread, so that the engine's steps never wait long.

A request waits until its grammar is compiled. After each token of the answer its thread computes which tokens may come
next, while the engine decodes; if it takes longer than that, the request has no row until it is done, and others go on.
The bounds are:

- waiting requests: the bounds and the order of the fair queue, see ``proto.fair_queue``;
- grammars: ``limit`` in total. A subnet other than the owner's has at most half of them. ``MAX_COMPILING`` compile at
  once, one per subnet;
- CPU time of a subnet for compiling, and for answers ended by the next bound: ``COMPILE_BURST_S``, then
  ``COMPILE_PART`` of the time; each grammar counts as at least ``COMPILE_LEAST_S``;
- CPU time of an answer: ``ANSWER_BURST_S``, then ``TOKEN_S`` per token.

The CPU time is reported, so that the client can be charged.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from mycelia.node.engine import ipc
from mycelia.node.engine.child.accounts import COMPILE_SERVICE
from mycelia.node.engine.child.grammar.grammar import Grammar
from mycelia.node.engine.child.grammar.guidance import STACK_BYTES, TOO_COSTLY, GrammarError
from mycelia.proto.admission.fair_order import Key
from mycelia.proto.admission.fair_queue import FairQueue, share_of
from mycelia.proto.admission.limits import Limits
from mycelia.proto.wire.blocks import unpack_tokens
from mycelia.proto.wire.messages import Sampling

MAX_COMPILING = 2
COMPILE_BURST_S, COMPILE_PART, COMPILE_LEAST_S = 4.0, 0.1, 0.1
"""About 30 grammars at once, then one a second; an ordinary grammar takes 0.001 s."""
ANSWER_BURST_S = 1.0
TOKEN_S = 0.01
"""Average CPU time per token of an answer. Measured with 49,152 tokens: JSON schemas 0.02 to 0.1 ms, a recursive GBNF
grammar 1.5 ms; the slowest mask that the bounds of llguidance allow takes 50 ms."""


class GrammarReady(Struct, frozen=True):
    """A message to the engine: the request's grammar is compiled, or failed (``error``). cpu_s: CPU time so far."""

    key: int
    error: str
    cpu_s: float


class GrammarAnswered(Struct, frozen=True):
    """A message to the engine: ``GrammarPool.take`` has the next mask of this request."""

    key: int


class GrammarEnded(Struct, frozen=True):
    """A message to the engine: the thread of a dropped request has ended."""

    key: int


class Mask(Struct, frozen=True):
    """Which token may come next, by its id, or why the request must end (``error``). The last entry of ``allowed``:
    whether the answer may end here. cpu_s: CPU time for this."""

    allowed: NDArray[np.bool_]
    error: str
    cpu_s: float


Event = GrammarReady | GrammarAnswered | GrammarEnded
OpenGrammar = Callable[[Sampling, Sequence[int]], Grammar]


@dataclass(eq=False)
class _Live:
    message: ipc.Submit
    grammar: Grammar
    chosen: queue.SimpleQueue[int | None] = field(default_factory=queue.SimpleQueue)
    """The tokens of the answer, one after each mask; None ends the thread."""
    masks: queue.SimpleQueue[Mask] = field(default_factory=queue.SimpleQueue)
    is_ready: bool = False
    is_dropped: bool = False
    spare_s: float = ANSWER_BURST_S
    """CPU time that the answer may still use."""


class GrammarPool:
    """All grammars: waiting, compiling, compiled, and ending. For the engine's main thread."""

    def __init__(
        self, open_grammar: OpenGrammar, limit: int, num_places: int, announce: Callable[[Event], None]
    ) -> None:
        """announce: puts a message into the engine's inbox; called from other threads."""
        self._open = open_grammar
        self._limit = limit
        self._announce = announce
        self._waiting = FairQueue[ipc.Submit](num_places)
        self._live: dict[int, _Live] = {}
        """Key -> grammar with a thread, dropped ones included."""
        self._budgets = Limits[Key](COMPILE_PART, COMPILE_BURST_S)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._live)

    @property
    def num_waiting(self) -> int:
        """Number of requests whose grammar is not ready."""
        return len(self._waiting) + sum(not live.is_ready and not live.is_dropped for live in self._live.values())

    def add(self, message: ipc.Submit, now: float) -> float:
        """Queue or start a request and return 0.0, or refuse it and return the retry time in seconds. Mutates."""
        wait_s = self._waiting.join(message, now)
        self.look(now)
        return wait_s

    def ready(self, event: GrammarReady, now: float) -> ipc.Submit | None:
        """Take an event; returns its request, or None if it was dropped. Mutates."""
        live = self._live[event.key]
        live.is_ready = True
        if live.message.client:
            self._budgets.spend(share_of(live.message), max(event.cpu_s, COMPILE_LEAST_S), now)
        self.look(now)
        return None if live.is_dropped else live.message

    def take(self, key: int, wait_s: float = 0.0) -> Mask | None:
        """The mask for the next token of a request whose grammar is ready; one after each ``accept``. None when there
        is none within ``wait_s``: then a ``GrammarAnswered`` event follows. Mutates."""
        live = self._live[key]
        try:
            mask = live.masks.get(wait_s > 0.0, wait_s)
        except queue.Empty:
            return None
        live.spare_s -= mask.cpu_s
        if live.spare_s < 0 and not mask.error:
            return Mask(mask.allowed, TOO_COSTLY, mask.cpu_s)
        return mask

    def charge_failed(self, key: int, now: float) -> None:
        """Charge the subnet of a request that ended by its grammar's fault. Mutates."""
        message = self._live[key].message
        if message.client:
            self._budgets.spend(share_of(message), ANSWER_BURST_S, now)

    def accept(self, key: int, token: int) -> None:
        """Continue a request's grammar by the chosen token: begins to compute the next mask. Mutates."""
        live = self._live[key]
        live.spare_s += TOKEN_S
        live.chosen.put(token)

    def is_dropped(self, key: int) -> bool:
        """Whether events of this request are ignored."""
        return self._live[key].is_dropped

    def request(self, key: int) -> ipc.Submit:
        return self._live[key].message

    def drop(self, key: int) -> bool:
        """Forget the grammar of a request, compiled or not. False: it has none. Mutates."""
        live = self._live.get(key)
        if live is not None and not live.is_dropped:
            live.is_dropped = True
            live.chosen.put(None)
            return True
        for message in self._waiting:
            if message.key == key:
                self._waiting.withdraw(message)
                return True
        return False

    def drop_waiting(self, key: int) -> bool:
        """As ``drop``, but only for a request that waits for its grammar."""
        live = self._live.get(key)
        return (live is None or not live.is_ready) and self.drop(key)

    def ended(self, event: GrammarEnded, now: float) -> None:
        del self._live[event.key]
        self.look(now)

    def expired(self, now: float) -> list[int]:
        """Keys of requests that wait for their grammar and whose deadline passed. Does not mutate."""
        compiling = [live.message for live in self._live.values() if not (live.is_ready or live.is_dropped)]
        waiting = [*self._waiting, *compiling]
        return [message.key for message in waiting if message.due_s is not None and message.due_s <= now]

    def look(self, now: float) -> None:
        """Start the grammars that may be compiled now. Call regularly: budgets grow without an event. Mutates."""
        while (message := next(filter(lambda one: self._may_start(one, now), self._waiting), None)) is not None:
            self._waiting.start(message, int(COMPILE_SERVICE), now)
            prompt = unpack_tokens(message.prompt)
            resumed = prompt[len(prompt) - message.resumed_tokens :]
            live = self._live[message.key] = _Live(message, self._open(message.sampling, resumed))
            _start_thread(partial(self._work, message.key, live))
        if self._waiting:
            self._waiting.blocked(now)

    def _may_start(self, message: ipc.Submit, now: float) -> bool:
        compiling = [live.message for live in self._live.values() if not live.is_ready]
        if len(self._live) >= self._limit or len(compiling) >= MAX_COMPILING:
            return False
        if not message.client:
            return True
        share = share_of(message)
        num_own = sum(share_of(live.message) == share for live in self._live.values())
        is_first = all(share_of(other) != share for other in compiling)
        return is_first and num_own < max(self._limit // 2, 1) and self._budgets.has(share, now)

    def _work(self, key: int, live: _Live) -> None:
        grammar = live.grammar
        error = grammar.compile()
        if not error:
            first = _mask(grammar, None)  # (here, so that a grammar without any text is refused at once)
            error = first.error
            live.masks.put(first)
        self._announce(GrammarReady(key, error, grammar.cpu_s))
        while (token := live.chosen.get()) is not None:
            if not live.is_dropped:
                live.masks.put(_mask(grammar, token))
                self._announce(GrammarAnswered(key))
        grammar.close()
        self._announce(GrammarEnded(key))


def _start_thread(work: Callable[[], None]) -> None:
    """Run ``work`` in a thread with a stack for the deepest grammars."""
    usual = threading.stack_size(STACK_BYTES)
    try:
        threading.Thread(target=work, daemon=True).start()
    finally:
        threading.stack_size(usual)


def _mask(grammar: Grammar, token: int | None) -> Mask:
    used_s = grammar.cpu_s
    allowed, error = np.zeros(1, np.bool_), ""
    try:
        if token is not None:
            grammar.accept(token)
        allowed = grammar.allowed()
    except GrammarError as exc:
        error = str(exc)
    return Mask(allowed, error, grammar.cpu_s - used_s)
