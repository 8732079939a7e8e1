"""The rows of a decode call."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mycelia.node.engine.child.job import Job


@dataclass(frozen=True)
class Row:
    """A run of one job's tokens to decode; positions start at ``start``. ``wants_token``: sample after the last."""

    job: Job
    start: int
    count: int
    wants_token: bool

    @property
    def tokens(self) -> list[int]:
        return self.job.tokens[self.start : self.start + self.count]


def plan_rows(jobs: Sequence[Job], prefill_tokens: int, batch_tokens: int) -> list[Row]:
    """One row per decoding job, then prefill chunks of ``prefill_tokens`` in all. jobs: in order of admission.

    Half of the prefill goes to the job admitted first, so that none starves; the rest goes to the jobs with the least
    left, so that a short prompt does not wait for a long one.
    """
    rows = [Row(job, job.num_computed, 1, True) for job in jobs if not job.remaining_prefill]
    prefilling = [job for job in jobs if job.remaining_prefill]
    budget = min(prefill_tokens, batch_tokens - len(rows))
    counts = dict.fromkeys(prefilling, 0)
    if prefilling:
        first = prefilling[0]
        counts[first] = min(first.remaining_prefill, (budget + 1) // 2)
        budget -= counts[first]
    for job in sorted(prefilling, key=lambda job: job.remaining_prefill):
        extra = min(job.remaining_prefill - counts[job], budget)
        counts[job] += extra
        budget -= extra
    for job, count in counts.items():
        if count:
            rows.append(Row(job, job.num_computed, count, count == job.remaining_prefill))
    return rows


class GiveWay:
    """Which running jobs sit out a step, so that clients that want little are answered at nearly the pace that they
    would have alone.

    What a client (or subnet) *wants* is the service of all that it has in the engine, waiting or running, with
    answers as long as they may become. It is *greedy* beside one that wants ``FACTOR`` times less, and ``LEAST`` less.
    Beside such ones the greedy get ``PART`` of the time: steps without them earn it, what a step takes longer with
    them spends it, and the first of these is earned ahead. Where a row more costs next to nothing, as on a GPU, none
    sits out; and a client alone has all the time. It is shortest remaining processing time first, by clients, with a
    rest for the long.

    Without it one row beside another had 0.46 of its pace alone, beside seven 0.18 (135M model, one thread).
    """

    def __init__(self) -> None:
        self._greedy: frozenset[Job] = frozenset()
        self._earned_s = 0.0
        """At most 0: time is not saved up."""
        self._spent_s = 0.0
        """By a step with greedy ones, of late."""
        self._alone_s: dict[int, float] = {}
        """Decoding jobs -> seconds of a step with so many rows and no others, of late."""

    def sitting_out(self, jobs: Sequence[Job], wanted: Mapping[Job, float]) -> Collection[Job]:
        """Those of ``jobs``, all of which could have a row now, that sit out this step. wanted: by their clients. Call
        ``computed`` after the step."""
        most = FACTOR * min((wanted[job] for job in jobs), default=0.0) + LEAST
        greedy = frozenset(job for job in jobs if wanted[job] > most)
        if greedy and not self._greedy:  # An answer of a second should not begin with a step that takes half as long.
            self._earned_s = min(self._earned_s, -self._spent_s)
        self._greedy = greedy
        return self._greedy if self._earned_s < 0 else ()

    def computed(self, rows: Sequence[Row], seconds: float) -> None:
        """What was planned last took so long. Mutates."""
        if not self._greedy:
            return
        others = [row for row in rows if row.job not in self._greedy]
        num_tokens, num_others = sum(row.count for row in rows), sum(row.count for row in others)
        alone_s = self._alone_s.get(len(others)) if num_others == len(others) else None
        if num_others == num_tokens:
            spent_s = 0.0
            if num_others == len(others):
                self._alone_s[len(others)] = seconds if alone_s is None else (3 * alone_s + seconds) / 4
        elif alone_s is None:
            spent_s = seconds * (num_tokens - num_others) / num_tokens
        else:
            spent_s = max(seconds - alone_s, 0.0)
        if num_others < num_tokens:
            self._spent_s = (3 * self._spent_s + spent_s) / 4
        earned_s = self._earned_s + PART / (1 - PART) * (seconds - spent_s) - spent_s
        self._earned_s = min(max(earned_s, -MOST_OWED_S), 0.0)


class TextPace:
    """Texts to embed give way like rows: beside clients that want much less they get ``PART`` of the time."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        """Time that texts took and have not earned since by steps of answers."""

    def may_step(self, wanted: float, others: Collection[float]) -> bool:
        """wanted: tokens of the texts of a client; others: what the other clients with running jobs want."""
        return self._owed_s <= 0 or wanted <= FACTOR * min(others, default=wanted) + LEAST

    def embedded(self, seconds: float) -> None:
        """A step of a text took so long. Mutates."""
        self._owed_s = min(self._owed_s + seconds, MOST_OWED_S)

    def computed(self, seconds: float) -> None:
        """A step of answers took so long. Mutates."""
        self._owed_s = max(self._owed_s - PART / (1 - PART) * seconds, 0.0)


FACTOR, LEAST = 4.0, 256.0
PART = 0.15
MOST_OWED_S = 2.0
