"""The step loop of an embedding or reranking model: as ``StepLoop``, without answers, prefixes and KV cells."""

import queue
import threading
import time
from contextlib import suppress

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.accounts import REFUSAL_SERVICE, UNKNOWN_RATE
from mycelia.node.engine.child.loop import Close, Message, TextRead, rest_s
from mycelia.node.engine.child.pooling.embedding_queue import EmbeddingQueue, EmbeddingRequest
from mycelia.node.engine.child.reports import PREFILL_WINDOW_TOKENS, VITALS_INTERVAL_S
from mycelia.proto.cache.meters import TokenRateMeter
from mycelia.proto.wire.messages import Vitals


class PooledLoop:
    """All requests of one model. For the engine's main thread, except where it says otherwise."""

    saves_at_end = False

    def __init__(
        self, texts: EmbeddingQueue, slots: int, replies: pipe.Replies, no_text: str, share: float = 1.0
    ) -> None:
        """no_text: the answer to prompts. slots, share: see ``EngineSettings``."""
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.closed = threading.Event()
        self._texts = texts
        self._slots = slots
        self._replies = replies
        self._no_text = no_text
        self._share = share
        self._rate = TokenRateMeter(PREFILL_WINDOW_TOKENS)
        self._busy_since: float | None = None
        self._is_computing = False
        self._vitals_sent: Vitals | None = None
        self._vitals_sent_s = 0.0
        self._are_due = True
        """Whether a start or end changed the vitals."""

    def pulse(self) -> tuple[bool, float]:
        """See ``StepLoop.pulse``. For any thread."""
        since = self._busy_since
        return self._is_computing, 0.0 if since is None else time.monotonic() - since

    def interrupt(self, key: int | None = None) -> None:
        """See ``StepLoop.interrupt``: a text is computed to its end. For any thread."""

    def run(self) -> None:
        while not self.closed.is_set():
            self.step()

    def step(self) -> None:
        """Take messages, compute a piece of a text, report. Blocks while there is no work."""
        while (message := self._next_message()) is not None:
            self._busy_since = time.monotonic()
            self._handle(message)
            if self.closed.is_set():
                return
        request = next(iter(self._texts), None)
        if request is not None:
            self._compute(request)
        self._report()

    def _next_message(self) -> Message | None:
        """The next message; None: none is there, and there is work to do or to report."""
        with suppress(queue.Empty):
            return self.inbox.get_nowait()
        if self._texts or self._are_due:
            return None
        self._busy_since = None
        return self.inbox.get()

    def _handle(self, message: Message) -> None:
        self._are_due = True
        match message:
            case ipc.Embed():
                refusal = self._texts.add(message, time.monotonic(), self._rate.rate or UNKNOWN_RATE)
                if refusal is not None:
                    self._replies.put(refusal)
                    if not refusal.is_busy:
                        self._texts.charge(message.client, message.subnet, REFUSAL_SERVICE)
            case ipc.Submit():
                self._replies.put(ipc.Refused(message.key, "bad_request", self._no_text, False))
            case ipc.Cancel():
                self._texts.cancel(message.key)
            case TextRead():
                service = message.cpu_s * (self._rate.rate or UNKNOWN_RATE)
                self._texts.charge(message.client, message.subnet, service)
            case Close():
                self.closed.set()
            case _:  # (what only concerns prefixes and grammars)
                pass

    def _compute(self, request: EmbeddingRequest) -> None:
        self._busy_since = began = time.monotonic()
        self._is_computing = True
        step = self._texts.step(request, began)
        self._is_computing = False
        seconds = time.monotonic() - began
        if self._share < 1 and step.request.client:
            time.sleep(rest_s(seconds, self._share))
            seconds = time.monotonic() - began  # (the speed that others can count on)
        self._busy_since = time.monotonic()
        if step.num_tokens:
            self._rate.add(step.num_tokens, seconds)
        if step.reply is not None:
            self._replies.put(step.reply)
            self._are_due = True

    def _report(self) -> None:
        now, num_requests = time.monotonic(), len(self._texts)
        vitals = Vitals(
            queued_tokens=self._texts.queued_tokens,
            active_requests=min(num_requests, self._slots),
            waiting_requests=max(num_requests - self._slots, 0),
            slots=self._slots,
            prefill_rate=round(self._rate.rate),
        )
        if vitals != self._vitals_sent and (self._are_due or now - self._vitals_sent_s >= VITALS_INTERVAL_S):
            self._vitals_sent, self._vitals_sent_s = vitals, now
            self._replies.put(ipc.LoadChanged(vitals))
        self._are_due = False
        self._replies.flush()
