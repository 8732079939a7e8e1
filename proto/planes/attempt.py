"""One attempt of a request at one node: what was expected of the node when it was chosen, and how far it has come.

An attempt is created when the request is sent and dropped when it ends; nothing of it remains.
"""

import math
from dataclasses import dataclass, field

from mycelia.proto.answers.token_pace import TokenPace
from mycelia.proto.config import RequestConfig
from mycelia.proto.wire.messages import MAX_SMALL, Accepted, Vitals


def _no_pace() -> TokenPace:
    return TokenPace(math.inf, 1.0, 0)


@dataclass
class Attempt:
    """An attempt. Only ``Request`` changes the progress: the last three fields and ``pace``."""

    number: int
    """From 1, within the request."""
    peer: bytes
    """The node that serves it."""
    num_tokens: int
    """Tokens of the prompt and of the answer so far, as they were sent."""
    sent_at: float
    """Unix seconds."""
    expected_s: float = 0.0
    """Seconds until the first token."""
    promised_tokens: int = 0
    """The match for which the node was chosen."""
    patience_s: float | None = None
    """The node may hand the request back if the first token would take longer; None: it must not."""
    due_at: float = math.inf
    """When the node is overdue if it has not handed the request back; infinity: never."""
    prefill_s: float = 0.0
    """Seconds expected for the prompt."""
    max_withheld: int = 0
    """Tokens that may be held back, see ``Request.max_withheld``."""
    is_watched: bool = False
    """Whether the request may move if the node has begun and is too slow."""
    pace: TokenPace = field(default_factory=_no_pace)
    position: int = 0
    """Tokens that came."""
    uncached_tokens: int = 0
    """Tokens that the node must compute, by its report at the start; 0 before."""
    vitals: Vitals | None = None
    """The node's load when it began; None before."""

    @property
    def patience_ms(self) -> int:
        """``patience_s`` in ms as it is sent; 0: the node must not hand the request back."""
        return 0 if self.patience_s is None else min(max(round(1000 * self.patience_s), 1), MAX_SMALL)

    def on_accepted(self, frame: Accepted) -> None:
        self.uncached_tokens = max(self.num_tokens - frame.cached_tokens, 1)
        self.vitals = frame.vitals

    def prefill_expected_s(self) -> float:
        """Expected time for the prompt, now that the node has begun and may have found less of it in its cache."""
        return self.prefill_s * max(self.uncached_tokens / max(self.num_tokens - self.promised_tokens, 1), 1.0)

    def silence_s(self, config: RequestConfig) -> float:
        """How long the node may send nothing, by its rates when it began.

        It first computes the prompt. Then it may hold back tokens that could begin a stop string: one per byte of the
        string. The requests it works on share its rates. Of a node that has not begun only the expected time is known.
        """

        def allowed_s(word_s: float) -> float:
            return config.min_silence_s + config.silence_factor * word_s

        vitals, told_s, most_s = self.vitals, 0.0, config.max_silence_s
        if self.position:
            num_tokens, rate = 1 + self.max_withheld, vitals.decode_rate if vitals else 0
        else:
            told_s = self.expected_s
            slowest_s = allowed_s(self.num_tokens / config.slowest_prefill_rate)
            most_s = min(max(most_s, slowest_s), config.longest_silence_s)
            num_tokens, rate = self.uncached_tokens, vitals.prefill_rate if vitals else 0
        if vitals is None or not rate:
            return min(max(config.max_silence_s, allowed_s(told_s)), most_s)
        return min(allowed_s(num_tokens * max(vitals.active_requests, vitals.slots, 1) / rate), most_s)
