"""The results of a run, from the records of its requests."""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.record import Record
from mycelia.sim.sessions import hit_bound

QUANTILES = tuple((place + 0.5) / 50 for place in range(50))
"""The shares of ``Outcome.ttft_quantiles_s``."""
_DIGITS = 4


@dataclass(frozen=True)
class Window:
    """The measured part of a run."""

    from_s: float
    until_s: float
    objective_s: float
    """Longest time to first token that counts as good."""
    rate: float
    """Prompts a second that were to enter."""
    utilisation: tuple[float, ...]
    """Per node: the share of time with prefill, or the share of its slots in use, whichever is more."""
    num_digest_bytes: float
    """Bytes of digests received by a node where requests enter."""
    liars: frozenset[int] = frozenset()

    def holds(self, record: Record) -> bool:
        return self.from_s <= record.submitted_s < self.until_s

    @property
    def length_s(self) -> float:
        return self.until_s - self.from_s


@dataclass(frozen=True)
class Outcome:
    num_requests: int
    num_failed: int
    """Requests without an answer."""
    rate: float
    """Prompts a second in total, as specified."""
    hit_ratio: float
    """Prompt tokens of answered requests found in the cache of the serving node / all of them."""
    hit_bound: float
    """The same with one unlimited cache."""
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    ttft_quantiles_s: tuple[float, ...]
    """At ``QUANTILES``."""
    utilisation: float
    """Share of its capacity that a node used, mean of all: see ``Window``."""
    load_imbalance: float
    """Utilisation of the busiest node / mean of all nodes."""
    stale_share: float
    """Share of the cached tokens for which a node was chosen and which it did not hold."""
    digest_bytes_per_s: float
    """Gossip and repair received by a node where requests enter."""
    goodput: float
    """Answered requests a second whose first token came within the objective."""
    liar_share: float
    """Share of the answered requests that dishonest nodes served."""


def outcome_of(records: Sequence[Record], window: Window, now: float) -> Outcome:
    """records: all of the run, in order of arrival. Raises LocalError when the window has none."""
    measured = [record for record in records if window.holds(record)]
    if not measured:
        raise LocalError("no request fell into the measured time: simulate longer, or at a higher rate")
    answered = [record for record in measured if record.done_s]
    # Requests without a first token have waited until now; failed requests do not count.
    waits = sorted((record.first_token_s or now) - record.submitted_s for record in measured if not record.failure)
    tokens = sum(record.num_prompt for record in answered)
    promised = sum(record.promised_tokens for record in answered)
    kept = sum(min(record.promised_tokens, record.cached_tokens) for record in answered)
    good = [record for record in answered if record.first_token_s - record.submitted_s <= window.objective_s]
    utilisation = sum(window.utilisation) / len(window.utilisation)
    prompts = [(record.chain, record.num_prompt // STRIDE, record.num_prompt) for record in records]
    return Outcome(
        num_requests=len(measured),
        num_failed=len(measured) - len(answered),
        rate=round(window.rate, _DIGITS),
        hit_ratio=sum(record.cached_tokens for record in answered) / max(tokens, 1),
        hit_bound=hit_bound(prompts, [window.holds(record) for record in records], STRIDE),
        ttft_p50_s=percentile(waits, 0.5),
        ttft_p90_s=percentile(waits, 0.9),
        ttft_p99_s=percentile(waits, 0.99),
        ttft_quantiles_s=tuple(round(percentile(waits, share), _DIGITS) for share in QUANTILES),
        utilisation=utilisation,
        load_imbalance=max(window.utilisation) / utilisation if utilisation else 1.0,
        stale_share=1 - kept / promised if promised else 0.0,
        digest_bytes_per_s=window.num_digest_bytes / window.length_s,
        goodput=len(good) / window.length_s,
        liar_share=sum(record.served_by in window.liars for record in answered) / max(len(answered), 1),
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank in sorted ``values``; 0 without values, because NaN would not be JSON."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0
