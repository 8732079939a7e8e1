"""This node's own observations of the nodes it sent requests to: how true the beliefs were on which it chose them.

*Precision* is the share of the tokens believed to be cached that were found cached; digests grow old, and dishonest
nodes exaggerate. *Lateness* is how many seconds later than expected first tokens came; a machine may be busy with other
work, and dishonest nodes claim to be fast and idle. (A factor would not catch a claim to answer at once.) Both are
moving averages that fade to nothing, so that a node that gets no requests any more gets another chance.

The serving node itself reports how many tokens were cached. It can report too many, but the first token does not come
sooner for it: that lie shows as lateness instead.

*Pace* is the time between two tokens of an answer, and *speed* the fastest observed prefill. They do not fade, because
a machine does not change. The *past* of a node does not fade either: it is the time since the node first connected. Bad
answers shorten it, and a new past begins with the next good answer. (The first past does not begin with the first
answer: of nodes that came together, some get a request much later than others.)

Invariant: at most ``max_observed`` peers are remembered, the ones observed last.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from mycelia.proto.config import RoutingConfig


@dataclass
class _Record:
    imprecision: float = 0.0
    lateness_s: float = 0.0
    num_late: int = 0
    """Observations of lateness. The first few weigh more, so that each dishonest node gets only one or two requests."""
    at: float = 0.0
    token_s: float = 0.0
    """0: not measured."""
    prefill_rate: float = 0.0
    """0: not measured."""
    num_good: int = 1
    """Good answers, and one to begin with, less those that bad answers cost. At 0 nothing is left of the past."""
    since: float = 0.0
    """When the past began; 0: when the peer connected."""


_LATEST = 64
"""Number of nodes from which the usual pace is taken."""
_MAX_NUM_LATE = 1_000
"""Far more than needed for a weight that no longer changes."""


@dataclass(frozen=True)
class Observation:
    peer: bytes
    imprecision: float
    lateness_s: float
    num_late: int
    at: float
    """Unix time in seconds of these values; they fade from then on."""
    token_s: float = 0.0
    prefill_rate: float = 0.0
    num_good: int = 1
    since: float = 0.0


_MAX_NUM_GOOD = 64
"""Bound that lets a few bad answers in a row cost the whole past."""
PAST_KEPT_S = 7 * 86_400.0
"""How long a past is kept after the last answer."""
_SLOWER_WEIGHT = 0.02
"""Weight of a rate below the fastest: most prompts show less than a machine can do."""
FORGOTTEN_HALF_LIVES = 16
"""After this many half-lives nothing is left: a lateness of 600 s is 10 ms then."""


class Observed:
    """Precision and lateness of every node that answered lately."""

    def __init__(self, config: RoutingConfig, on_news: Callable[[bytes], None] = lambda peer: None) -> None:
        """on_news: called with each peer after a new observation of it."""
        self._config = config
        self._on_news = on_news
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self.usual_token_s = config.default_token_s
        """Median pace of the nodes observed last. Read-only."""

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._records

    def __len__(self) -> int:
        return len(self._records)

    def on_first_token(self, peer: bytes, expected_s: float, observed_s: float, now: float) -> None:
        """The first token came after ``observed_s`` instead of the reported ``expected_s``. Mutates."""
        record = self._faded(peer, now)
        late_s = min(max(observed_s - expected_s, 0.0), self._config.max_lateness_s)
        record.num_late += 1
        weight = max(self._config.observation_weight, 1 / record.num_late)
        record.lateness_s += weight * (late_s - record.lateness_s)
        self._on_news(peer)

    def on_late(self, peer: bytes, late_s: float, now: float) -> None:
        """Tokens came this late or were lost. Counts as a first token this late, and as a bad answer. Mutates."""
        self._bad(peer, False, now)
        self.on_first_token(peer, 0.0, late_s, now)

    def on_lie(self, peer: bytes, now: float) -> None:
        """The peer sent something that cannot be true: nothing is left of its past. Mutates."""
        self._bad(peer, True, now)
        self._on_news(peer)

    def on_cached(self, peer: bytes, believed_tokens: int, cached_tokens: int, now: float) -> None:
        """``cached_tokens`` of a prompt were cached; ``believed_tokens``, at least 1, were expected. Mutates."""
        record = self._faded(peer, now)
        missing = 1.0 - min(cached_tokens / believed_tokens, 1.0)
        record.imprecision += self._config.observation_weight * (missing - record.imprecision)
        self._on_news(peer)

    def on_pace(self, peer: bytes, token_s: float, now: float) -> None:
        """Tokens of an answer of ``peer`` came ``token_s`` apart. Mutates."""
        record = self._faded(peer, now)
        weight = self._config.observation_weight if record.token_s else 1.0
        record.token_s += weight * (min(token_s, self._config.max_lateness_s) - record.token_s)
        self._note_usual()
        self._on_news(peer)

    def on_prefilled(self, peer: bytes, rate: float, now: float) -> None:
        """``peer`` computed a prompt at ``rate`` tokens/s or faster, as observed here. Mutates."""
        record = self._faded(peer, now)
        weight = 1.0 if rate > record.prefill_rate else _SLOWER_WEIGHT
        record.prefill_rate += weight * (min(rate, self._config.max_prefill_rate) - record.prefill_rate)
        self._on_news(peer)

    def on_answered(self, peer: bytes, connected_at: float, now: float) -> None:
        """``peer`` gave an answer in which nothing wrong was found. Mutates."""
        record = self._faded(peer, now)
        record.since = (record.since or connected_at) if record.num_good else now
        record.num_good = min(record.num_good + 1, _MAX_NUM_GOOD)
        self._on_news(peer)

    def expected_token_s(self, peer: bytes) -> float:
        """Expected seconds per token of ``peer``: the usual pace or its own slower one, bounded. Does not mutate."""
        usual_s, record = self.usual_token_s, self._records.get(peer)
        own_s = record.token_s if record else 0.0
        return min(max(own_s, usual_s), usual_s * self._config.max_slowness)

    def record(self, peer: bytes, connected_at: float) -> tuple[float, float, float, float, float]:
        """(1 - precision, lateness in seconds, the time of these values, speed, when the past began). The first two
        halve every ``observation_half_life_s`` from then on. Zeros: unknown peer; infinity: no past."""
        record = self._records.get(peer)
        if record is None:
            return 0.0, 0.0, 0.0, 0.0, connected_at
        since = (record.since or connected_at) if record.num_good else math.inf
        return record.imprecision, record.lateness_s, record.at, record.prefill_rate, since

    def lateness_s(self, peer: bytes, now: float) -> float:
        """The peer's lateness now; 0 for an unknown peer. Does not mutate."""
        record = self._records.get(peer)
        return record.lateness_s * self._fading(record, now) if record else 0.0

    def precision(self, peer: bytes, now: float) -> float:
        """The peer's precision now, from 0 to 1; 1 for an unknown peer. Does not mutate."""
        record = self._records.get(peer)
        return 1.0 - record.imprecision * self._fading(record, now) if record else 1.0

    def observations(self, now: float) -> list[Observation]:
        """The argument of ``restore`` after a restart, in order of the last observation. Does not mutate."""
        return [
            Observation(peer, **vars(record))
            for peer, record in self._records.items()
            if self._is_left(record.at, record.num_good, now)
        ]

    def restore(self, observations: Sequence[Observation], now: float) -> None:
        """Remember observations from before a restart. Clamps values out of bounds and times after ``now``. Mutates."""
        for one in observations:
            numbers = (one.imprecision, one.lateness_s, one.at, one.token_s, one.prefill_rate, one.since)
            if not all(map(math.isfinite, numbers)) or not self._is_left(one.at, one.num_good, now):
                continue
            record = self._faded(one.peer, now)
            record.imprecision = min(max(one.imprecision, 0.0), 1.0)
            record.lateness_s = min(max(one.lateness_s, 0.0), self._config.max_lateness_s)
            record.num_late = min(max(one.num_late, 0), _MAX_NUM_LATE)
            record.at = min(one.at, now)
            record.token_s = min(max(one.token_s, 0.0), self._config.max_lateness_s)
            record.prefill_rate = min(max(one.prefill_rate, 0.0), self._config.max_prefill_rate)
            record.num_good = min(max(one.num_good, 0), _MAX_NUM_GOOD)
            record.since = min(one.since, now)
            self._on_news(one.peer)
        self._note_usual()

    def _note_usual(self) -> None:
        latest = islice(reversed(self._records.values()), _LATEST)
        measured = sorted(record.token_s for record in latest if record.token_s)
        self.usual_token_s = measured[len(measured) // 2] if measured else self._config.default_token_s

    def _bad(self, peer: bytes, is_lie: bool, now: float) -> None:
        record = self._faded(peer, now)
        record.num_good = 0 if is_lie else record.num_good // 2

    def _is_left(self, at: float, num_good: int, now: float) -> bool:
        keep_s = FORGOTTEN_HALF_LIVES * self._config.observation_half_life_s
        return now - at < (max(keep_s, PAST_KEPT_S) if num_good > 1 else keep_s)

    def _fading(self, record: _Record, now: float) -> float:
        return float(0.5 ** (max(now - record.at, 0.0) / self._config.observation_half_life_s))

    def _faded(self, peer: bytes, now: float) -> _Record:
        record = self._records.setdefault(peer, _Record(at=now))
        fading = self._fading(record, now)
        record.imprecision *= fading
        record.lateness_s *= fading
        record.at = max(now, record.at)
        self._records.move_to_end(peer)
        if len(self._records) > self._config.max_observed:
            self._records.popitem(last=False)
        return record
