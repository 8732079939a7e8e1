"""A node's engine: how long a prompt waits, is prefilled and decoded, given what the cache holds.

    submit --> waiting (fair) --> prefill, one prompt at a time --> decode, side by side --> done
                                  uncached tokens / prefill_rate    tokens / decode_rate

The queue is the real engine's, ``admission/fair_queue.py``: bounded, and fair among clients. A request holds a slot
from the start of its prefill to its last token. The first waiting one begins as soon as a slot is free and no other
prefill runs. The cache is looked up at that moment, as in a real engine, so a prompt finds what those before it left.
The first token comes at the end of the prefill. The cache is the node's own ``cache/radix.py``, with blocks of
``STRIDE`` tokens in place of tokens: leaves are evicted by the node's own rule of value, and never while in use. An
answer's whole blocks are kept too. ``cache/sharing.py`` decides whose they are and who else may reuse them.

Simplified: decode streams do not slow each other or a prefill down, a token costs the same at any depth, and a match
ends at a whole block. ``EngineSpec`` can change the last two, and engines may share a machine (``Host``).
"""

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from mycelia.proto.admission.fair_queue import FairQueue
from mycelia.proto.cache.meters import HoldMeter, TokenRateMeter
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.sharing import PUBLIC, Owner, Sharing, match, paint
from mycelia.proto.wire.blocks import HASH_BYTES, STRIDE
from mycelia.proto.wire.messages import Vitals
from mycelia.sim.host import Host, Work
from mycelia.sim.machine import EngineSpec, Used

RATE_WINDOW_TOKENS = 2_048
"""Tokens over which a shared engine measures its rate, as real ones do."""

MAX_WAITING = 64
"""The number that may wait at a real engine."""


