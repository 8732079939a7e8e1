"""What requests reuse of each other: the prefix tree's leaves, the jobs that pin them, and the jobs that wait for them.

A running job pins the leaf whose cells it shares, so that the tree keeps counting them. A leaf's id may be the id of a
running job (its prompt is published as soon as it is computed, so that others can share it at once): such a leaf is
pinned by that job.

A job that arrives while another computes a longer prefix of its prompt than the tree has waits for that prefix instead
of computing it again, at most once.

What a job may reuse at all, and where its own tokens stand in the tree, is decided by ``proto.sharing``: the tree knows
sequences by their paths, not by their tokens.
"""

from collections.abc import Callable, Iterable, Sequence

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child.cells import Cells
from mycelia.node.engine.child.job import Job, Limits
from mycelia.proto.cache.radix import RadixTree, common_prefix
from mycelia.proto.cache.sharing import PUBLIC, Sharing
from mycelia.proto.cache.sharing import match as match_path

MIN_SHARED_TOKENS = 32
"""Waiting for another request's prefix must save at least this much: less than a prefill chunk is not worth it."""


class Prefixes:
    """Matches, publishes and pins prefixes. All collections are the scheduler's own."""

    def __init__(
        self,
        limits: Limits,
        tree: RadixTree,
        sharing: Sharing,
        changes: ChangeLog,
        cells: Cells,
        running: Sequence[Job],
        waiting: Iterable[Job],
    ) -> None:
        self._limits = limits
        self._tree = tree
        self.sharing = sharing
        self._changes = changes
        self._cells = cells
        self._running = running
        self._waiting = waiting
        self.reach: Callable[[Job, int], int] = lambda job, length: length
        """(job, length of its prefix in the tree) -> length in tree and second tier together; see ``tier.py``."""

    def match(self, job: Job) -> tuple[int, int | None]:
        """The longest prefix that a job which does not run may reuse; the last token is always computed, for its
        logits. Decides about the job's place in the tree: ``num_open``."""
        if not (self._limits.reuse and job.may_share):
            job.num_open = 0
            return 0, None
        # A job that was stopped has its tokens where they were.
        places = {self.open_tokens(job), job.num_open} if job.num_starts else {self.open_tokens(job)}
        found = [match_path(self._tree, job.owner, job.tokens[:-1], place) for place in sorted(places)]
        length, leaf, job.num_open = max(found, key=lambda one: one[0])
        return length, leaf

    def open_tokens(self, job: Job) -> int:
        """Leading tokens of a job's prompt that any job may reuse where they are cached."""
        return self.sharing.num_open(job.chain)

    def still_waits(self, job: Job) -> bool:
        if job.awaits is None or job.awaits not in self._running:
            return False
        return job.awaits.shared_tokens < job.awaited_tokens and self.match(job)[0] < job.awaited_tokens

    def should_wait(self, job: Job, length: int) -> bool:
        """True when another job computes a clearly longer prefix of this one than the tree and second tier have."""
        job.awaits = None
        if job.waited or not (self._limits.reuse and job.may_share):
            return False
        for other in self._running:
            overlap = common_prefix(job.prompt[:-1], other.prompt)
            if other.owner.tag != job.owner.tag:
                overlap = min(overlap, other.num_open, self.open_tokens(job))
            if overlap - length < MIN_SHARED_TOKENS or other.shared_tokens >= overlap:
                continue
            length = self.reach(job, length)
            if overlap - length >= MIN_SHARED_TOKENS:
                job.awaits, job.awaited_tokens, job.waited = other, overlap, True
                job.expected_cached = overlap
                return True
        return False

    def publishable(self) -> list[Job]:
        """Jobs whose computed prompt tokens should enter the tree now: all are there, or another job waits for them."""
        if not self._limits.reuse:
            return []
        awaited: dict[Job, int] = {}
        for job in self._waiting:
            if job.awaits is not None:
                awaited[job.awaits] = min(job.awaited_tokens, awaited.get(job.awaits, job.awaited_tokens))
        ready = []
        for job in self._running:
            needed = min(len(job.prompt), awaited.get(job, len(job.prompt)))
            if job.shared_tokens < needed <= job.num_computed and self._may_pin(job):
                ready.append(job)
        return ready

    def shareable(self, job: Job) -> tuple[int, int] | None:
        """(leaf, length) when the tree holds more of the job's computed tokens than the job shares. What it computed
        may open now, which decides about its place in the tree.

        The worker replaces the job's cells [0, length) by the leaf's before ``publish`` or ``finish``.
        """
        if not self._limits.reuse:
            return None
        self.note(job)
        length, source = self._tree.match(job.path(job.num_computed))
        if source is None or source == job.seq_id or length <= job.shared_tokens:
            return None
        return source, length

    def publish(self, job: Job, now: float) -> list[int]:
        """Insert the job's computed prompt tokens into the tree; returns the sequences to clear.

        Does nothing when ``_may_pin`` says no, which is not so for jobs of ``publishable``.
        """
        self.note(job)
        count = min(job.num_computed, len(job.prompt))
        if not self._may_pin(job):
            return []
        cleared = self.insert(job, count, now)
        _, leaf = self._tree.match(job.path(count))
        assert leaf is not None
        self.pin(job, leaf, count)
        return cleared

    def insert(self, job: Job, count: int, now: float) -> list[int]:
        """Insert its first ``count`` tokens under the job's id; frees and returns ids that became redundant and belong
        to no running job."""
        assert job.seq_id is not None
        path = job.path(count)
        length, leaf = self._tree.match(path)
        if length == count and leaf is not None:
            if job.counted_tokens < length:
                self._tree.use(path, now, job.counted_tokens)
            job.counted_tokens = length
            return []  # A leaf covers it, maybe the job's own; the job goes on with its own id.
        was_there = job.seq_id in self._tree
        redundant = self._tree.insert(path, job.seq_id, now, job.counted_tokens)
        job.counted_tokens = count
        for seq_id in [job.seq_id] if was_there else redundant:
            self._changes.evict(seq_id)
        self._changes.store(job.seq_id, path)
        in_use = {other.seq_id for other in self._running}
        cleared = [seq_id for seq_id in redundant if seq_id not in in_use]
        self._cells.free_ids.extend(cleared)
        for other in self._running:
            if other.pinned in redundant:
                other.pinned = job.seq_id  # The tree moved the pin along.
        if job.pinned in redundant:
            job.pinned = job.seq_id
        return cleared

    def note(self, job: Job) -> None:
        """What a running job has computed counts from now on as had by its owner; so some of it may open. As long as
        the job holds nothing of its own in the tree, its place there is where all that is open is everybody's."""
        if job.noted_tokens == job.num_computed:
            return
        job.noted_tokens = job.num_computed
        chain = self.sharing.note(job.owner, job.tokens[: job.num_computed], job.declared_open)
        assert job.seq_id is not None
        if job.owner != PUBLIC and job.seq_id not in self._tree and job.shared_tokens <= job.num_open:
            job.num_open = max(job.num_open, self.sharing.num_open(chain))

    def _may_pin(self, job: Job) -> bool:
        """False when a longer idle leaf has all that the job computed, and pinning it would break the promise."""
        count = min(job.num_computed, len(job.prompt))
        covered, leaf = self._tree.match(job.path(count))
        if covered < count or leaf is None or self._tree.pins(leaf):
            return True
        tail = len(self._tree.tokens_of(leaf)) - covered
        return tail <= self._cells.num_unpromised()

    def pin(self, job: Job, leaf: int | None, length: int) -> None:
        """Move the job's pin to ``leaf``, whose first ``length`` tokens it shares."""
        if leaf is not None:
            self._tree.pin(leaf)
        if job.pinned is not None:
            self._tree.unpin(job.pinned)
        job.pinned, job.shared_tokens = leaf, length
