"""One answer on its way from the engine process to its reader."""

from collections import deque

import trio

from mycelia.node.engine.engine import EngineAccepted, EngineDone, EngineFailed, EngineItem, EngineTokens, append_tokens

MAX_WAITING_LOGPROBS = 1_024
"""Tokens that wait with their alternatives: 2 kB each. Tokens alone take so little that ``max_tokens`` bounds them."""
_TOO_SLOW = EngineFailed("engine_lost", "the answer was read more slowly than it was written", True)


class AnswerStream:
    """Holds at most one accepted, the tokens in as few items as fit frames, and one last item, however slow its reader:
    an answer of which too many tokens with alternatives wait is ended.

    ``put`` never waits. Iterating ends after the last item.
    """

    def __init__(self) -> None:
        self._accepted: EngineAccepted | None = None
        self._tokens: deque[EngineTokens] = deque()
        self._last: EngineDone | EngineFailed | None = None
        self._wakeup = trio.Event()
        """Set while there is something to read, or nothing more will come."""
        self.ended = False
        """The last item arrived, whether or not it was read."""

    def put(self, item: EngineItem) -> bool:
        """False: nothing more of this answer is wanted, its reader is too slow. It ends behind what waits."""
        match item:
            case EngineAccepted():
                self._accepted = item
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
        await self._wakeup.wait()
        if self._last is not None and not (self._accepted or self._tokens):
            await trio.lowlevel.checkpoint()  # (whoever passes the text on does so before the accounts are made up)
        item = self._pop()
        if item is None:
            raise StopAsyncIteration
        if not (self._accepted or self._tokens or self.ended):
            self._wakeup = trio.Event()
        return item

    def _pop(self) -> EngineItem | None:
        item: EngineItem | None
        if self._accepted is not None:
            item, self._accepted = self._accepted, None
        elif self._tokens:
            item = self._tokens.popleft()
        else:
            item, self._last = self._last, None
        return item