@dataclass(eq=False)
class Job:
    """One attempt of a request at one engine."""

    request_id: bytes
    attempt: int
    chain: tuple[int, ...]
    """Block hashes of ``tokens``."""
    tokens: tuple[int, ...]
    """Prompt, then answer."""
    num_prompt: int
    num_answer: int
    """At least 1."""
    client: bytes = b""
    """The client whose share of the engine it takes."""
    subnet: str = ""
    submitted_s: float = 0.0
    prefill_s: float = 0.0
    """When prefill began; 0 before, like the next two."""
    first_token_s: float = 0.0
    expected_cached: int = 0
    """Cached tokens expected when it was submitted."""
    cached: int = 0
    owner: Owner = PUBLIC
    """The owner whose prefixes it may reuse."""
    declared_open: int = 0
    """Number of leading tokens that hold no secrets."""
    num_open: int = 0
    """Length of the open part of its path, in the cache's units."""
    charged_tokens: int = 0
    """Tokens of its answer that are charged to its client."""
    leaf: int | None = None
    """The leaf of the cache that keeps its cells."""
    is_over: bool = False
    work: Work | None = None
    """The present computation on a shared machine."""

    @property
    def prompt_chain(self) -> tuple[int, ...]:
        return self.chain[: self.num_prompt // STRIDE]

    def units(self, num_tokens: int, grain: int) -> tuple[int, ...]:
        """How the cache's tree names the first tokens: the tokens themselves, or the hashes of whole blocks."""
        return self.tokens[:num_tokens] if grain == 1 else self.chain[: num_tokens // STRIDE]

    def path(self, num_tokens: int, grain: int) -> tuple[int, ...]:
        """The place of the first tokens in the cache's tree."""
        return paint(self.units(num_tokens, grain), self.num_open, self.owner.tag)


@dataclass
class Listener:
    """Callbacks of an engine, each called at the virtual time of its event."""

    at: Callable[[float, Callable[[], None]], None]
    """Call the function at this time."""
    on_begin: Callable[[Job], None]
    """Prefill begins, and the number of cached tokens is known."""
    on_first: Callable[[Job], None]
    on_done: Callable[[Job], None]
    on_cache: Callable[[list[tuple[int, Sequence[int]]], list[int]], None]
    """(leaf, tokens) stored, leaves dropped; a leaf stored again under a new id is dropped under its old one."""
    on_load: Callable[[], None]
    """``vitals`` changed."""


class Engine:
    """A simulated engine, see above. ``now`` never goes back."""

    def __init__(self, spec: EngineSpec, listener: Listener, host: Host | None = None) -> None:
        """host: the machine that it shares with other engines; None: a machine of its own."""
        assert spec.grain in (1, STRIDE)
        self.spec = spec
        self._used = Used()
        self._counted_until = 0.0
        """Time up to which ``_used`` counts."""
        self._host = host
        self._measured = TokenRateMeter(RATE_WINDOW_TOKENS)
        self._tell = listener
        self._hold = HoldMeter()
        self._tree = RadixTree()
        self._sharing = Sharing(b"")
        self._next_leaf = 0
        self._waiting: FairQueue[Job] = FairQueue(MAX_WAITING)
        self._prefilling: Job | None = None
        self._decoding: dict[tuple[bytes, int], Job] = {}
        self.most_waiting = 0
        """Largest number of requests that waited at once."""

    def used(self, now: float) -> Used:
        """Capacity used since the start, work in progress included."""
        elapsed_s = now - self._counted_until
        prefill_s = elapsed_s if self._prefilling is not None else 0.0
        return self._used + Used(prefill_s, elapsed_s * self._num_active() / self.spec.slots)

    def submit(self, job: Job, now: float) -> float:
        """0.0: the job waits or has begun. Otherwise it is refused: seconds until its client may come again."""
        self._count(now)
        self._charge_answers(now)
        job.submitted_s = now
        job.expected_cached = self.match(job)
        wait_s = self._waiting.join(job, now, self._first_start_s())
        if not wait_s:
            self._next(now)
            self.most_waiting = max(self.most_waiting, len(self._waiting))
            self._tell.on_load()
        return wait_s

    def cancel(self, request_id: bytes, attempt: int, now: float) -> None:
        key = (request_id, attempt)
        found = next((job for job in self.jobs() if (job.request_id, job.attempt) == key), None)
        if found is None:
            return
        self._count(now)
        found.is_over = True
        if found.work is not None and self._host is not None:
            self._host.drop(found.work, now)
        if found is self._prefilling:
            self._prefilling = None
        elif self._decoding.pop(key, None) is not None:
            self._charge_answer(found, now)
            self._release(found)
        else:
            self._waiting.withdraw(found)
        self._next(now)
        self._tell.on_load()

    def jobs(self) -> list[Job]:
        """Running jobs in order of arrival, then the waiting ones in the order in which they are to begin."""
        prefilling = [self._prefilling] if self._prefilling else []
        return [*self._decoding.values(), *prefilling, *self._waiting]

    def match(self, job: Job) -> int:
        """Tokens of its prompt that are cached now for its owner. The last one is always computed, for its logits."""
        return self._match(job)[0]

    def _match(self, job: Job) -> tuple[int, int]:
        """(tokens in the cache, units of its path that are open there)."""
        grain = self.spec.grain
        num_open = self._sharing.num_open(job.prompt_chain) // grain
        units, _, num_open = match(self._tree, job.owner, job.units(job.num_prompt, grain), num_open)
        return min(units * grain, job.num_prompt - 1), num_open

    def held_blocks(self, chain: Sequence[int], owner: Owner = PUBLIC) -> int:
        """Leading blocks of ``chain`` in the cache now that ``owner`` may reuse; for caches that count in blocks."""
        assert self.spec.grain == STRIDE
        return match(self._tree, owner, chain, self._sharing.num_open(chain) // STRIDE)[0]

    def queued_tokens(self, now: float) -> float:
        """Tokens to compute before a prompt submitted now, less what they will probably find in the cache."""
        waiting = sum(job.num_prompt - job.expected_cached for job in self._waiting)
        job = self._prefilling
        if job is None:
            return waiting
        if job.work is not None and self._host is not None:
            all_s = self.spec.prefill_s(job.cached, job.num_prompt)
            return waiting + (job.num_prompt - job.cached) * self._host.left_s(job.work, now) / all_s
        return waiting + max(0.0, job.num_prompt - job.cached - (now - job.prefill_s) * self.spec.prefill_rate)

    def num_requests(self) -> int:
        return self._num_active() + len(self._waiting)

    def vitals(self, now: float) -> Vitals:
        """The engine's load. Rates are exact but for ``told_rate``, or on a shared machine the recently measured ones:
        0 before any."""
        rate = self.spec.prefill_rate * self.spec.told_rate
        if self._host is not None:
            rate = self._measured.rate
        return Vitals(
            queued_tokens=round(self.queued_tokens(now)),
            active_requests=self._num_active(),
            waiting_requests=len(self._waiting),
            slots=self.spec.slots,
            prefill_rate=round(rate),
            decode_rate=round(self.spec.decode_rate),
            hold_ms=self._hold.mean_ms,
        )

    def check_invariants(self) -> None:
        self._tree.check_invariants()
        self._waiting.check_invariants()
        assert self._num_active() <= self.spec.slots
        pins = sum(self._tree.pins(leaf) for leaf in self._tree.seq_ids())
        assert pins == sum(job.leaf is not None for job in self.jobs())
        free = self._tree.least_valuable() is not None
        assert self._tree.num_tokens <= self._capacity or not free

    # --- inside ----------------------------------------------------------------------------------------------------

    def _next(self, now: float) -> None:
        if not self._waiting:
            return
        if self._prefilling is not None or len(self._decoding) >= self.spec.slots:
            self._waiting.blocked(now)
            return
        self._charge_answers(now)
        job = self._prefilling = next(iter(self._waiting))
        job.prefill_s = now
        job.cached, job.num_open = self._match(job)
        self._waiting.start(job, job.num_prompt - job.cached, now)
        if self._waiting:
            self._waiting.blocked(now)
        self._tell.on_begin(job)
        self._compute(job, self.spec.prefill_s(job.cached, job.num_prompt), self._prefilled, now)

    def _compute(self, job: Job, seconds: float, then: Callable[[Job, float], None], now: float) -> None:
        """Calls ``then`` when the machine has spent ``seconds`` on the job."""
        if self._host is not None:
            job.work = self._host.begin(self, seconds, partial(then, job), now)
        else:
            self._tell.at(now + seconds, lambda: then(job, now + seconds))

    def _prefilled(self, job: Job, now: float) -> None:
        if job.is_over:
            return
        self._count(now)
        self._measured.add(job.num_prompt - job.cached, now - job.prefill_s)
        job.first_token_s = now
        self._prefilling = None
        self._decoding[job.request_id, job.attempt] = job
        self._keep(job, job.num_prompt, now)
        self._tell.on_first(job)
        self._compute(job, (job.num_answer - 1) / self.spec.decode_rate, self._decoded, now)
        self._next(now)
        self._tell.on_load()

    def _decoded(self, job: Job, now: float) -> None:
        if job.is_over:
            return
        self._count(now)
        self._charge_answer(job, now)
        job.is_over = True
        del self._decoding[job.request_id, job.attempt]
        self._hold.add(now - job.prefill_s)
        self._release(job)
        self._keep(job, job.num_prompt + job.num_answer, now)
        self._release(job)
        self._next(now)
        self._tell.on_done(job)
        self._tell.on_load()

    def _count(self, now: float) -> None:
        """Call before anything begins or ends."""
        self._used = self.used(now)
        self._counted_until = now

    def _num_active(self) -> int:
        return len(self._decoding) + (self._prefilling is not None)

    def _charge_answers(self, now: float) -> None:
        for job in self._decoding.values():
            self._charge_answer(job, now)

    def _charge_answer(self, job: Job, now: float) -> None:
        decoded = min(1 + int((now - job.first_token_s) * self.spec.decode_rate), job.num_answer)
        self._waiting.charge_answer(job.client, decoded - job.charged_tokens, job.subnet)
        job.charged_tokens = decoded

    def _first_start_s(self) -> float:
        """Seconds between starts, before any were observed while others waited: the time of the job in progress."""
        jobs = [*self._decoding.values(), *([self._prefilling] if self._prefilling else [])]
        prefill_s = sum(job.num_prompt - job.cached for job in jobs) / self.spec.prefill_rate
        decode_s = sum(job.num_answer for job in jobs) / self.spec.decode_rate / self.spec.slots
        return max(prefill_s, decode_s) / max(len(jobs), 1)

    def _release(self, job: Job) -> None:
        if job.leaf is not None:
            self._tree.unpin(job.leaf)
            job.leaf = None

    @property
    def _capacity(self) -> int:
        return self.spec.context_tokens // self.spec.grain

    def _keep(self, job: Job, num_tokens: int, now: float) -> None:
        """The first ``num_tokens`` of the job are computed: keep them, pinned, and drop what there is no room for."""
        grain = self.spec.grain
        self._note(job, num_tokens)
        units, num_prompt = job.path(num_tokens, grain), len(job.units(job.num_prompt, grain))
        if not units or (num_tokens > job.num_prompt and len(units) == num_prompt):
            return
        self._next_leaf += 1
        new = self._next_leaf
        # The use of the prompt's cached part was already counted when the prompt was inserted.
        counted = num_prompt if len(units) > num_prompt else 0
        redundant = self._tree.insert(units, new, now, counted)
        stored: list[tuple[int, Sequence[int]]] = []
        if new in self._tree:
            job.leaf = new
            tokens = job.tokens[: len(units) * grain]
            stored.append((new, paint(tokens, job.num_open * grain, job.owner.tag)))
            for other in self._decoding.values():  # (its pins passed to the new leaf)
                if other.leaf in redundant:
                    other.leaf = new
        else:
            redundant = []
            job.leaf = self._tree.match(units)[1]
        assert job.leaf is not None
        self._tree.pin(job.leaf)
        dropped = list(redundant)
        while self._tree.num_tokens > self._capacity:
            victim = self._tree.least_valuable()
            if victim is None:
                break
            self._tree.remove(victim)
            dropped.append(victim)
        if stored or dropped:
            self._tell.on_cache(stored, dropped)

    def _note(self, job: Job, num_tokens: int) -> None:
        """The job has computed ``num_tokens``: some blocks may become open, and its path then begins there."""
        chain = job.chain[: num_tokens // STRIDE]
        self._sharing.note_blocks(
            job.owner, chain, array("Q", chain).tobytes(), HASH_BYTES, job.declared_open // STRIDE
        )
        holds_own = job.leaf is not None or job.cached > job.num_open * self.spec.grain
        if job.owner != PUBLIC and not holds_own and num_tokens <= job.num_prompt:
            job.num_open = max(job.num_open, self._sharing.num_open(chain) // self.spec.grain)
