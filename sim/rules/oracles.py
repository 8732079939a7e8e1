"""Rules with perfect knowledge: what a better view of the swarm could gain. The oracle of a cell is the best of them.

- ``oracle``: the protocol's own cost, from the true state of every engine, with what is in flight to it.
- ``oracle-soonest``: the least true time to the first token. Each engine is played forward, with the lengths of the
  answers in progress.
- ``oracle-social``: the same time plus what the prompt's work costs others, as in the protocol's own cost.
- ``oracle-lmetric``: LMetric's product, from the true state.
"""

from collections.abc import Sequence
from typing import Protocol

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.candidates import Candidates, Column
from mycelia.proto.routing.choose import Rating, rate
from mycelia.sim.rules.systems import lmetric

ORACLES = ("oracle", "oracle-soonest", "oracle-social", "oracle-lmetric")
_CONFIG = RoutingConfig()


class Truth(Protocol):
    """The true state of a swarm, for prompts that enter at one node (``views.py``)."""

    def candidates(self, known: Candidates, chain: Sequence[int]) -> Candidates:
        """The candidates as they are at this moment."""

    def waits_s(self, known: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Column:
        """Seconds until the first token at each, if nothing else comes there first."""


class Oracle:
    def __init__(self, name: str, truth: Truth) -> None:
        """name: one of ``ORACLES``."""
        self._name = name
        self._truth = truth

    def __call__(self, candidates: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Rating:
        true = self._truth.candidates(candidates, chain)
        if self._name == "oracle-lmetric":
            return lmetric(true, prompt_tokens, chain)
        terms = rate(true, prompt_tokens, _CONFIG)
        if self._name == "oracle":
            return Rating(terms.cost, "least cost, by the true state", terms.uncertain_s)
        waits_s = self._truth.waits_s(candidates, prompt_tokens, chain)
        if self._name == "oracle-soonest":
            return Rating(waits_s, "first token truly soonest")
        return Rating(waits_s + terms.recompute_s + terms.blocking_s, "first token truly soonest, less what others pay")
