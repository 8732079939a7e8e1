"""How often each sender may do something: pure token buckets, one per key, in bounded memory."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT", bound=Hashable)
_FORGOTTEN = 2
"""Keys with full buckets that a new key removes: more than one, so that their number falls."""


class TokenBucket:
    """A bucket that gets ``rate`` tokens a second and holds at most ``burst``. The caller gives the time, in seconds.

    Invariant: in any window of t seconds at most ``burst + rate * t`` tokens are taken.
    """

    __slots__ = ("_burst", "_rate", "_tokens", "_updated_at")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._updated_at = now

    def has(self, now: float, tokens: float = 1.0) -> bool:
        """Whether there are enough tokens. Does not mutate."""
        return min(self._burst, self._tokens + max(0.0, now - self._updated_at) * self._rate) >= tokens

    def take(self, now: float, tokens: float = 1.0) -> bool:
        """Whether there were enough tokens; takes them if so. Mutates."""
        self._refill(now)
        if self._tokens < tokens:
            return False
        self._tokens -= tokens
        return True

    def spend(self, now: float, tokens: float) -> None:
        """Take tokens for what was used already, also more than there are. Mutates."""
        self._refill(now)
        self._tokens -= tokens

    def _refill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + max(0.0, now - self._updated_at) * self._rate)
        self._updated_at = max(now, self._updated_at)


class Limits(Generic[KeyT]):
    """A bucket for every recent key. The key that was quiet for longest is forgotten first: when its bucket is full, as
    a new one is, or when there are too many keys. In the second case it can do one burst more, and each invented key
    costs its sender a message."""

    def __init__(self, rate: float, burst: float, max_keys: int = 8_192) -> None:
        self._rate = rate
        self._burst = burst
        self._max_keys = max_keys
        self._buckets: OrderedDict[KeyT, TokenBucket] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def has(self, key: KeyT, now: float) -> bool:
        """Whether ``take`` would succeed. Does not mutate."""
        bucket = self._buckets.get(key)
        return bucket is None or bucket.has(now)

    def take(self, key: KeyT, now: float) -> bool:
        """Whether ``key`` may do it once more now. Mutates."""
        return self._bucket(key, now).take(now)

    def spend(self, key: KeyT, tokens: float, now: float) -> None:
        self._bucket(key, now).spend(now, tokens)

    def _bucket(self, key: KeyT, now: float) -> TokenBucket:
        bucket = self._buckets.get(key)
        if bucket is None:
            self._forget_full(now)
            if len(self._buckets) >= self._max_keys:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = TokenBucket(self._rate, self._burst, now)
        self._buckets.move_to_end(key)
        return bucket

    def _forget_full(self, now: float) -> None:
        """Forgets at most _FORGOTTEN keys whose buckets are full. A node that met many strangers gets its memory back,
        a little with each new key."""
        for _ in range(_FORGOTTEN):
            key = next(iter(self._buckets), None)
            if key is None or not self._buckets[key].has(now, self._burst):
                return
            del self._buckets[key]
