"""One valid message of every kind, every field with a value of its own."""

from proto.messages import (
    Accepted,
    Announce,
    Answered,
    Ask,
    Begun,
    Bounced,
    CandidateTerms,
    ChatMessage,
    Delta,
    Failed,
    Final,
    Generate,
    Head,
    Hello,
    Link,
    Links,
    LinksQuery,
    Logprob,
    Message,
    Reach,
    ReachQuery,
    Reconcile,
    Repair,
    RepairRequest,
    Route,
    Sampling,
    Served,
    Subscribe,
    Text,
    TokenLogprobs,
    Tokens,
    Trace,
    TraceQuery,
    TraceStep,
    Usage,
    Version,
    Vitals,
    VitalsUpdate,
)

SPACE, PEER = b"n" * 16, b"\x00\x24" + b"p" * 36
VITALS = Vitals(
    queued_tokens=1, active_requests=2, waiting_requests=3, slots=4, prefill_rate=5, decode_rate=6, hold_ms=7
)
USAGE = Usage(prompt_tokens=9, cached_tokens=8, completion_tokens=7, queue_ms=6, prefill_ms=5, decode_ms=4)
SAMPLING = Sampling(
    max_tokens=3,
    temperature=0.7,
    seed=2,
    top_k=0,
    top_p=1.0,
    min_p=0.1,
    repeat_penalty=1.1,
    frequency_penalty=-0.5,
    presence_penalty=2.0,
    repeat_last_n=0,
    stop=("\n\n", "é"),
    logprobs=2,
    grammar='root ::= "é"',
    grammar_kind="gbnf",
)
LOGPROBS = TokenLogprobs(
    chosen=Logprob(token=5, text=b"\xe2", logprob=-0.5), top=(Logprob(token=2**32 - 1, text=b"", logprob=-1e6),)
)
HEAD = Head(owner=PEER, namespace=SPACE, epoch=1, seq=2, count=3, root=b"r" * 16, issued_at=2**40, signature=b"s" * 64)
EXAMPLES: list[Message] = [
    Hello(
        wire_version=1,
        agent="a",
        served=(Served(namespace=SPACE, model="m", context_tokens=2048, vitals=VITALS),),
    ),
    VitalsUpdate(namespace=SPACE, vitals=VITALS),
    RepairRequest(owner=PEER, namespace=SPACE, epoch=1, seq=2, count=3, root=bytes(16)),
    Repair(head=HEAD, mode=2, from_seq=0, upserts=b"e" * 9, removes=b""),
    Reconcile(versions=(Version(owner=PEER, namespace=SPACE, epoch=1, seq=2),)),
    Delta(head=HEAD, from_seq=1, upserts=b"e" * 9, removes=b"r" * 8),
    Announce(head=HEAD),
    Generate(
        request_id=b"i" * 16, namespace=SPACE, prompt=b"1234", sampling=SAMPLING, promised_tokens=64, patience_ms=900
    ),
    Accepted(cached_tokens=5, vitals=VITALS),
    Tokens(position=1, tokens=b"1234", text=b"\xe2\x82", logprobs=(LOGPROBS,)),
    Final(reason="stop", usage=USAGE, vitals=VITALS),
    Failed(code="overloaded", message="m", retryable=True, retry_after_ms=1_500),
    Ask(request_id=b"i" * 16, model="", messages=(ChatMessage(role="user", content="é"),), sampling=SAMPLING),
    Route(
        chosen=PEER,
        reason="r",
        prompt_tokens=3,
        candidates=(
            CandidateTerms(
                peer=PEER,
                matched_tokens=1,
                queued_requests=2,
                cost=3.5,
                round_trip_ms=20,
                queue_ms=300,
                prefill_ms=4_000,
                load_factor=0.75,
                precision=0.5,
                lateness_ms=125,
                recompute_ms=70,
            ),
        ),
    ),
    Text(text="héllo", logprobs=(LOGPROBS, LOGPROBS)),
    Answered(served_by=PEER, reason="length", usage=USAGE, ttft_ms=12, resumed=0),
    Bounced(cached_tokens=5, vitals=VITALS),
    Subscribe(namespace=SPACE, seconds=20),
    Begun(served_by=PEER, cached_tokens=64),
    TraceQuery(request_id=b"i" * 16),
    Trace(steps=(TraceStep(at_ms=0, name="entered"), TraceStep(at_ms=7, name="routed", detail="longest", peer=PEER))),
    LinksQuery(),
    ReachQuery(port=7_117),
    Reach(address="/ip4/203.0.113.7/tcp/40000", time_ms=1_800_000_000_000, outcome="open"),
    Links(links=(Link(peer=PEER, round_trip_ms=12),)),
    Ask(
        request_id=b"i" * 16,
        model="",
        messages=(ChatMessage(role="assistant", content="", extras="{}"),),
        sampling=SAMPLING,
        tools="[]",
    ),
    Ask(request_id=b"i" * 16, model="", messages=(), sampling=SAMPLING, text="Once", tokens=b"1234"),
]
