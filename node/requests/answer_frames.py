"""The frames of one answer that wait for its client, who may read more slowly than an engine writes.

They are counted in bytes, about as many as they take of memory: tokens with twenty alternatives each take 2 kB. One
answer may have ``MAX_ANSWER_BYTES`` waiting, and all answers of a client its share of ``MAX_WAITING_BYTES``.
"""

from collections import deque

import trio

from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.wire.messages import EntryFrame, Text

MAX_ANSWER_BYTES = 2 << 20
"""A thousand tokens with twenty alternatives, or four thousand frames of text: some minutes of most engines."""
MAX_WAITING_BYTES = 64 << 20
"""For all clients."""
_FRAME_BYTES, _TOKEN_BYTES, _ALTERNATIVE_BYTES = 512, 200, 100


class AnswerFrames:
    """``put`` never waits. Iterating ends behind the last frame that was put before ``close``. Call ``leave`` once
    nobody reads any more."""

    def __init__(self, shares: ByteShares, client: str) -> None:
        """shares: of the bytes that wait, by client."""
        self._shares = shares
        self._client = client
        self._frames: deque[EntryFrame] = deque()
        self._num_bytes = 0
        self._is_closed = False
        self._wakeup = trio.Event()
        """Set while there is something to read, or nothing more will come."""

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: EntryFrame) -> bool:
        """Whether there was room for it. It waits in any case; the answer is to end soon then."""
        size = _size(frame)
        has_room = self._num_bytes + size <= MAX_ANSWER_BYTES and self._shares.take(self._client, size)
        if not has_room:
            self._shares.force(self._client, size)
        self._num_bytes += size
        self._frames.append(frame)
        self._wakeup.set()
        return has_room

    def close(self) -> None:
        """Nothing more will be put."""
        self._is_closed = True
        self._wakeup.set()

    def leave(self) -> None:
        """Forget what waits."""
        while self._frames:
            self._pop()

    def __aiter__(self) -> "AnswerFrames":
        return self

    async def __anext__(self) -> EntryFrame:
        await self._wakeup.wait()
        if not self._frames:
            raise StopAsyncIteration
        return self._pop()

    def _pop(self) -> EntryFrame:
        frame = self._frames.popleft()
        size = _size(frame)
        self._num_bytes -= size
        self._shares.free(self._client, size)
        if not (self._frames or self._is_closed):
            self._wakeup = trio.Event()
        return frame


def _size(frame: EntryFrame) -> int:
    if not isinstance(frame, Text):
        return _FRAME_BYTES
    alternatives = sum(_TOKEN_BYTES + _ALTERNATIVE_BYTES * len(entry.top) for entry in frame.logprobs)
    return _FRAME_BYTES + len(frame.text) + len(frame.tokens) + alternatives
