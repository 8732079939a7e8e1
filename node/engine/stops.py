"""Holds an answer's text back until it cannot be part of a stop string, and cuts its end at a whole character.

Theory. A stop string, like a character, may begin in one token and end in another. For each stop string the
Knuth-Morris-Pratt automaton gives after every byte the length of the longest beginning of the stop string with which
the text ends. The longest of these must be held back. When a stop string is complete, the answer ends before it. The
bytes are read one by one, so the result does not depend on the borders of tokens: the stop string that is complete
first wins, and at the same byte the longer one.

A byte is *decided* when it is before everything held back and before a character that later bytes may complete. A token
is sent when all its bytes are decided. So the sent tokens spell exactly the sent text, and another node can go on from
the tokens alone. Only at the end of an answer are tokens sent whose text is cut.

Invariant: ``_sent <= _num_decided() <= len(text)``; text before ``_sent`` is never cut.
"""

from collections import deque
from collections.abc import Sequence

from mycelia.proto.answers.spelling import character_length

_LONGEST_CHARACTER = 4


class StopScanner:
    """Searches a text for one stop string, byte by byte."""

    def __init__(self, stop: bytes) -> None:
        """stop: not empty."""
        self.stop = stop
        self.matched = 0
        """Length of the longest beginning of the stop string with which the text ends."""
        # fallback[i]: the longest proper prefix of stop that ends stop[:i + 1].
        self._fallback = [0] * len(stop)
        length = 0
        for i in range(1, len(stop)):
            while length and stop[i] != stop[length]:
                length = self._fallback[length - 1]
            length += stop[i] == stop[length]
            self._fallback[i] = length

    def feed(self, byte: int) -> bool:
        """Whether this byte completes the stop string; do not use the scanner after that. Mutates."""
        stop, matched = self.stop, self.matched
        while matched and byte != stop[matched]:
            matched = self._fallback[matched - 1]
        if byte == stop[matched]:
            matched += 1
        self.matched = matched
        return matched == len(stop)


class TextGate:
    """Releases the tokens of one answer when their text is decided."""

    def __init__(self, stops: Sequence[bytes] = ()) -> None:
        self._scanners = [StopScanner(stop) for stop in dict.fromkeys(stops) if stop]
        self._tail = b""
        """The text from ``_tail_start`` on: the undecided text, and the bytes before it that a character may need."""
        self._tail_start = 0
        self._length = 0
        self._sent = 0
        self._ends: deque[int] = deque()
        """The end position in the text of each token that is not sent yet."""
        self._cut: int | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete, so that the answer is over."""
        return self._cut is not None

    def skip(self, text: bytes) -> None:
        """Begin after ``text``, which another node sent. Call before the first ``feed``. Mutates."""
        self._length = self._sent = self._tail_start = len(text)
        if any(scanner.stop in text for scanner in self._scanners):
            self._cut = self._length
            return
        longest = max((len(scanner.stop) for scanner in self._scanners), default=1)
        for byte in text[-longest:]:  # (a longer part cannot be the beginning of an incomplete stop string)
            for scanner in self._scanners:
                scanner.feed(byte)

    def feed(self, piece: bytes) -> None:
        """Append the bytes of the next token, maybe none. After a stop string only the token is counted. Mutates."""
        if not self.is_stopped:
            for i, byte in enumerate(piece, 1):
                complete = [len(scanner.stop) for scanner in self._scanners if scanner.feed(byte)]
                if complete:
                    self._cut = self._length + i - max(complete)
                    break
            self._tail += piece
            self._length += len(piece)
        self._ends.append(self._length)

    def take(self) -> list[bytes]:
        """The texts of the tokens that may be sent now, in order. Mutates."""
        decided = self._num_decided()
        texts = []
        while self._ends and self._ends[0] <= decided:
            texts.append(self._text_until(self._ends.popleft()))
        keep = max(self._tail_start, self._sent - _LONGEST_CHARACTER)
        self._tail, self._tail_start = self._tail[keep - self._tail_start :], keep
        return texts

    def end(self) -> list[bytes]:
        """The texts of all tokens left, cut before the stop string or before an incomplete character. Mutates."""
        limit = self._cut if self._cut is not None else self._length
        limit = max(self._sent, limit - self._unfinished(limit))
        texts = [self._text_until(min(end, limit)) for end in self._ends]
        self._ends.clear()
        return texts

    def _text_until(self, end: int) -> bytes:
        start, self._sent = self._sent, max(self._sent, end)
        return self._tail[start - self._tail_start : self._sent - self._tail_start]

    def _num_decided(self) -> int:
        """Length of the text that no later byte can change."""
        if self._cut is not None:
            return self._sent
        decided = self._length - max((scanner.matched for scanner in self._scanners), default=0)
        return max(self._sent, decided - self._unfinished(decided))

    def _unfinished(self, end: int) -> int:
        """Number of bytes before ``end`` that begin an incomplete character; 0 to 3."""
        before = self._tail[: max(0, end - self._tail_start)][-_LONGEST_CHARACTER:]
        for length, byte in enumerate(reversed(before), 1):
            if byte & 0b1100_0000 != 0b1000_0000:  # Not a continuation: the last character begins here.
                return length if length < character_length(byte) else 0
        return 0
