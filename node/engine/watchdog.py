"""Decides when an engine process that still runs is of no use any more. Pure: the caller asks and kills.

The parent asks every ``PING_INTERVAL_S``; the child's reader thread, which does nothing else that takes time, answers
with what the others are at. So a stopped or deadlocked process is known by its silence, and a hung step loop or text by
its own clock. A decode step may take long on a slow machine with a large model, so it has a bound of its own.
"""

from dataclasses import dataclass

PING_INTERVAL_S = 2.0
SILENCE_S = 10.0
"""Without an answer, or without progress outside a decode call."""
DECODE_S = 600.0
"""In one decode call: 64 tokens, the smallest chunk, at a tenth of a token per second."""
READING_S = 120.0
"""Over one text. What is read is bounded so that it takes seconds at most: this is for what should not be."""


@dataclass(frozen=True)
class Pulse:
    """What the child's threads are at."""

    is_decoding: bool
    busy_s: float
    """Since the thread that owns llama.cpp last made progress; 0 while it waits for work."""
    reading_s: float = 0.0
    """Over the text that has been read for the longest time."""


class Watchdog:
    """Of one child. Times in seconds of any steady clock."""

    def __init__(self) -> None:
        self._asked_at: float | None = None
        """When the oldest question without an answer was asked."""
        self._pulse = Pulse(is_decoding=False, busy_s=0.0)

    def asked(self, now: float) -> None:
        """A question went out."""
        if self._asked_at is None:
            self._asked_at = now

    def answered(self, pulse: Pulse) -> None:
        """An answer came."""
        self._asked_at = None
        self._pulse = pulse

    @property
    def hangs_on_a_text(self) -> bool:
        """Whether that is the complaint: the text should not be read again."""
        return self._pulse.reading_s >= READING_S

    def complaint(self, now: float) -> str | None:
        """Why the child should be killed, or None. Does not mutate."""
        if self._asked_at is not None and now - self._asked_at >= SILENCE_S:
            return f"the engine process has not answered for {SILENCE_S:.0f} s"
        if self.hangs_on_a_text:
            return f"the engine read one text for {self._pulse.reading_s:.0f} s"
        limit = DECODE_S if self._pulse.is_decoding else SILENCE_S
        if self._pulse.busy_s >= limit:
            where = "in one decode call" if self._pulse.is_decoding else "outside a decode call"
            return f"the engine hung {where} for {self._pulse.busy_s:.0f} s"
        return None
