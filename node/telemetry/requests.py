"""The last requests of a node: the steps of each with their times, and the sums over all of them.

One log covers both sides of a request: entry and serving. Requests that entered here are also rows, for users. The log
is bounded for each side separately, so that served requests never displace entered ones: it forgets the oldest
requests, and all but the first steps of a long one. Rows are shared among clients: the first to go is the oldest row of
the client with the most rows. All peers together count as one client here, so their requests displace only each other.
Also, only a limited number of peers' requests per second reaches the journal and the log.
"""

import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import structlog
from prometheus_client import Histogram

from mycelia.node.engine.engine import EngineAccepted, EngineDone, EngineFailed, EngineItem, EngineTokens
from mycelia.node.peer_id import id_text
from mycelia.node.signals import Signal
from mycelia.node.telemetry.client_rows import ClientRows, is_peer
from mycelia.node.telemetry.record import MAX_AT_MS, Record, ms_of
from mycelia.node.telemetry.totals import Totals
from mycelia.node.views.history import RequestRow
from mycelia.node.views.state import StatsView
from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.effects import Begin, Dispatch
from mycelia.proto.wire.messages import (
    MAX_TRACE_STEPS,
    Answered,
    Begun,
    EntryFrame,
    Failed,
    Generate,
    PromptLogprobs,
    Route,
    Text,
    TraceStep,
    Usage,
)

log = structlog.get_logger()

