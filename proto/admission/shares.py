"""Who may take a place in a bounded queue, and when to come back: one rule for the engine's queue and the entry's.

    joins if   own < places - taken                       (a share of what is free)
    and if     own * pace / own's part of the starts < max_wait_s     (only where something of its own waits already)

*Shares.* A client may take places while it holds fewer than are free: the dynamic threshold of Choudhury and Hahne
(IEEE/ACM Transactions on Networking 6(2), 1998) with alpha = 1. Alone it gets half of the places, one of k greedy
clients gets 1/(k+1) of them, and as much stays free for whoever comes next, without anybody's limit being configured.

*Pace.* The seconds between two places that became free while somebody waited, of late. The time that runs since the
last one counts as well, as a censored observation: an engine that stalls is noticed before its next start.

*Retry times.* Whoever is refused is told when the rule should let it in: after so many further starts at the present
pace. That word is kept from both sides. Who comes back then finds a place even if others took the free ones meanwhile
(one place over its share each time, while there is any), and who comes earlier is refused for the rest of the time,
unless nobody waits any more or the time turns out to be more than twice too long. So the time is true for whoever asks,
knocking in between gains nothing over waiting, and those who wait as told lose nothing to those who do not. A
retry time that is not used lapses after as long again.
Were the estimates too short, queues would be a little over the thresholds, and the next estimates longer: they are
counted from there.

Nothing here knows what waits; callers count. Clients cannot be trusted to be different: identities are free, and
whoever has a hundred has a hundred shares.
"""

import math
from collections import OrderedDict

PACE_WINDOW = 16.0
"""Starts after which an observation counts half: longer than one round of 8 slots, short enough to follow a change."""
MIN_RETRY_S, MAX_RETRY_S = 0.001, 3_600.0
MAX_RETRY_TIMES = 1_024
"""Then the oldest lapses."""


def has_room(num_own: int, num_taken: float, num_places: int) -> bool:
    """Whether a client that holds ``num_own`` of the ``num_taken`` places may take one more."""
    return num_own < num_places - num_taken


class Pace:
    """Mean seconds between places that become free, over about the last PACE_WINDOW of them while somebody waits."""

    def __init__(self) -> None:
        self._num_freed = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def waits(self, now: float) -> None:
        """Somebody waits and nothing is free: time counts from here, unless it does already. Mutates."""
        if self._since is None:
            self._since = now

    def freed(self, now: float, somebody_waits: bool) -> None:
        """A place became free and was taken; of no account if nobody had to wait for it. Mutates."""
        if self._since is None:
            return
        keep = 0.5 ** (1 / PACE_WINDOW)
        self._num_freed = self._num_freed * keep + 1
        self._seconds = self._seconds * keep + max(now - self._since, 0.0)
        self._since = now if somebody_waits else None

    def nobody_waits(self) -> None:
        """Time stops counting. Mutates."""
        self._since = None

    def seconds(self, now: float, guess_s: float) -> float:
        """guess_s: what to expect before anything was observed. Does not mutate."""
        elapsed_s = 0.0 if self._since is None else max(now - self._since, 0.0)
        if not self._num_freed:
            return max(guess_s, elapsed_s)
        return (self._seconds + elapsed_s) / self._num_freed


class Shares:
    """Admits clients to ``num_places`` and tells those it refuses when to come back."""

    def __init__(self, num_places: int, max_wait_s: float = math.inf) -> None:
        """max_wait_s: a client with something waiting is refused more that would probably wait longer."""
        self.num_places = num_places
        self.pace = Pace()
        self._max_wait_s = max_wait_s
        self._retry_times: OrderedDict[bytes, tuple[float, float]] = OrderedDict()
        """Client -> from when on and until when a place is kept for it."""

    def join(
        self, client: bytes, num_own: int, num_taken: int, own_part: float, now: float, guess_s: float = 1.0
    ) -> float:
        """0.0: ``client`` may take a place now. Else the seconds after which it may. Mutates.

        own_part: of the next places to become free, those that are the client's own, above 0 and at most 1.
        guess_s: seconds between such places, for as long as none was seen.
        """
        kept_from, kept_until = self._retry_times.get(client, (0.0, -math.inf))
        start_s = self.pace.seconds(now, guess_s)
        if num_taken == 0:
            is_welcome = True
        elif now > kept_until:
            is_welcome = self._fits(num_own, num_taken, start_s / own_part)
        else:
            is_welcome = now >= kept_from and num_taken < self.num_places
        if is_welcome:
            self._retry_times.pop(client, None)
            return 0.0
        wait_s = min(max(self._num_starts(num_own, num_taken, own_part, start_s) * start_s, MIN_RETRY_S), MAX_RETRY_S)
        if now < kept_from <= now + 2 * wait_s:
            return max(kept_from - now, MIN_RETRY_S)
        if now < kept_from and self._fits(num_own, num_taken, start_s / own_part):  # (it proved far too long)
            del self._retry_times[client]
            return 0.0
        self._retry_times[client] = (now + wait_s, now + 2 * wait_s)
        self._retry_times.move_to_end(client)
        if len(self._retry_times) > MAX_RETRY_TIMES:
            self._retry_times.popitem(last=False)
        return wait_s

    def _fits(self, num_own: int, num_taken: float, own_start_s: float) -> bool:
        """own_start_s: seconds between places that this client frees."""
        is_soon = num_own == 0 or num_own * own_start_s < self._max_wait_s
        return is_soon and has_room(num_own, num_taken, self.num_places)

    def _num_starts(self, num_own: int, num_taken: int, own_part: float, start_s: float) -> float:
        """After how many starts the client fits, if the others go on as they do.

        Who is greedy too takes the others' part of every place that the client leaves.
        """
        for num_left in range(1, num_own + 1):
            if self._fits(num_own - num_left, num_taken - num_left * own_part, start_s / own_part):
                return num_left / own_part
        return max(num_own / own_part, num_taken - self.num_places + 1)
