"""Decides when a running engine process must be killed. Pure: the caller pings and kills.

The parent pings every ``PING_INTERVAL_S``. The child's reader thread, which never works for long, replies with the
state of the other threads. So silence reveals a stopped or deadlocked process, and the reported times reveal a hung
step loop or text. A decode step may take long on a slow machine with a large model, so it has its own bound.
"""

from dataclasses import dataclass

PING_INTERVAL_S = 2.0
SILENCE_S = 10.0
"""Maximum time without a reply, or without progress outside a decode call."""
DECODE_S = 600.0
"""Maximum time of one decode call: 64 tokens, the smallest chunk, at a tenth of a token per second."""
READING_S = 120.0
"""Maximum time for one text. Other bounds limit it to seconds; this one catches what they miss."""


@dataclass(frozen=True)
class Pulse:
    is_decoding: bool
    busy_s: float
    """Seconds since the last progress of the thread that owns llama.cpp; 0 while it waits for work."""
    reading_s: float = 0.0
    """Seconds since the start of the text that has been read for the longest time; 0: none."""


class Watchdog:
    """Watches one child. Times are in seconds of any steady clock."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        """Time of the oldest ping without a reply."""
        self._pulse = Pulse(is_decoding=False, busy_s=0.0)

    def asked(self, now: float) -> None:
        if self._asked_at is None:
            self._asked_at = now

    def answered(self, pulse: Pulse) -> None:
        self._asked_at = None
        self._pulse = pulse

    @property
    def hangs_on_a_text(self) -> bool:
        """Whether a text takes too long, so that it should not be read again."""
        return self._pulse.reading_s >= READING_S

    def complaint(self, now: float) -> str | None:
        """The reason to kill the child, or None. Does not mutate."""
        if self._asked_at is not None and now - self._asked_at >= SILENCE_S:
            return f"the engine process has not answered for {SILENCE_S:.0f} s"
        if self.hangs_on_a_text:
            return f"the engine read one text for {self._pulse.reading_s:.0f} s"
        limit = DECODE_S if self._pulse.is_decoding else SILENCE_S
        if self._pulse.busy_s >= limit:
            where = "in one decode call" if self._pulse.is_decoding else "outside a decode call"
            return f"the engine hung {where} for {self._pulse.busy_s:.0f} s"
        return None