MAX_REQUESTS = 512
"""On each side."""
CODES = frozenset(
    "bad_request too_long overloaded unknown_model engine_lost no_peer deadline timeout leaving internal".split()  # noqa: SIM905
)
"""Codes of failures; a peer's other codes are counted together."""
MAX_DETAIL_CHARS = 256
PEER_RATE, PEER_BURST = 2.0, 64.0
"""Requests of peers per second that reach the journal and the log; further ones only count in the sums."""
_RECENT = 256
"""Answers that the medians are made of."""
_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class RequestLog:
    """See the module's text. One caller at a time: no method waits."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_change: Callable[[RequestRow, Sequence[TraceStep]], None] = lambda row, steps: None,
    ) -> None:
        """clock, wall: seconds; the first one measures, the second one dates. on_change: called when a request enters
        here, and when it ends."""
        self._clock = clock
        self._wall = wall
        self.on_change = on_change
        self._entered: OrderedDict[bytes, Record] = OrderedDict()
        self._rows = ClientRows()
        """Those of ``_entered`` by client."""
        self._served: OrderedDict[bytes, Record] = OrderedDict()
        self._ttfts_ms: deque[int] = deque(maxlen=_RECENT)
        self._changed = Signal()
        self._version = 0
        self._peer_bucket = TokenBucket(PEER_RATE, PEER_BURST, clock())
        self._logs_steps = log.is_enabled_for(logging.DEBUG)
        self.totals = Totals()
        self.ttft = _histogram("mycelia_ttft", "Time to first token of prompts that entered here.")
        self.duration = _histogram("mycelia_request_duration", "Duration of answers to prompts that entered here.")
        self.queue = _histogram("mycelia_queue_wait", "Time that requests served here waited.")
        self.per_token = _histogram("mycelia_time_per_output_token", "Decode time per token of requests served here.")

    def restore(self, requests: Iterable[tuple[RequestRow, Sequence[TraceStep]]]) -> None:
        """Add ended requests from before a restart, the newest last. They count in no sum."""
        now, wall = self._clock(), self._wall()
        for row, steps in requests:
            age_s = min(max(wall - row.started_at, 0.0), MAX_AT_MS / 1000)
            self._keep(bytes.fromhex(row.id), Record(now - age_s, row, list(steps[:MAX_TRACE_STEPS])))
        self._wake()

    # --- to look at -------------------------------------------------------------------------------------------------

    def steps(self, request_id: bytes) -> tuple[TraceStep, ...]:
        """The request's steps on both sides, in order of time; empty if it is unknown or forgotten."""
        records = [one for one in (self._entered.get(request_id), self._served.get(request_id)) if one is not None]
        if len(records) < 2:
            return tuple(records[0].steps) if records else ()
        began = min(record.started_at for record in records)
        steps = [
            msgspec.structs.replace(step, at_ms=min(step.at_ms + round(1000 * (record.started_at - began)), MAX_AT_MS))
            for record in records
            for step in record.steps
        ]
        return tuple(sorted(steps, key=lambda step: step.at_ms)[:MAX_TRACE_STEPS])

    def matching(self, prefix: str) -> list[bytes]:
        """The requests whose id begins with ``prefix``, in hexadecimal."""
        known = dict.fromkeys([*self._entered, *self._served])
        return [request_id for request_id in known if request_id.hex().startswith(prefix)]

    def rows(self) -> list[RequestRow]:
        """The requests that entered here, the newest last."""
        return [record.row for record in self._entered.values() if record.row is not None]

    async def changed(self, version: int) -> int:
        """Waits until the rows are newer than ``version``, an earlier result (0: any); returns their version."""
        while self._version <= version:
            await self._changed.wait()
        return self._version

    def stats(self) -> StatsView:
        totals, ttfts = self.totals, sorted(self._ttfts_ms)
        return StatsView(
            entered=dict(totals.entered),
            served=dict(totals.served),
            entered_prompt_tokens=totals.entered_prompt_tokens,
            entered_cached_tokens=totals.entered_cached_tokens,
            served_prompt_tokens=totals.computed_tokens + totals.cached_tokens,
            served_cached_tokens=totals.cached_tokens,
            generated_tokens=totals.generated_tokens,
            promised_tokens=totals.promised_tokens,
            found_tokens=totals.found_tokens,
            moves=totals.moves,
            evictions=totals.evictions,
            ttft_ms_p50=ttfts[len(ttfts) // 2] if ttfts else None,
            ttft_ms_p99=ttfts[min(len(ttfts) * 99 // 100, len(ttfts) - 1)] if ttfts else None,
        )

    # --- where it entered -------------------------------------------------------------------------------------------

    def new_id(self, wanted: bytes) -> bytes:
        """An id for a request: the id wanted by the client if no request here has it, so that the client can ask for a
        trace. A client whose request was interrupted by the end of this node may use its id again."""
        record = self._entered.get(wanted)
        if any(wanted) and (record is None or (record.row is not None and record.row.status == "interrupted")):
            return wanted
        return secrets.token_bytes(16)  # (two clients may choose the same)

    def entered(self, request_id: bytes, model: str, client: bytes) -> None:
        row = RequestRow(request_id.hex(), self._wall(), model, id_text(client) if client else "")
        record = Record(self._clock(), row)
        record.is_told = not is_peer(row.client) or self._peer_bucket.take(self._clock())
        self._keep(request_id, record)
        self._add(record, request_id, "entered", model, b"")
        if record.is_told:
            self.on_change(row, record.steps)
        self._wake()

    def tokenized(self, request_id: bytes, num_tokens: int) -> None:
        self._step(request_id, "tokenized", f"{num_tokens} tokens")
        self.update(request_id, prompt_tokens=num_tokens)

    def relayed(self, request_id: bytes, peer: bytes) -> None:
        """The request was passed on to another entry node."""
        self._step(request_id, "relayed", "serves the model", peer)

    def relayed_frame(self, request_id: bytes, frame: EntryFrame, num_tokens: int = 0) -> None:
        """A frame of that entry node. num_tokens: those of the answer so far."""
        match frame:
            case Route():
                self.update(
                    request_id,
                    served_by=id_text(frame.chosen),
                    reason=frame.reason,
                    prompt_tokens=frame.prompt_tokens,
                )
            case Begun():
                self.update(request_id, served_by=id_text(frame.served_by), cached_tokens=frame.cached_tokens)
            case Answered():
                self.answered(request_id, frame)
            case Failed():
                self.failed(request_id, frame.code, frame.message, num_tokens)
            case Text() | PromptLogprobs():
                pass

    def routed(self, effect: Dispatch) -> None:
        decision = effect.decision
        record = self._step(effect.request_id, "routed", decision.reason, effect.peer)
        record.matched_tokens[effect.peer] = decision.matched_tokens
        self.totals.moves += effect.attempt > 1
        self.update(effect.request_id, served_by=id_text(effect.peer), reason=decision.reason)

    def begun(self, effect: Begin) -> None:
        record = self._step(effect.request_id, "begun", f"{effect.cached_tokens} cached", effect.served_by)
        promised = record.matched_tokens.get(effect.served_by, 0)
        self.totals.promised_tokens += promised
        self.totals.found_tokens += min(promised, effect.cached_tokens)
        self.update(effect.request_id, served_by=id_text(effect.served_by), cached_tokens=effect.cached_tokens)

    def first_token(self, request_id: bytes) -> None:
        record = self._step(request_id, "first_token")
        self.update(request_id, ttft_ms=self._ms(record))

    def emitted(self, request_id: bytes, name: str, peer: bytes, detail: str) -> None:
        """An event of the protocol about the request."""
        self._step(request_id, name, detail, peer)

    def answered(self, request_id: bytes, answered: Answered) -> None:
        usage = answered.usage
        record = self._step(
            request_id, "answered", f"{usage.completion_tokens} tokens, {answered.reason}", answered.served_by
        )
        self._ttfts_ms.append(answered.ttft_ms)
        self.ttft.observe(answered.ttft_ms / 1000)
        self.duration.observe(self._clock() - record.started_at)
        self.totals.entered_prompt_tokens += usage.prompt_tokens
        self.totals.entered_cached_tokens += usage.cached_tokens
        if self._is_own(request_id) and request_id not in self._served:
            self.totals.add_shared(received_requests=1, received_tokens=_computed(usage))
        self._ended(
            request_id,
            "answered",
            "answered",
            code=answered.reason,
            served_by=id_text(answered.served_by),
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            ttft_ms=answered.ttft_ms,
            resumed=answered.resumed,
        )

    def failed(self, request_id: bytes, code: str, message: str, num_tokens: int = 0) -> None:
        """num_tokens: those of the answer until then."""
        self._step(request_id, "failed", f"{code}: {message}")
        self._ended(request_id, "failed", code if code in CODES else "other", code=code, completion_tokens=num_tokens)

    def cancelled(self, request_id: bytes, num_tokens: int = 0) -> None:
        """num_tokens: see ``failed``."""
        self._step(request_id, "cancelled")
        self._ended(request_id, "cancelled", "cancelled", completion_tokens=num_tokens)

    # --- where it is served -----------------------------------------------------------------------------------------

    @contextmanager
    def serving(self, request: Generate, client: bytes) -> "Iterator[Callable[[EngineItem], None]]":
        """Context of serving a request. Call its value with every item of the answer."""
        request_id = request.request_id
        promised = f"promised {request.promised_tokens} of {len(request.prompt) // 4} tokens"
        self.served_step(request_id, "serving", promised, client)
        outcome = "cancelled"
        has_token = False

        def note(item: EngineItem) -> None:
            nonlocal outcome, has_token
            match item:
                case EngineAccepted():
                    self.served_step(request_id, "prefilling", f"{item.cached_tokens} cached")
                case EngineTokens() if not has_token:
                    has_token = True
                    self.served_step(request_id, "decoding")
                case EngineDone():
                    outcome = "cancelled" if item.reason == "cancelled" else "answered"
                    self._used(item.usage)
                    if not self._is_own(request_id):
                        given_s = (item.usage.prefill_ms + item.usage.decode_ms) / 1000
                        answered = int(outcome == "answered")
                        self.totals.add_shared(
                            given_requests=answered, given_tokens=_computed(item.usage), given_s=given_s
                        )
                case EngineFailed():
                    outcome = item.code
                case _:
                    pass

        try:
            yield note
        finally:
            self.served_step(request_id, "served", outcome)
            self.totals.served[outcome] += 1

    def handed_back(self, request: Generate, peer: bytes) -> None:
        self.served_step(request.request_id, "handed_back", "it would wait too long here", peer)
        self.totals.served["handed_back"] += 1

    def _used(self, usage: Usage) -> None:
        self.totals.add_usage(usage)
        self.queue.observe(usage.queue_ms / 1000)
        if usage.completion_tokens > 1:
            self.per_token.observe(usage.decode_ms / 1000 / (usage.completion_tokens - 1))

    def _is_own(self, request_id: bytes) -> bool:
        """Whether a client of this node's HTTP sent the request."""
        record = self._entered.get(request_id)
        return record is not None and record.made is not None and not is_peer(record.made.client)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _step(self, request_id: bytes, name: str, detail: str = "", peer: bytes = b"") -> Record:
        """Adds a step and returns the record. A forgotten request gets no new record, for nothing would show it."""
        record = self._entered.get(request_id) or Record(self._clock())
        self._add(record, request_id, name, detail, peer)
        return record

    def served_step(self, request_id: bytes, name: str, detail: str = "", peer: bytes = b"") -> None:
        record = self._served.get(request_id)
        if record is None:
            record = self._served[request_id] = Record(self._clock())
            if len(self._served) > MAX_REQUESTS:
                self._served.popitem(last=False)
        self._add(record, request_id, name, detail, peer)

    def _add(self, record: Record, request_id: bytes, name: str, detail: str, peer: bytes) -> None:
        if len(record.made_steps) + len(record.noted) < MAX_TRACE_STEPS:
            record.noted.append((self._clock(), name, detail[:MAX_DETAIL_CHARS], peer[:64]))
        if self._logs_steps and name not in _ENDS:  # (which are logged with all facts at the end)
            log.debug(f"request_{name}", request=request_id.hex(), detail=detail, peer=id_text(peer) if peer else "")

    def _keep(self, request_id: bytes, record: Record) -> None:
        assert record.made is not None
        self._remove(request_id)  # (it is there only if interrupted, see new_id)
        self._entered[request_id] = record
        self._rows.add(request_id, record.made.client)
        if len(self._entered) > MAX_REQUESTS:
            self._remove(self._rows.surplus())

    def _remove(self, request_id: bytes) -> None:
        self._entered.pop(request_id, None)
        self._rows.remove(request_id)

    def _ms(self, record: Record) -> int:
        return ms_of(self._clock() - record.started_at)

    def update(self, request_id: bytes, **changes: object) -> None:
        record = self._entered.get(request_id)
        if record is not None and record.made is not None:
            record.changes.update(changes)
            self._wake()

    def _ended(self, request_id: bytes, status: str, outcome: str, **changes: object) -> None:
        self.totals.entered[outcome] += 1
        record = self._entered.get(request_id)
        if record is None:
            return
        self.update(request_id, status=status, total_ms=self._ms(record), **changes)
        row = record.row
        if record.is_told and row is not None:
            self.on_change(row, self.steps(request_id))
            fields = {name: value for name in _LOGGED if (value := getattr(row, name)) not in ("", None)}
            log.info(f"request_{status}", request=row.id, **fields)

    def _wake(self) -> None:
        self._version += 1
        self._changed.notify()


def _computed(usage: Usage) -> int:
    return usage.prompt_tokens - usage.cached_tokens + usage.completion_tokens


_ENDS = ("answered", "failed", "cancelled")


def _histogram(name: str, text: str) -> Histogram:
    return Histogram(name, text, unit="seconds", buckets=_BUCKETS_S, registry=None)


_LOGGED = ("code", "served_by", "prompt_tokens", "cached_tokens", "completion_tokens", "ttft_ms", "total_ms", "resumed")
