"""Knowledge for routing rules beyond a node's own: the true state, and the bare reports."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mycelia.proto.cache.sharing import EVERYBODY, Salt, owner_of
from mycelia.proto.routing.candidates import Candidate, Candidates, Column
from mycelia.proto.wire.blocks import STRIDE
from mycelia.sim.engine import Engine, Job
from mycelia.sim.serving import Serving
from mycelia.sim.world import NAMESPACE


@dataclass(frozen=True)
class TrueState:
    """The true state of a swarm, for prompts that enter at node ``entry``."""

    serving: Serving
    entry: int

    def candidates(self, known: Candidates, chain: Sequence[int]) -> Candidates:
        true = [look(self.serving, self.entry, one, chain) for one in known.to_list()]
        return Candidates.of(true, known.usual, known.prompts_per_node)

    def waits_s(self, known: Candidates, prompt_tokens: int, chain: Sequence[int]) -> Column:
        true = self.candidates(known, chain)
        now = self.serving.world.now
        waits_s = []
        for place, peer in enumerate(known.peers):
            number = self.serving.world.number_of[peer]
            engine = self.serving.engines[number]
            way_s = float(true.round_trip_s[place])
            if engine is None:
                waits_s.append(1e6)
                continue
            starts_s = _starts_s(engine, self.serving.coming(number), now)
            cached = min(int(true.matched_tokens[place]), prompt_tokens - 1)
            # (the way there and back, of which the first half passes while the queue drains)
            waits_s.append(max(starts_s, way_s / 2) + engine.spec.prefill_s(cached, prompt_tokens) + way_s / 2)
        return np.array(waits_s)


def _starts_s(engine: Engine, coming: Sequence[Job], now: float) -> float:
    """Seconds until a prompt behind all of ``coming`` begins its prefill, with answers as long as they will be."""
    spec = engine.spec
    free_s: list[float] = []
    """When each slot in use becomes free."""
    prefill_free_s = 0.0
    waiting = []
    for job in coming:
        decode_s = (job.num_answer - 1) / spec.decode_rate
        if job.first_token_s:
            heapq.heappush(free_s, max(job.first_token_s + decode_s - now, 0.0))
        elif job.prefill_s:
            prefill_free_s = max(job.prefill_s + spec.prefill_s(job.cached, job.num_prompt) - now, 0.0)
            heapq.heappush(free_s, prefill_free_s + decode_s)
        else:
            waiting.append((job, decode_s))
    for job, decode_s in waiting:
        begins_s = max(prefill_free_s, heapq.heappop(free_s) if len(free_s) >= spec.slots else 0.0)
        prefill_free_s = begins_s + spec.prefill_s(engine.match(job), job.num_prompt)
        heapq.heappush(free_s, prefill_free_s + decode_s)
    return max(prefill_free_s, heapq.heappop(free_s) if len(free_s) >= spec.slots else 0.0)


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
