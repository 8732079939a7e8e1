"""Which node shall answer a prompt.

The policy here: the longest estimated match wins (arXiv 2606.17059); among equal matches, and when nobody holds
anything, the least loaded node wins. ``cost`` is what the policy minimises, in tokens that the candidate would have to
prefill. Matches are compared in whole blocks, so that this node's token-exact view of itself has no edge over what
peers advertise at block granularity.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proto.blocks import STRIDE
from proto.errors import LocalError


@dataclass(frozen=True)
class Candidate:
    """A node that could serve, with what is known of it now."""

    peer: bytes
    matched_tokens: int
    """Estimated tokens of the prompt in its cache."""
    num_requests: int
    """Requests active or waiting there, as reported or as sent there by this node, whichever is more."""
    is_local: bool
    queued_tokens: int = 0
    """Of prompts that are to be prefilled there before this one."""
    slots: int = 1
    """Requests it works on at once."""
    prefill_rate: float = 0.0
    """Tokens/s; 0 when nobody has measured it yet."""
    round_trip_s: float = 0.0
    precision: float = 1.0
    """rho: tokens found in its cache / tokens believed to be there, of late."""
    slowness: float = 1.0
    """beta: observed / expected wait, of late."""
    load_age_s: float = 0.0
    """Since its load was last heard of."""


@dataclass(frozen=True)
class RatedCandidate:
    """A candidate with its cost under the policy."""

    candidate: Candidate
    cost: float


@dataclass(frozen=True)
class Decision:
    """The choice and every term it was made of; best candidate first."""

    chosen: bytes
    reason: str
    prompt_tokens: int
    rated: tuple[RatedCandidate, ...]

    @property
    def matched_tokens(self) -> int:
        """The match that the chosen node was chosen on."""
        return self.rated[0].candidate.matched_tokens


Policy = Callable[[Sequence[Candidate], int, Sequence[int]], Decision]
"""(candidates, tokens of the prompt, its block hashes) -> who shall answer. Candidates may be none: LocalError then."""


def choose(candidates: Sequence[Candidate], prompt_tokens: int) -> Decision:
    """The best of ``candidates`` for a prompt of ``prompt_tokens``. Raises LocalError when there is none."""
    if not candidates:
        raise LocalError("no node serves this model")
    ranked = sorted(candidates, key=_rank)
    best = ranked[0]
    matched = best.matched_tokens // STRIDE
    rivals = [c for c in ranked if c.matched_tokens // STRIDE == matched]
    if len(candidates) == 1:
        reason = "the only node"
    elif matched == 0:
        reason = "no node holds the prompt; least loaded"
    elif len(rivals) == 1:
        reason = f"longest match, {best.matched_tokens} tokens"
    else:
        reason = f"longest match, {best.matched_tokens} tokens, least loaded of {len(rivals)} nodes that hold it"
    rated = tuple(RatedCandidate(c, float(max(prompt_tokens - c.matched_tokens, 0))) for c in ranked)
    return Decision(best.peer, reason, prompt_tokens, rated)


def _rank(candidate: Candidate) -> tuple[int, int, bool, bytes]:
    blocks = candidate.matched_tokens // STRIDE
    return (-blocks, candidate.num_requests, not candidate.is_local, candidate.peer)
