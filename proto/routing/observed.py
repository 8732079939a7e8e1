"""This node's own observations of the nodes it sent requests to: how true the beliefs were on which it chose them.

*Precision* is the share of the tokens believed to be cached that were found cached; digests grow old, and dishonest
nodes exaggerate. *Lateness* is how many seconds later than expected first tokens came; a machine may be busy with other
work, and dishonest nodes claim to be fast and idle. (A factor would not catch a claim to answer at once.) Both are
moving averages that fade to nothing, so that a node that gets no requests any more gets another chance.

The serving node itself reports how many tokens were cached. It can report too many, but the first token does not come
sooner for it: that lie shows as lateness instead.

The *speeds* of a node differ by model (``speeds.py``). The *past* of a node does not fade: it is the time since the
node first connected. Bad answers shorten it, and a new past begins with the next good answer. (The first past does not
begin with the first answer: of nodes that came together, some get a request much later than others.)

Invariant: at most ``max_observed`` peers are remembered, the ones observed last.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.speeds import Speeds
from mycelia.proto.wire.bounds import MAX_NAMESPACES


@dataclass
class _Record:
    imprecision: float = 0.0
    lateness_s: float = 0.0
    num_late: int = 0
    """Observations of lateness. The first few weigh more, so that each dishonest node gets only one or two requests."""
    at: float = 0.0
    num_good: int = 1
    """Good answers, and one to begin with, less those that bad answers cost. At 0 nothing is left of the past."""
    since: float = 0.0
    """When the past began; 0: when the peer connected."""


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
    num_good: int = 1
    since: float = 0.0
    speeds: tuple[tuple[bytes, float, float], ...] = ()
    """(Namespace, seconds per token, prefill rate), see ``Speeds``."""


_MAX_NUM_GOOD = 64
"""Bound that lets a few bad answers in a row cost the whole past."""
PAST_KEPT_S = 7 * 86_400.0
"""How long a past is kept after the last answer."""
FORGOTTEN_HALF_LIVES = 16
"""After this many half-lives nothing is left: a lateness of 600 s is 10 ms then."""


class Observed:
    """Precision and lateness of every node that answered lately."""

    def __init__(self, config: RoutingConfig, on_news: Callable[[bytes], None] = lambda peer: None) -> None:
        """on_news: called with each peer after a new observation of it."""
        self._config = config
        self._on_news = on_news
        self._records: OrderedDict[bytes, _Record] = OrderedDict()
        self._speeds: dict[bytes, Speeds] = {}
        """Namespace -> speeds."""

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

    def speeds(self, namespace: bytes) -> Speeds:
        """The speeds with one of this node's models."""
        speeds = self._speeds.get(namespace)
        if speeds is None:
            speeds = self._speeds[namespace] = Speeds(self._config, self._on_news)
        return speeds

    def on_answered(self, peer: bytes, connected_at: float, now: float) -> None:
        """``peer`` gave an answer in which nothing wrong was found. Mutates."""
        record = self._faded(peer, now)
        record.since = (record.since or connected_at) if record.num_good else now
        record.num_good = min(record.num_good + 1, _MAX_NUM_GOOD)
        self._on_news(peer)

    def record(
        self, peer: bytes, connected_at: float, namespace: bytes = b""
    ) -> tuple[float, float, float, float, float]:
        """(1 - precision, lateness in seconds, the time of these values, prefill rate, when the past began). The first
        two halve every ``observation_half_life_s`` from then on. Zeros: unknown peer; infinity: no past."""
        record, speeds = self._records.get(peer), self._speeds.get(namespace)
        rate = speeds.prefill_rate(peer) if speeds is not None else 0.0
        if record is None:
            return 0.0, 0.0, 0.0, rate, connected_at
        since = (record.since or connected_at) if record.num_good else math.inf
        return record.imprecision, record.lateness_s, record.at, rate, since

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
        speeds: dict[bytes, list[tuple[bytes, float, float]]] = {}
        for namespace, of_model in self._speeds.items():
            for peer, token_s, rate in of_model:
                speeds.setdefault(peer, []).append((namespace, token_s, rate))
        return [
            Observation(peer, **vars(record), speeds=tuple(speeds.get(peer, ())))
            for peer, record in self._records.items()
            if self._is_left(record.at, record.num_good, now)
        ]

    def restore(self, observations: Sequence[Observation], now: float) -> None:
        """Remember observations from before a restart. Clamps values out of bounds and times after ``now``. Mutates."""
        for one in observations:
            numbers = (one.imprecision, one.lateness_s, one.at, one.since)
            if not all(map(math.isfinite, numbers)) or not self._is_left(one.at, one.num_good, now):
                continue
            record = self._faded(one.peer, now)
            record.imprecision = min(max(one.imprecision, 0.0), 1.0)
            record.lateness_s = min(max(one.lateness_s, 0.0), self._config.max_lateness_s)
            record.num_late = min(max(one.num_late, 0), _MAX_NUM_LATE)
            record.at = min(one.at, now)
            record.num_good = min(max(one.num_good, 0), _MAX_NUM_GOOD)
            record.since = min(one.since, now)
            for namespace, token_s, rate in one.speeds[:MAX_NAMESPACES]:
                if math.isfinite(token_s) and math.isfinite(rate):
                    self.speeds(namespace).restore(one.peer, token_s, rate)
            self._on_news(one.peer)

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
