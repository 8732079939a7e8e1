"""Knowledge for routing rules beyond a node's own: the true state, and the bare reports."""

from collections.abc import Sequence
from dataclasses import replace

from mycelia.proto.cache.sharing import EVERYBODY, Salt, owner_of
from mycelia.proto.routing.candidates import Candidate
from mycelia.proto.wire.blocks import STRIDE
from mycelia.sim.serving import Serving
from mycelia.sim.world import NAMESPACE


def look(serving: Serving, entry: int, one: Candidate, chain: Sequence[int]) -> Candidate:
    """``one`` as it truly is for a prompt that enters at ``entry``, with what is still in flight to it."""
    number = serving.world.number_of[one.peer]
    engine = serving.engines[number]
    if engine is None:
        return replace(one, matched_tokens=0, prefill_rate=1.0)
    jobs = serving.coming(number)
    there = engine.jobs()
    under_way = [job for job in jobs if job not in there]
    # Prompts that will be computed before this one begins will be in the cache then.
    salt = serving.salts.get(tuple(chain), Salt(scope=EVERYBODY))
    owner = owner_of(salt.tag_at(one.peer), salt.scope, serving.world.node(entry).peer, "")
    pending = [job.prompt_chain for job in jobs if not job.first_token_s and job.owner.tag == owner.tag]
    blocks = max([engine.held_blocks(chain, owner), *(_common(other, chain) for other in pending)])
    return replace(
        one,
        matched_tokens=blocks * STRIDE,
        num_requests=len(jobs),
        queued_tokens=round(
            engine.queued_tokens(serving.world.now) + sum(job.num_prompt - engine.match(job) for job in under_way)
        ),
        slots=engine.spec.slots,
        prefill_rate=engine.spec.prefill_rate,
        hold_s=engine.vitals(serving.world.now).hold_ms / 1000,
        round_trip_s=serving.world.links.round_trip_s(entry, number),
        precision=1.0,
        lateness_s=0.0,
        load_age_s=0.0,
    )


def told(serving: Serving, entry: int, candidates: Sequence[Candidate], chain: Sequence[int]) -> Sequence[Candidate]:
    """``candidates`` as reported to node ``entry``, without what it remembers of its own dispatches."""
    overlay = serving.world.node(entry).overlay
    vitals = {
        view.peer: served.vitals
        for view in overlay.peers(serving.world.now)
        for served in view.served
        if served.namespace == NAMESPACE
    }
    blocks = overlay.estimates.matches(NAMESPACE, chain)
    return [
        replace(
            one,
            matched_tokens=blocks.get(one.peer, 0) * STRIDE,
            num_requests=vitals[one.peer].active_requests + vitals[one.peer].waiting_requests,
            queued_tokens=vitals[one.peer].queued_tokens,
        )
        if one.peer in vitals
        else one
        for one in candidates
    ]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)
