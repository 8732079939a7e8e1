"""The frames of one answer that wait for its client, which may read more slowly than the engine writes.

Waiting frames are counted in bytes, about the memory that they take: a token with twenty alternatives takes 2 kB. One
answer may have ``MAX_ANSWER_BYTES`` waiting, and all answers of a client its share of ``MAX_WAITING_BYTES``.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.wire.messages import EntryFrame, PromptLogprobs, Text

MAX_ANSWER_BYTES = 2 << 20
"""A thousand tokens with twenty alternatives, or four thousand frames of text: minutes of output of most engines."""
MAX_WAITING_BYTES = 64 << 20
"""For all clients together."""
FRAME_BYTES, _TOKEN_BYTES, _ALTERNATIVE_BYTES = 512, 200, 100


class AnswerFrames:
    """``put`` never waits. Iteration ends after the last frame put before ``close``. The reader calls ``leave`` at its
    end."""

    def __init__(self, shares: ByteShares, client: str) -> None:
        """shares: each client's share of the waiting bytes."""
        self._shares = shares
        self._client = client
        self._frames: deque[tuple[EntryFrame, int]] = deque()
        """With their bytes."""
        self._num_bytes = 0
        self._is_closed = False
        self._wakeup = trio.Event()
        """Set while a frame can be read, or after ``close``."""

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: EntryFrame, num_bytes: int | None = None) -> bool:
        """Append a frame. False: there was no room, so the caller has to end the answer; the frame is kept anyway.
        num_bytes: the memory that it takes; None: as estimated."""
        size = _size(frame) if num_bytes is None else num_bytes
        has_room = self._num_bytes + size <= MAX_ANSWER_BYTES and self._shares.take(self._client, size)
        if not has_room:
            self._shares.force(self._client, size)
        self._num_bytes += size
        self._frames.append((frame, size))
        self._wakeup.set()
        return has_room

    def close(self) -> None:
        self._is_closed = True
        self._wakeup.set()

    def leave(self) -> None:
        while self._frames:
            self._pop()

    def __aiter__(self) -> "AnswerFrames":
        return self

    async def __anext__(self) -> EntryFrame:
        if not self._frames:  # (a wait takes a round of the scheduler, even if there is something to read)
            await self._wakeup.wait()
        if not self._frames:
            raise StopAsyncIteration
        return self._pop()

    def _pop(self) -> EntryFrame:
        frame, size = self._frames.popleft()
        self._num_bytes -= size
        self._shares.free(self._client, size)
        if not (self._frames or self._is_closed):
            self._wakeup = trio.Event()
        return frame


@asynccontextmanager
async def one_frame(frame: EntryFrame) -> AsyncIterator[AsyncIterator[EntryFrame]]:
    """An answer that is a refusal."""
    send, receive = trio.open_memory_channel[EntryFrame](1)
    send.send_nowait(frame)
    send.close()
    with receive:
        yield receive


def _size(frame: EntryFrame) -> int:
    if isinstance(frame, PromptLogprobs):
        return FRAME_BYTES + _ALTERNATIVE_BYTES * sum(1 + len(entry.top) for entry in frame.logprobs)
    if not isinstance(frame, Text):
        return FRAME_BYTES
    if not frame.logprobs:
        return FRAME_BYTES + len(frame.text) + len(frame.tokens)
    alternatives = sum(_TOKEN_BYTES + _ALTERNATIVE_BYTES * len(entry.top) for entry in frame.logprobs)
    return FRAME_BYTES + len(frame.text) + len(frame.tokens) + alternatives
