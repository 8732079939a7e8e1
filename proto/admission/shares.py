"""Which client may take a place in a bounded queue, and when to come back: one rule for the engine's queue and the
entry's.

    joins if   own < places - taken                       (a share of what is free)
    and if     own * pace / own's part of the starts < max_wait_s     (only where something of its own waits already)

*Shares.* A client may take places while it holds fewer than are free: the dynamic threshold of Choudhury and Hahne
(IEEE/ACM Transactions on Networking 6(2), 1998) with alpha = 1. One client alone gets half of the places, each of k
greedy clients 1/(k+1) of them, and as many stay free for the next client, without a configured limit for any client.

*Pace.* The recent seconds between two places that became free while a client waited. The time since the last one counts
as well, as a censored observation: a stalled engine is noticed before its next start.

*Retry times.* A refused client gets the time when the rule should let it in: after enough further starts at the present
pace. Both sides keep to that time. A client that comes back then finds a place even if others took the free ones
meanwhile (one place over its share each time, while there is any). A client that comes earlier is refused for the rest
of the time, unless no client waits any more or the time proves more than twice too long. So the time is true for every
client, trying early gains nothing, and clients that wait lose nothing to those that do not. An unused retry time lapses
after as long again. If the estimates are too short, queues are a little over the thresholds and the next estimates
longer, as they are counted from there.

The callers count what waits. Identities are free: a client with a hundred has a hundred shares.
"""

import math
from collections import OrderedDict

PACE_WINDOW = 16.0
"""Starts after which an observation counts half: more than one round of 8 slots, few enough to follow a change."""
MIN_RETRY_S, MAX_RETRY_S = 0.001, 3_600.0
MAX_RETRY_TIMES = 1_024
"""Number of retry times kept; above it the oldest lapses."""


def has_room(num_own: int, num_taken: float, num_places: int) -> bool:
    """Whether a client that holds ``num_own`` of the ``num_taken`` places may take one more."""
    return num_own < num_places - num_taken


class Pace:
    """Mean seconds between places that become free while a client waits, over about the last PACE_WINDOW of them."""

    def __init__(self) -> None:
        self._num_freed = 0.0
        self._seconds = 0.0
        self._since: float | None = None

    def waits(self, now: float) -> None:
        """A client waits and nothing is free: time counts from now, unless it does already. Mutates."""
        if self._since is None:
            self._since = now

    def freed(self, now: float, somebody_waits: bool) -> None:
        """A place became free and was taken; does not count if no client had to wait for it. Mutates."""
        if self._since is None:
            return
        keep = 0.5 ** (1 / PACE_WINDOW)
        self._num_freed = self._num_freed * keep + 1
        self._seconds = self._seconds * keep + max(now - self._since, 0.0)
        self._since = now if somebody_waits else None

    def nobody_waits(self) -> None:
        self._since = None

    def seconds(self, now: float, guess_s: float) -> float:
        """The pace. guess_s: its value before anything was observed. Does not mutate."""
        elapsed_s = 0.0 if self._since is None else max(now - self._since, 0.0)
        if not self._num_freed:
            return max(guess_s, elapsed_s)
        return (self._seconds + elapsed_s) / self._num_freed


class Shares:
    """Admits clients to ``num_places`` and gives refused ones a time to come back."""

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
        """0.0: ``client`` may take a place now. Otherwise the seconds after which it may. Mutates.

        own_part: the share of the next free places that is the client's own, above 0 and at most 1. guess_s: seconds
        between free places, before any was observed.
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

    def passed(self, client: bytes) -> None:
        """``client`` took a place that was free at once: its retry time is used. Mutates."""
        self._retry_times.pop(client, None)

    def _fits(self, num_own: int, num_taken: float, own_start_s: float) -> bool:
        """own_start_s: seconds between places that this client frees."""
        is_soon = num_own == 0 or num_own * own_start_s < self._max_wait_s
        return is_soon and has_room(num_own, num_taken, self.num_places)

    def _num_starts(self, num_own: int, num_taken: int, own_part: float, start_s: float) -> float:
        """Number of starts after which the client fits, if the others go on as they do.

        Other greedy clients take their part of every place that the client leaves.
        """
        for num_left in range(1, num_own + 1):
            if self._fits(num_own - num_left, num_taken - num_left * own_part, start_s / own_part):
                return num_left / own_part
        return max(num_own / own_part, num_taken - self.num_places + 1)
