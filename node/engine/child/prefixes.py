"""The reuse of prefixes between requests: the leaves of the prefix tree, and the jobs that pin or await them.

A running job pins the leaf whose cells it shares, so that the tree keeps them. The id of a leaf may be the id of a
running job, because a prompt is published as soon as it is computed, so that others can share it at once. Such a leaf
is pinned by that job.

If another job is computing a longer prefix of a new job's prompt than the tree has, the new job waits for that prefix
instead of computing it again, at most once.

``proto.sharing`` decides which prefixes a job may reuse, and the place of its tokens in the tree: the tree identifies
sequences by their paths, not by their tokens.
"""

from collections.abc import Callable, Iterable, Sequence

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.child.cells import Cells
from mycelia.node.engine.child.job import Job, Limits
from mycelia.proto.cache.checkpoints import BRANCH
from mycelia.proto.cache.radix import RadixTree, common_prefix
from mycelia.proto.cache.sharing import Sharing
from mycelia.proto.cache.sharing import match as match_path

MIN_SHARED_TOKENS = 32
"""Minimum number of tokens that waiting for another request's prefix must save: less is not worth the wait."""


MAX_STOPS = 64
"""Lengths at which a job's state is saved, and that other jobs may add to."""


class Prefixes:
    """Matches, publishes and pins prefixes. All collections belong to the scheduler."""

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
        self.state: Callable[[Job, int], int] = lambda job, length: 0
        """(job, maximum) -> length of the longest saved state that the job may begin with; see ``checkpoints.py``."""

    def match(self, job: Job) -> tuple[int, int | None]:
        """(length, leaf) of the longest prefix that a job, not running, may reuse. Sets the job's place in the
        tree: ``num_open``."""
        if not (self._limits.reuse and job.may_share):
            job.num_open = job.state_tokens = job.known_tokens = 0
            return 0, None
        # The tokens of a stopped job are still at their old place.
        places = {self.open_tokens(job), job.num_open} if job.num_starts else {self.open_tokens(job)}
        found = [match_path(self._tree, job.owner, job.tokens[: job.num_reusable], place) for place in sorted(places)]
        length, leaf, job.num_open = max(found, key=lambda one: one[0])
        return self._with_state(job, length, leaf) if self._limits.state_grid else (length, leaf)

    def _with_state(self, job: Job, length: int, leaf: int | None) -> tuple[int, int | None]:
        """Cut a prefix of ``length`` cells to what the longest saved state covers, which may reach further."""
        reach = self.reach(job, length) if self._limits.has_cells else job.num_reusable
        job.state_tokens = self.state(job, reach)
        job.known_tokens = max(length, reach if self._limits.has_cells else job.state_tokens)
        length = min(length, job.state_tokens)
        return length, leaf if length else None

    def open_tokens(self, job: Job) -> int:
        """Number of leading prompt tokens that any job may reuse if they are cached."""
        return self.sharing.num_open(job.chain)

    def still_waits(self, job: Job) -> bool:
        if job.awaits is None or job.awaits not in self._running:
            return False
        length = self.match(job)[0]
        return job.awaits.shared_tokens < job.awaited_tokens and max(length, job.state_tokens) < job.awaited_tokens

    def expected(self, job: Job) -> int:
        """Number of leading tokens of a waiting job that tree and second tier hold for it."""
        length = self.match(job)[0]
        return job.state_tokens if self._limits.state_grid else self.reach(job, length)

    def should_wait(self, job: Job, length: int) -> bool:
        """Whether a running job computes a clearly longer prefix of ``job`` than tree and second tier have. Mutates."""
        job.awaits = None
        if job.waited or not (self._limits.reuse and job.may_share):
            return False
        reusable = job.prompt[: min(job.num_reusable, len(job.prompt) - 1)]
        for other in self._running:
            if other.owner.swarm != job.owner.swarm:
                continue
            overlap = common_prefix(reusable, other.prompt)
            if other.owner.tag != job.owner.tag:
                overlap = min(overlap, other.num_open, self.open_tokens(job))
            if self._limits.state_grid:
                length, overlap = max(length, job.state_tokens), self._awaitable(other, overlap)
            if overlap - length < MIN_SHARED_TOKENS or other.shared_tokens >= overlap:
                continue
            if not self._limits.state_grid:
                length = self.reach(job, length)
            if overlap - length >= MIN_SHARED_TOKENS:
                if self._limits.state_grid:
                    other.stops.setdefault(overlap, BRANCH)
                job.awaits, job.awaited_tokens, job.waited = other, overlap, True
                job.expected_cached = overlap
                return True
        return False

    def _awaitable(self, other: Job, overlap: int) -> int:
        """The longest prefix of the running job ``other``, of at most ``overlap`` tokens, whose state will be saved;
        0: none."""
        wanted = overlap // self._limits.state_grid * self._limits.state_grid
        may_stop = len(other.stops) < MAX_STOPS and wanted < other.num_to_prefill
        ahead = [stop for stop in (*other.stops, wanted) if stop < wanted or (stop == wanted and may_stop)]
        return max((stop for stop in ahead if stop > other.num_computed), default=0)

    def publishable(self) -> list[Job]:
        """Jobs whose computed prompt tokens should enter the tree now: all are computed, or another job awaits them."""
        if not self._limits.reuse:
            return []
        awaited: dict[Job, int] = {}
        for job in self._waiting:
            if job.awaits is not None:
                awaited[job.awaits] = min(job.awaited_tokens, awaited.get(job.awaits, job.awaited_tokens))
        ready = []
        for job in self._running:
            needed = self.kept(job, min(len(job.prompt), awaited.get(job, len(job.prompt))))
            if job.shared_tokens < needed <= job.num_computed and self._may_pin(job):
                ready.append(job)
        return ready

    def shareable(self, job: Job) -> tuple[int, int] | None:
        """(leaf, length) if the tree holds more of the job's computed tokens than the job shares. The worker replaces
        the job's cells [0, length) by the leaf's before ``publish`` or ``finish``. May mutate the job's ``num_open``,
        see ``note``."""
        if not self._limits.reuse:
            return None
        self.note(job)
        length, source = self._tree.match(job.path(self.kept(job, job.num_computed)))
        if source is None or source == job.seq_id or length <= job.shared_tokens:
            return None
        return source, length

    def publish(self, job: Job, now: float) -> list[int]:
        """Insert the job's computed prompt tokens into the tree; returns the sequences to clear. Does nothing if the
        job may not pin its leaf, which cannot happen for jobs of ``publishable``."""
        self.note(job)
        count = self.kept(job, min(job.num_computed, len(job.prompt)))
        if not count or not self._may_pin(job):
            return []
        cleared = self.insert(job, count, now)
        _, leaf = self._tree.match(job.path(count))
        assert leaf is not None
        self.pin(job, leaf, count)
        return cleared

    def kept(self, job: Job, count: int) -> int:
        """How many of the first ``count`` tokens of a job may be reused: all, but in exact mode with states only those
        that are computed in the same way in every prompt; see ``exact.py``."""
        grid = self._limits.state_grid
        return count if grid <= 1 else min(count, job.num_written) // grid * grid

    def insert(self, job: Job, count: int, now: float) -> list[int]:
        """Insert the job's first ``count`` tokens under its id. Frees and returns the ids that became redundant and
        belong to no running job."""
        assert job.seq_id is not None
        path = job.path(count)
        length, leaf = self._tree.match(path)
        if length == count and leaf is not None:
            if job.counted_tokens < length:
                self._tree.use(path, now, job.counted_tokens)
            job.counted_tokens = length
            return []  # (a leaf, maybe the job's own, covers the tokens; the job goes on with its own id)
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
        """Report a running job's computed tokens to ``Sharing``, which may open some of them. While the job has no own
        tokens in the tree, ``num_open`` follows. Mutates."""
        if job.noted_tokens == job.num_computed:
            return
        job.noted_tokens = job.num_computed
        chain = self.sharing.note(job.owner, job.tokens[: job.num_computed], job.declared_open)
        assert job.seq_id is not None
        if not job.owner.is_public and job.seq_id not in self._tree and job.shared_tokens <= job.num_open:
            job.num_open = max(job.num_open, self.sharing.num_open(chain))

    def _may_pin(self, job: Job) -> bool:
        """False if a longer idle leaf covers the job's tokens and pinning it would break the promise invariant."""
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
