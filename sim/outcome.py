"""The results of a run, from the records of its requests.

What counts is what clients see. A client that is refused comes again when it was told to, and its wait runs from the
first time it asked. A prompt that fails, or has no first token when the run ends, counts with its wait until then: no
rule becomes better by refusing, or by losing, what it would answer late.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.errors import LocalError
from mycelia.sim.record import Record
from mycelia.sim.sessions import hit_bound

QUANTILES = tuple((place + 0.5) / 50 for place in range(50))
"""The shares of ``Outcome.ttft_quantiles_s``."""
OBJECTIVES_S = (2.0, 5.0)
"""Longest waits that count for ``Outcome.goodput_2s`` and ``goodput_5s``."""
_DIGITS = 4


@dataclass(frozen=True)
class Window:
    """The measured part of a run."""

    from_s: float
    until_s: float
    ends_s: float
    """When the run ends: the last answers, and clients that come again, have had their time."""
    rate: float
    """Prompts a second that were to enter."""
    utilisation: tuple[float, ...]
    """Per node: the share of time with prefill, or the share of its slots in use, whichever is more."""
    num_digest_bytes: float
    """Bytes of digests received by a node where requests enter."""
    liars: frozenset[int] = frozenset()

    def holds(self, record: Record) -> bool:
        """Whether the record's prompt was first asked in the measured time."""
        return self.from_s <= record.asked_s < self.until_s

    @property
    def length_s(self) -> float:
        return self.until_s - self.from_s


@dataclass(frozen=True)
class Outcome:
    num_requests: int
    """Prompts first asked in the measured time. All following quantities are of these prompts."""
    num_failed: int
    """Prompts without an answer when the run ended."""
    num_returned: int
    """Prompts that were asked more than once, because they were refused or failed."""
    num_refused: int
    """Tries that were refused because all nodes were busy."""
    num_too_long: int
    """Prompts that no machine of the swarm can hold. They are not asked, and count nowhere else."""
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
    goodput_2s: float
    """Answered prompts a second whose first token came within 2 s of the first time they were asked."""
    goodput_5s: float
    """The same within 5 s."""
    liar_share: float
    """Share of the answered requests that dishonest nodes served."""


def outcome_of(records: Sequence[Record], window: Window, num_too_long: int = 0) -> Outcome:
    """records: all tries of the run, in order of arrival. Raises LocalError when the window has none."""
    tries = [record for record in records if window.holds(record)]
    if not tries:
        raise LocalError("no request fell into the measured time: simulate longer, or at a higher rate")
    measured = [record for record in tries if not record.came_again]
    answered = [record for record in measured if record.done_s]
    waits = sorted(_wait_s(record, window) for record in measured)
    tokens = sum(record.num_prompt for record in answered)
    promised = sum(record.promised_tokens for record in answered)
    kept = sum(min(record.promised_tokens, record.cached_tokens) for record in answered)
    good = [sum(_wait_s(record, window) <= most_s for record in answered) for most_s in OBJECTIVES_S]
    utilisation = sum(window.utilisation) / len(window.utilisation)
    prompts = [record for record in records if not record.came_again]
    chains = [(record.chain, record.num_prompt // STRIDE, record.num_prompt) for record in prompts]
    return Outcome(
        num_requests=len(measured),
        num_failed=len(measured) - len(answered),
        num_returned=sum(record.submitted_s > record.asked_s for record in measured),
        num_refused=sum(record.is_refused for record in tries),
        num_too_long=num_too_long,
        rate=round(window.rate, _DIGITS),
        hit_ratio=sum(record.cached_tokens for record in answered) / max(tokens, 1),
        hit_bound=hit_bound(chains, [window.holds(record) for record in prompts], STRIDE),
        ttft_p50_s=percentile(waits, 0.5),
        ttft_p90_s=percentile(waits, 0.9),
        ttft_p99_s=percentile(waits, 0.99),
        ttft_quantiles_s=tuple(round(percentile(waits, share), _DIGITS) for share in QUANTILES),
        utilisation=utilisation,
        load_imbalance=max(window.utilisation) / utilisation if utilisation else 1.0,
        stale_share=1 - kept / promised if promised else 0.0,
        digest_bytes_per_s=window.num_digest_bytes / window.length_s,
        goodput_2s=good[0] / window.length_s,
        goodput_5s=good[1] / window.length_s,
        liar_share=sum(record.served_by in window.liars for record in answered) / max(len(answered), 1),
    )


def _wait_s(record: Record, window: Window) -> float:
    has_begun = record.first_token_s and not record.failure
    return (record.first_token_s if has_begun else window.ends_s) - record.asked_s


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank in sorted ``values``; 0 without values, because NaN would not be JSON."""
    return values[min(int(len(values) * share), len(values) - 1)] if values else 0.0
