"""What the client of a request is told of the overlay's decisions, as frames."""

from mycelia.proto.effects import Finish
from mycelia.proto.routing.choose import Decision
from mycelia.proto.wire.messages import MAX_CANDIDATES, MAX_SMALL, Answered, CandidateTerms, Route


def route_frame(decision: Decision, namespace: bytes, format_: str = "", opened: str = "") -> Route:
    return Route(
        namespace=namespace,
        format=format_,
        opened=opened,
        chosen=decision.chosen,
        reason=decision.reason[:256],
        prompt_tokens=decision.prompt_tokens,
        candidates=tuple(
            CandidateTerms(
                peer=rated.candidate.peer,
                matched_tokens=rated.candidate.matched_tokens,
                queued_requests=rated.candidate.num_requests,
                cost=rated.cost,
                round_trip_ms=_ms(rated.candidate.round_trip_s),
                queue_ms=_ms(rated.queue_s),
                prefill_ms=_ms(rated.prefill_s),
                load_factor=rated.load_factor,
                precision=rated.candidate.precision,
                lateness_ms=_ms(rated.candidate.lateness_s),
                recompute_ms=_ms(rated.recompute_s),
            )
            for rated in decision.best_rated(MAX_CANDIDATES)
        ),
    )


def _ms(seconds: float) -> int:
    return min(round(seconds * 1000), MAX_SMALL)


def answered_frame(effect: Finish, ttft_s: float) -> Answered:
    return Answered(
        served_by=effect.served_by,
        reason=effect.reason,
        usage=effect.usage,
        ttft_ms=round(ttft_s * 1000),
        resumed=effect.resumed,
    )
