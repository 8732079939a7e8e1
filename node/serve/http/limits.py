"""The limits of API keys: requests a minute, tokens a day, requests at once.

Requests a minute are a token bucket that holds one minute's requests, and is full at the start. Tokens a day are
metered in ``telemetry/usage.py``. A request that begins below the limit is answered to its end, so a key exceeds it by
what its running requests take. Memory: one record for each key with a limit.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mycelia.node.serve.api_keys import ApiKey

FREE_PATHS = frozenset({"/api/tokenize", "/tokenize", "/detokenize", "/v1/messages/count_tokens"})
"""Paths of POST requests that compute no answer. All others count, so that a new path cannot go around the limits."""
DAY_S = 86_400
MINUTE_S = 60
CONCURRENT_RETRY_S = 1


@dataclass(frozen=True)
class Refused:
    message: str
    retry_s: int


@dataclass
class _Use:
    level: float
    """Requests that may come at once now."""
    at_s: float
    """Time of ``level``."""
    num_running: int = 0


class KeyLimits:
    """One caller at a time: no method waits. Invariant: a key has at most ``concurrent`` requests in work, and began at
    most ``requests_per_minute`` requests more than the time since the start allows."""

    def __init__(
        self,
        keys: Iterable[ApiKey],
        tokens_today: Callable[[str], int],
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        """tokens_today: the tokens of a key's name. clock, wall: seconds; the second one dates."""
        self._tokens_today = tokens_today
        self._clock = clock
        self._wall = wall
        self._uses: dict[str, _Use] = {}
        self.set_keys(keys)

    def set_keys(self, keys: Iterable[ApiKey]) -> None:
        """Other keys from now on. What keys of the same name have used stays. Mutates."""
        now = self._clock()
        self._uses = {
            key.name: self._uses.get(key.name) or _Use(key.limits.requests_per_minute or 0, now) for key in keys
        }

    def enter(self, key: ApiKey) -> Refused | None:
        """Counts a request; call ``leave`` at its end. Refused: it is not counted. Mutates."""
        use, limits = self._uses.get(key.name), key.limits
        if use is None:
            use = self._uses[key.name] = _Use(0, self._clock())
        if limits.tokens_per_day is not None and (used := self._tokens_today(key.name)) >= limits.tokens_per_day:
            left_s = DAY_S - int(self._wall()) % DAY_S
            message = f"the key {key.name} has used {used} tokens of {limits.tokens_per_day} for today (UTC)"
            return Refused(f"{message}: try again in {_spelled(left_s)}", left_s)
        if limits.concurrent is not None and use.num_running >= limits.concurrent:
            message = f"the key {key.name} may have {limits.concurrent} requests at once: wait until one has ended"
            return Refused(message, CONCURRENT_RETRY_S)
        if (rate := limits.requests_per_minute) is not None:
            now = self._clock()
            use.level, use.at_s = min(rate, use.level + (now - use.at_s) * rate / MINUTE_S), now
            if use.level < 1:
                wait_s = math.ceil((1 - use.level) * MINUTE_S / rate)
                return Refused(f"the key {key.name} may send {rate} requests a minute: try again in {wait_s} s", wait_s)
            use.level -= 1
        use.num_running += 1
        return None

    def leave(self, key: ApiKey) -> None:
        """A counted request has ended. Mutates."""
        if key.name in self._uses:  # (the key may have been removed meanwhile)
            self._uses[key.name].num_running -= 1


def _spelled(seconds: int) -> str:
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
