"""Whether the tokens of an answer come as fast as they should, from the moment its node began with it.

A token may take ``factor`` times as long as expected of the node. Time that one token saves is not kept for later ones,
and time that one exceeds must be made up by later ones: a leaky bucket. So a node that stops after a thousand quick
tokens is late as soon as one that stops after two, and a node that rarely sends a token is later with each.

    late = max(0, now - due)            due = base + factor * token_s * (1 + withheld)
    base := min(now, base + factor * token_s)                    with every token

Tokens may be withheld because a stop string may have begun in them (``Tokens``).
"""

import math


class TokenPace:
    """The times of one attempt's tokens."""

    def __init__(self, token_s: float, factor: float, max_withheld: int) -> None:
        """token_s: seconds expected between two tokens."""
        self._allowed_s = factor * token_s
        self._factor = factor
        self._max_withheld = max_withheld
        self._due_at = math.inf
        self._base_at = 0.0
        self._first_at = self._last_at = 0.0
        self._num_first = self._num_later = 0
        """Tokens that came with the first frame, and after it."""

    def begun(self, prefill_s: float, now: float) -> None:
        """The node has begun to compute the prompt, which is expected to take ``prefill_s``. Mutates."""
        self._due_at = now + self._factor * prefill_s

    def came(self, num_tokens: int, now: float) -> None:
        if not self._num_first:
            self._num_first, self._first_at, self._base_at = num_tokens, now, now
        else:
            self._num_later += num_tokens
            self._base_at = min(now, self._base_at + self._allowed_s * num_tokens)
        self._last_at = now
        self._due_at = self._base_at + self._allowed_s * (1 + self._max_withheld)

    def late_s(self, now: float) -> float:
        return max(0.0, now - self._due_at)

    def late_at(self, late_s: float) -> float:
        """When it will be ``late_s`` late if nothing comes until then."""
        return self._due_at + late_s

    def token_s(self, until: float | None = None) -> float:
        """Seconds between two tokens so far; 0: too few came. until: a token was awaited until then."""
        num_later = self._num_later + (until is not None)
        last_at = self._last_at if until is None else until
        if not self._num_first or num_later < (MIN_TOKENS if until is None else 1):
            return 0.0
        return (last_at - self._first_at) / num_later

    def slow_s(self, token_s: float) -> float:
        """By how many seconds all tokens after the first exceeded ``token_s`` each, at the allowed factor."""
        return max(
            0.0, self._last_at - self._first_at - self._factor * token_s * (self._num_later + self._max_withheld)
        )


MIN_TOKENS = 8
"""Least number of tokens, after the first frame, for a measured pace."""
