"""The sequences of llama.cpp, kept consistent with the scheduler's state, and their way to and from the second tier."""

import time
from collections.abc import Iterable, Sequence

from mycelia.node.engine.child.cells import Evicted
from mycelia.node.engine.child.job import Job
from mycelia.node.engine.child.llama.llama import Llama
from mycelia.node.engine.child.rows import Row
from mycelia.node.engine.child.scheduler import Admission, Scheduler
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.proto.cache.checkpoints import ANSWER_END, turns_of
from mycelia.proto.cache.edges import Edge, Whose, open_in
from mycelia.proto.wire.blocks import pack_tokens


class Sequences:
    """Carries out the scheduler's decisions on the cells. For the thread that owns the llama.cpp context."""

    def __init__(self, llama: Llama, scheduler: Scheduler, tiers: TierStore | None) -> None:
        self._llama = llama
        self._scheduler = scheduler
        self._tiers = tiers
        if tiers is not None:
            tiers.reported.covered = self._covered

    def _covered(self, state: Edge) -> int:
        return len(state.path) if not self._llama.has_cells else self._scheduler.tree.match(state.path)[0]

    def occupy(self, admission: Admission, prefill_rate: float) -> bool:
        """Give the job's sequence exactly the cells of the prefix it reuses. False: the sequence is broken."""
        job, target, source = admission.job, admission.job.seq_id, admission.source
        assert target is not None
        if self._tiers is not None and self._scheduler.limits.state_grid:
            beginning, tier = pack_tokens(job.tokens[: job.state_tokens]), self._tiers.tier
            tier.kept = tier.state(beginning, self._whose(job))
            occupied = self._occupy_with_state(admission, target)
            tier.kept = None
            return occupied
        if self._tiers is not None and admission.evicted:
            self._tiers.protect(job.tokens, self._whose(job))
            self._keep(admission.evicted)
        # Copy before clearing, because the source may be evicted. The job may even have the id of the source or of
        # another evicted leaf, whose cells copy_prefix clears.
        if source is None:
            self._llama.clear(target)
            occupied = True
        elif source == target:
            occupied = self._llama.truncate(target, admission.length)
        else:
            occupied = self._llama.copy_prefix(source, target, admission.length)
        self.clear(leaf.seq_id for leaf in admission.evicted if leaf.seq_id != target)
        return occupied and self._restore(job, target, prefill_rate)

    def _occupy_with_state(self, admission: Admission, target: int) -> bool:
        """The same for a model that keeps states: first the cells, then the state after them."""
        job, source = admission.job, admission.source
        self._keep(admission.evicted)
        if source is None:
            self._llama.clear(target)
        occupied = source is None or self._llama.copy_prefix(source, target, admission.length)
        self.clear(leaf.seq_id for leaf in admission.evicted if leaf.seq_id != target)
        if not occupied or not job.state_tokens:
            return occupied
        assert self._tiers is not None
        tokens, whose = job.tokens[: job.state_tokens], self._whose(job)
        if not self._tiers.restore_with_state(self._llama, target, tokens, admission.length, whose):
            return False
        if job.state_tokens > job.num_computed:
            self._scheduler.restored(job, job.state_tokens)
        return True

    def save_state(self, job: Job, place: int) -> None:
        """Save the state of a running job after its computed tokens, if prompts may begin there later. place: see
        ``checkpoints.py``."""
        if self._tiers is None or self._scheduler.prefixes.kept(job, job.num_computed) != job.num_computed:
            return
        assert job.seq_id is not None
        self._scheduler.prefixes.note(job)
        # Where an open prefix is left, it is left for all; other lengths say something about the private tokens.
        swarm, is_open = job.owner.swarm, job.num_computed == self._scheduler.prefixes.open_tokens(job)
        whose = open_in(swarm) if is_open else Whose(job.owner.tag, min(job.num_open, job.num_computed), swarm)
        tokens = job.tokens[: job.num_computed]
        turns = turns_of(tokens, self._scheduler.limits.control_tokens)
        self._tiers.keep_state(self._llama, job.seq_id, tokens, place, whose, turns)

    def settle(self, job: Job) -> None:
        """Make a running job's computed tokens ready for reuse, before it leaves: save the state, and leave its
        sequence the cells only. llama.cpp would have to move states that lie between those of running jobs."""
        limits = self._scheduler.limits
        if not (limits.state_grid and limits.reuse):
            return
        assert job.seq_id is not None
        length = self._scheduler.prefixes.kept(job, job.num_computed)
        if length == job.num_computed:
            self.save_state(job, ANSWER_END)
        self._llama.truncate(job.seq_id, length)
        job.num_computed = length

    def state(self, job: Job, length: int) -> int:
        """See ``Prefixes.state``. Needs a second tier."""
        assert self._tiers is not None
        state = self._tiers.tier.state(pack_tokens(job.tokens[:length]), self._whose(job))
        return state.end if state is not None else 0

    def _restore(self, job: Job, seq_id: int, prefill_rate: float) -> bool:
        """Extend a job's prefix from the second tier. False: the sequence is broken."""
        if self._tiers is None or not job.may_share:
            return True
        tokens, whose = job.tokens[: job.num_reusable], self._whose(job)
        length = self._tiers.restore(self._llama, seq_id, tokens, job.num_computed, prefill_rate, whose)
        if length is not None:
            self._scheduler.restored(job, length)
        return length is not None

    def reach(self, job: Job, length: int) -> int:
        """See ``Prefixes.reach``. Needs a second tier."""
        assert self._tiers is not None
        return self._tiers.reach(job.tokens[: job.num_reusable], length, self._whose(job))

    def _whose(self, job: Job) -> Whose:
        return Whose(job.owner.tag, self._scheduler.prefixes.open_tokens(job), job.owner.swarm)

    def _keep(self, leaves: Iterable[Evicted]) -> None:
        """Save evicted leaves to the second tier. Call before any of their cells is cleared."""
        if self._tiers is not None:
            for leaf in leaves:
                self._tiers.keep(self._llama, leaf)

    def let_go(self, leaves: Sequence[Evicted]) -> None:
        """Save evicted leaves, then free their cells."""
        self._keep(leaves)
        self.clear(leaf.seq_id for leaf in leaves)

    def clear(self, seq_ids: Iterable[int]) -> None:
        for seq_id in seq_ids:
            self._llama.clear(seq_id)

    def share(self, job: Job) -> bool:
        """Replace the job's duplicates of the tree's cells. False: the sequence is broken."""
        shareable = self._scheduler.prefixes.shareable(job)
        if shareable is None:
            return True
        source, length = shareable
        assert job.seq_id is not None
        return self._llama.replace_prefix(source, job.seq_id, length)

    def resync(self, rows: Sequence[Row]) -> bool:
        """Keep the micro-batches that were finished before an abort, but plan the rows whose logits are lost again.
        False: a sequence is broken, as all are that keep states: these may be new in some layers and old in others."""
        if self._scheduler.limits.state_grid:
            return False
        for row in rows:
            job = row.job
            assert job.seq_id is not None
            end = row.start + row.count
            kept = min(self._llama.end(job.seq_id), end - row.num_outputs)
            job.num_computed = max(row.start, kept)
            if not self._llama.truncate(job.seq_id, job.num_computed):
                return False
        return True

    def close(self, deadline_s: float) -> None:
        """Write the cache to disk, for at most about ``deadline_s`` seconds."""
        if self._tiers is not None:
            tree = self._scheduler.tree
            leaves = [(seq_id, tree.tokens_of(seq_id)) for seq_id in tree.most_recent()]
            self._tiers.close(self._llama, leaves, time.monotonic() + deadline_s)

    def check_invariants(self) -> None:
        """Raise AssertionError when the scheduler's state and llama.cpp's cells differ. Call between steps."""
        scheduler = self._scheduler
        scheduler.check_invariants()
        if self._tiers is not None:
            self._tiers.check_invariants()
        has_states = scheduler.limits.state_grid > 0
        expected = {seq_id: len(scheduler.tree.tokens_of(seq_id)) for seq_id in scheduler.tree.seq_ids()}
        expected |= {job.seq_id: job.num_computed for job in scheduler.running if job.seq_id is not None}
        for seq_id in range(scheduler.limits.num_sequences):
            length = self._llama.end(seq_id)
            if has_states and not length and seq_id in scheduler.tree:
                continue  # (cells without a state)
            assert length == expected.get(seq_id, 0), f"sequence {seq_id}: {length} cells, expected {expected}"
