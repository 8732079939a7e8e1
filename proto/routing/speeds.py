"""How fast peers were seen to work on one model: the time between two tokens of an answer, and the fastest prefill.

A node may serve models of very different sizes, so each model has speeds of its own. They do not fade, because a
machine does not change. Invariant: at most ``max_observed`` peers are remembered, the ones observed last.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from mycelia.proto.config import RoutingConfig

_LATEST = 64
"""Number of nodes from which the usual pace is taken."""
_SLOWER_WEIGHT = 0.02
"""Weight of a rate below the fastest: most prompts show less than a machine can do."""


@dataclass
class _Speed:
    token_s: float = 0.0
    """0: not measured."""
    prefill_rate: float = 0.0
    """0: not measured."""


class Speeds:
    """The speeds of peers with one model."""

    def __init__(self, config: RoutingConfig, on_news: Callable[[bytes], None] = lambda peer: None) -> None:
        """on_news: called with each peer after a new observation of it."""
        self._config = config
        self._on_news = on_news
        self._speeds: OrderedDict[bytes, _Speed] = OrderedDict()
        self.usual_token_s = config.default_token_s
        """Median pace of the nodes observed last. Read-only."""

    def __iter__(self) -> Iterator[tuple[bytes, float, float]]:
        """(peer, seconds per token, prefill rate); 0.0: not measured."""
        return ((peer, speed.token_s, speed.prefill_rate) for peer, speed in self._speeds.items())

    def on_pace(self, peer: bytes, token_s: float) -> None:
        """Tokens of an answer of ``peer`` came ``token_s`` apart. Mutates."""
        speed = self._of(peer)
        weight = self._config.observation_weight if speed.token_s else 1.0
        speed.token_s += weight * (min(token_s, self._config.max_lateness_s) - speed.token_s)
        self._note_usual()
        self._on_news(peer)

    def on_prefilled(self, peer: bytes, rate: float) -> None:
        """``peer`` computed a prompt at ``rate`` tokens/s or faster, as observed here. Mutates."""
        speed = self._of(peer)
        weight = 1.0 if rate > speed.prefill_rate else _SLOWER_WEIGHT
        speed.prefill_rate += weight * (min(rate, self._config.max_prefill_rate) - speed.prefill_rate)
        self._on_news(peer)

    def restore(self, peer: bytes, token_s: float, prefill_rate: float) -> None:
        """Remember the finite values of ``__iter__`` from before a restart, within bounds. Mutates."""
        speed = self._of(peer)
        speed.token_s = min(max(token_s, 0.0), self._config.max_lateness_s)
        speed.prefill_rate = min(max(prefill_rate, 0.0), self._config.max_prefill_rate)
        self._note_usual()
        self._on_news(peer)

    def expected_token_s(self, peer: bytes) -> float:
        """Expected seconds per token of ``peer``: the usual pace or its own slower one, bounded. Does not mutate."""
        usual_s, speed = self.usual_token_s, self._speeds.get(peer)
        own_s = speed.token_s if speed else 0.0
        return min(max(own_s, usual_s), usual_s * self._config.max_slowness)

    def prefill_rate(self, peer: bytes) -> float:
        """The fastest prefill of ``peer`` that was seen; 0: none. Does not mutate."""
        speed = self._speeds.get(peer)
        return speed.prefill_rate if speed else 0.0

    def _of(self, peer: bytes) -> _Speed:
        speed = self._speeds.setdefault(peer, _Speed())
        self._speeds.move_to_end(peer)
        if len(self._speeds) > self._config.max_observed:
            self._speeds.popitem(last=False)
        return speed

    def _note_usual(self) -> None:
        latest = islice(reversed(self._speeds.values()), _LATEST)
        measured = sorted(speed.token_s for speed in latest if speed.token_s)
        self.usual_token_s = measured[len(measured) // 2] if measured else self._config.default_token_s
