"""The buffer between the engine process and the reader of one answer."""

from collections import deque

import trio

from mycelia.node.engine.engine import (
    EngineAccepted,
    EngineDone,
    EngineFailed,
    EngineItem,
    EnginePromptLogprobs,
    EngineTokens,
    append_tokens,
)

MAX_WAITING_LOGPROBS = 1_024
"""Maximum number of waiting tokens with logprobs, 2 kB each. Other tokens are small; ``max_tokens`` bounds them."""
MAX_WAITING_RECORDS = 65_536
"""Maximum number of waiting logprobs of a prompt, alternatives included: 8 MB."""
_TOO_SLOW = EngineFailed("engine_lost", "the answer was read more slowly than it was written", True)


class AnswerStream:
    """An iterator over the items of one answer. However slow its reader, it holds at most one EngineAccepted, the
    tokens in as few items as fit frames, and the last item. An answer with too many waiting logprobs is ended. ``put``
    never waits. The iteration ends after the last item."""

    def __init__(self) -> None:
        self._accepted: EngineAccepted | None = None
        self._reports: deque[EnginePromptLogprobs] = deque()
        self._num_records = 0
        self._tokens: deque[EngineTokens] = deque()
        self._last: EngineDone | EngineFailed | None = None
        self._wakeup = trio.Event()
        """Set while there is an item to read, or no item will come any more."""
        self.ended = False
        """Whether the last item arrived, read or not."""

    def put(self, item: EngineItem) -> bool:
        """Append an item. False: the reader is too slow, so the answer ends after the waiting items. Mutates."""
        match item:
            case EngineAccepted():
                self._accepted = item
            case EnginePromptLogprobs() if not self.ended:
                self._reports.append(item)
                self._num_records += _num_records(item)
                if self._num_records > MAX_WAITING_RECORDS:
                    self._last, self.ended = _TOO_SLOW, True
            case EngineTokens() if not self.ended:
                append_tokens(self._tokens, item)
                if item.logprobs and sum(len(waiting.logprobs) for waiting in self._tokens) > MAX_WAITING_LOGPROBS:
                    self._last, self.ended = _TOO_SLOW, True
            case EngineDone() | EngineFailed() if not self.ended:
                self._last, self.ended = item, True
        self._wakeup.set()
        return self._last is not _TOO_SLOW

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> EngineItem:
        if not (self._accepted or self._reports or self._tokens):
            await self._wakeup.wait()
            if self._last is not None and not (self._accepted or self._reports or self._tokens):
                await trio.lowlevel.checkpoint()  # (other tasks send the text before the last item is handled)
        item = self._pop()
        if item is None:
            raise StopAsyncIteration
        if not (self._accepted or self._reports or self._tokens or self.ended):
            self._wakeup = trio.Event()
        return item

    def _pop(self) -> EngineItem | None:
        item: EngineItem | None
        if self._accepted is not None:
            item, self._accepted = self._accepted, None
        elif self._reports:
            item = report = self._reports.popleft()
            self._num_records -= _num_records(report)
        elif self._tokens:
            item = self._tokens.popleft()
        else:
            item, self._last = self._last, None
        return item


def _num_records(item: EnginePromptLogprobs) -> int:
    return sum(1 + len(entry.top) for entry in item.logprobs)
