"""One answer on its way from the engine process to its reader."""

import trio

from node.engine.engine import EngineAccepted, EngineDone, EngineFailed, EngineItem, EngineTokens


class AnswerStream:
    """Holds at most one accepted, one joined tokens item and one last item, however slow its reader is.

    ``put`` never waits. Iterating ends after the last item.
    """

    def __init__(self) -> None:
        self._accepted: EngineAccepted | None = None
        self._tokens: list[int] = []
        self._text = bytearray()
        self._last: EngineDone | EngineFailed | None = None
        self._wakeup = trio.Event()
        self.ended = False
        """The last item arrived, whether or not it was read."""

    def put(self, item: EngineItem) -> None:
        match item:
            case EngineAccepted():
                self._accepted = item
            case EngineTokens():
                self._tokens += item.tokens
                self._text += item.text
            case _ if not self.ended:
                self._last, self.ended = item, True
        self._wakeup.set()

    def __aiter__(self) -> "AnswerStream":
        return self

    async def __anext__(self) -> EngineItem:
        await trio.lowlevel.checkpoint()
        while True:
            item = self._pop()
            if item is not None:
                return item
            if self.ended:
                raise StopAsyncIteration
            self._wakeup = trio.Event()
            await self._wakeup.wait()

    def _pop(self) -> EngineItem | None:
        item: EngineItem | None
        if self._accepted is not None:
            item, self._accepted = self._accepted, None
        elif self._tokens:
            item = EngineTokens(self._tokens, bytes(self._text))
            self._tokens, self._text = [], bytearray()
        else:
            item, self._last = self._last, None
        return item
