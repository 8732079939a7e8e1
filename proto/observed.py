"""What this node itself saw of the nodes it sent requests to: how true the beliefs were on which they were chosen.

*Precision* is the share of the tokens believed to be cached that were found cached; digests grow old, and liars
exaggerate. *Lateness* is how many seconds later than expected first tokens came; a machine may be busy with other
things, and liars claim to be fast and idle. (A factor would do them no harm: they claim to answer at once.) Both are
moving averages that fade back to nothing, so that whoever is not asked any more is given another chance.

The serving node itself tells how many tokens were cached. It can say more than there were, but not make the first token
come as soon: that lie makes it late instead.

Invariant: at most ``max_observed`` peers are remembered, the ones observed last.
"""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from proto.config import RoutingConfig


@dataclass
class _Record:
    imprecision: float = 0.0
    lateness_s: float = 0.0
    num_late: int = 0
    """Observations of lateness: the first few count more, so that a node meets each liar only once or twice."""
    at: float = 0.0


_MAX_NUM_LATE = 1_000
"""By far enough for a weight that no longer changes."""


@dataclass(frozen=True)
class Observation:
    """What is remembered of a peer."""

    peer: bytes
    imprecision: float
    lateness_s: float
    num_late: int
    at: float
    """Unix time in seconds at which that was so; it fades from then on."""


FORGOTTEN_HALF_LIVES = 16
"""After so many nothing is left: 600 s late are 10 ms then."""


class Observed:
    """Precision and lateness of every node that answered lately."""

    def __init__(self, config: RoutingConfig) -> None:
        self._config = config
        self._records: OrderedDict[bytes, _Record] = OrderedDict()

    def __contains__(self, peer: bytes) -> bool:
        return peer in self._records

    def __len__(self) -> int:
        return len(self._records)

    def on_first_token(self, peer: bytes, expected_s: float, observed_s: float, now: float) -> None:
        """It was expected after ``expected_s`` by what was told, and came after ``observed_s``. Mutates."""
        record = self._faded(peer, now)
        late_s = min(max(observed_s - expected_s, 0.0), self._config.max_lateness_s)
        record.num_late += 1
        weight = max(self._config.observation_weight, 1 / record.num_late)
        record.lateness_s += weight * (late_s - record.lateness_s)

    def on_cached(self, peer: bytes, believed_tokens: int, cached_tokens: int, now: float) -> None:
        """``believed_tokens`` of a prompt, at least one, were expected in its cache, and ``cached_tokens`` were.
        Mutates."""
        record = self._faded(peer, now)
        missing = 1.0 - min(cached_tokens / believed_tokens, 1.0)
        record.imprecision += self._config.observation_weight * (missing - record.imprecision)

    def record(self, peer: bytes) -> tuple[float, float, float]:
        """(1 - precision, lateness in seconds, when that was so): they fade from then on, to half in
        ``observation_half_life_s``. Zeros when nothing is known. Does not mutate."""
        record = self._records.get(peer)
        return (record.imprecision, record.lateness_s, record.at) if record else (0.0, 0.0, 0.0)

    def lateness_s(self, peer: bytes, now: float) -> float:
        """0 when nothing is known. Does not mutate."""
        record = self._records.get(peer)
        return record.lateness_s * self._fading(record, now) if record else 0.0

    def precision(self, peer: bytes, now: float) -> float:
        """From 0 to 1, 1 when nothing is known. Does not mutate."""
        record = self._records.get(peer)
        return 1.0 - record.imprecision * self._fading(record, now) if record else 1.0

    def observations(self, now: float) -> list[Observation]:
        """What to ``restore`` after a restart: of everybody of whom something is left, whoever was observed last at the
        end. Does not mutate."""
        return [
            Observation(peer, record.imprecision, record.lateness_s, record.num_late, record.at)
            for peer, record in self._records.items()
            if self._is_left(record.at, now)
        ]

    def restore(self, observations: Sequence[Observation], now: float) -> None:
        """Remember what was observed before a restart; what is out of all bounds is brought into them, and times to
        come are ``now``. Mutates."""
        for one in observations:
            if not all(map(math.isfinite, (one.imprecision, one.lateness_s, one.at))) or not self._is_left(one.at, now):
                continue
            record = self._faded(one.peer, now)
            record.imprecision = min(max(one.imprecision, 0.0), 1.0)
            record.lateness_s = min(max(one.lateness_s, 0.0), self._config.max_lateness_s)
            record.num_late = min(max(one.num_late, 0), _MAX_NUM_LATE)
            record.at = min(one.at, now)

    def _is_left(self, at: float, now: float) -> bool:
        return now - at < FORGOTTEN_HALF_LIVES * self._config.observation_half_life_s

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
