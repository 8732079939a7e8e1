"""The rows of a decode call."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mycelia.node.engine.child.job import REPORT_ROWS, Job


@dataclass(frozen=True)
class Row:
    """A run of one job's tokens to compute, from position ``start``. ``wants_token``: sample after the last."""

    job: Job
    start: int
    count: int
    wants_token: bool

    @property
    def tokens(self) -> list[int]:
        return self.job.tokens[self.start : self.start + self.count]

    @property
    def num_outputs(self) -> int:
        """Number of tokens at its end whose logits are needed."""
        reported = self.start + self.count - max(self.start, self.job.first_output) if self.job.to_report else 0
        return max(reported, int(self.wants_token))


def plan_rows(jobs: Sequence[Job], prefill_tokens: int, batch_tokens: int, reported_tokens: int) -> list[Row]:
    """One row per decoding job, then prefill chunks of ``prefill_tokens`` in total. jobs: in order of admission. The
    job admitted first gets half of the prefill tokens, so that none starves. The jobs with the least left get the rest,
    so that a short prompt does not wait for a long one. reported_tokens: see ``Limits``."""
    rows = [Row(job, job.num_computed, 1, True) for job in jobs if not job.remaining_prefill]
    prefilling = [job for job in jobs if job.remaining_prefill]
    budget = min(prefill_tokens, batch_tokens - len(rows))
    counts = dict.fromkeys(prefilling, 0)
    if prefilling:
        first = prefilling[0]
        counts[first] = min(first.next_stop, (budget + 1) // 2)
        budget -= counts[first]
    for job in sorted(prefilling, key=lambda job: job.remaining_prefill):
        extra = min(job.next_stop - counts[job], budget)
        counts[job] += extra
        budget -= extra
    room = batch_tokens - len(rows) - sum(counts.values())
    for job, count in counts.items():
        if job.to_report:
            num_silent = max(job.first_output - job.num_computed, 0)
            count = _without_small_rest(job, min(count, num_silent + reported_tokens), room)
            reported_tokens -= max(count - num_silent, 0)
            room -= max(count - counts[job], 0)
        if count:
            rows.append(Row(job, job.num_computed, count, count == job.remaining_prefill))
    return rows


def _without_small_rest(job: Job, count: int, room: int) -> int:
    """``count``, changed so that the job's last chunk has ``REPORT_ROWS`` rows if that is possible. room: rows that the
    batch still holds."""
    num_left = job.remaining_prefill - count
    if not 0 < num_left < REPORT_ROWS or not count:
        return count
    if count + num_left >= 2 * REPORT_ROWS:
        return count + num_left - REPORT_ROWS
    return count + num_left if num_left <= room and job.next_stop == job.remaining_prefill else count


def single_row(rows: Sequence[Row], last_key: int, grid: int) -> list[Row]:
    """The one of ``rows`` that follows the job ``last_key``, cut at multiples of ``grid`` in its prompt and to single
    generated tokens; see ``exact.py``."""
    if not rows:
        return []
    row = min(rows, key=lambda row: (row.job.key <= last_key, row.job.key))
    job, start = row.job, row.start
    count = min(job.next_stop, job.num_written - start)
    if start >= job.num_written:
        count = 1
    elif row.count < count:
        count = min(max((start + row.count) // grid * grid, (start // grid + 1) * grid) - start, count)
    if count > 1 and (start + count) % grid == 1:
        count -= 1  # A micro-batch of one token is computed in a call of its own.
    return [Row(job, start, count, count >= job.remaining_prefill)]


class GiveWay:
    """Chooses running jobs that skip a step, so that clients with little work are served nearly as fast as alone.

    A client (or subnet) *wants* the service of all its jobs, waiting or running, with answers of maximum length. It is
    *greedy* beside a client that wants ``FACTOR`` times less, and ``LEAST`` less. Beside such clients the greedy get
    ``PART`` of the time: steps without them earn time, and the extra time of steps with them spends it; the time of
    their first step must be earned in advance. If an extra row costs almost nothing, as on a GPU, no job skips a step.
    A client alone gets all the time. This is shortest remaining processing time first, by clients, with a reserved part
    for the long jobs.

    Without it a row beside one other had 0.46 of its pace alone, beside seven others 0.18 (135M model, one thread).
    """

    def __init__(self) -> None:
        self._greedy: frozenset[Job] = frozenset()
        self._earned_s = 0.0
        """At most 0: time cannot be saved up."""
        self._spent_s = 0.0
        """Extra seconds of a step with greedy jobs, moving average."""
        self._alone_s: dict[int, float] = {}
        """Number of decoding jobs -> seconds of a step with only their rows, moving average."""

    def sitting_out(self, jobs: Sequence[Job], wanted: Mapping[Job, float]) -> Collection[Job]:
        """The jobs that skip this step. jobs: all that could have a row now. wanted: job -> service that its client
        wants. Call ``computed`` after the step."""
        most = FACTOR * min((wanted[job] for job in jobs), default=0.0) + LEAST
        greedy = frozenset(job for job in jobs if wanted[job] > most)
        if greedy and not self._greedy:  # An answer of one second must not begin with a step of half a second.
            self._earned_s = min(self._earned_s, -self._spent_s)
        self._greedy = greedy
        return self._greedy if self._earned_s < 0 else ()

    def computed(self, rows: Sequence[Row], seconds: float) -> None:
        """Note that the last planned step took ``seconds``. Mutates."""
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
    """The same rule for texts to embed: beside clients that want much less they get ``PART`` of the time."""

    def __init__(self) -> None:
        self._owed_s = 0.0
        """Time of texts that steps of answers have not earned yet."""

    def may_step(self, wanted: float, others: Collection[float]) -> bool:
        """Whether a step of a text may run. wanted: tokens of the client's texts; others: the service that each other
        client with running jobs wants."""
        return self._owed_s <= 0 or wanted <= FACTOR * min(others, default=wanted) + LEAST

    def embedded(self, seconds: float) -> None:
        self._owed_s = min(self._owed_s + seconds, MOST_OWED_S)

    def computed(self, seconds: float) -> None:
        self._owed_s = max(self._owed_s - PART / (1 - PART) * seconds, 0.0)


FACTOR, LEAST = 4.0, 256.0
PART = 0.15
MOST_OWED_S = 2.0
