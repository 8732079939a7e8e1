"""Frames for the engine's child: in order and whole, without waiting for a full or closed pipe."""

import os
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from mycelia.node.engine.outbox import Outbox

_PIPE_BYTES = 65_536

Pipe = tuple[trio.lowlevel.FdStream, trio.lowlevel.FdStream]


@pytest.fixture
async def pipe() -> AsyncIterator[Pipe]:
    """(reading end, writing end)."""
    reader, writer = map(trio.lowlevel.FdStream, os.pipe())
    async with reader, writer:
        yield reader, writer


async def test_a_frame_is_written_at_once(pipe: Pipe) -> None:
    reader, writer = pipe
    Outbox(writer).put(b"a frame")  # (without ``run``)
    assert os.read(reader.fileno(), 100) == b"a frame"


async def test_what_a_full_pipe_has_no_room_for_follows_in_order(pipe: Pipe, nursery: trio.Nursery) -> None:
    reader, writer = pipe
    frames = [bytes([number]) * (3 * _PIPE_BYTES if number % 2 else 10) for number in range(6)]
    outbox, seen = Outbox(writer), bytearray()
    nursery.start_soon(outbox.run)
    for frame in frames[:4]:
        outbox.put(frame)
    while len(seen) < 3 * _PIPE_BYTES:
        seen += await reader.receive_some()
    for frame in frames[4:]:
        outbox.put(frame)
    while len(seen) < sum(map(len, frames)):
        seen += await reader.receive_some()
    assert bytes(seen) == b"".join(frames)
    await trio.testing.wait_all_tasks_blocked()
    outbox.put(b"at once again")
    assert os.read(reader.fileno(), 100) == b"at once again"


@pytest.mark.parametrize("num_bytes", [10, 3 * _PIPE_BYTES])
async def test_frames_for_a_child_that_died_are_dropped(pipe: Pipe, nursery: trio.Nursery, num_bytes: int) -> None:
    reader, writer = pipe
    outbox = Outbox(writer)
    nursery.start_soon(outbox.run)
    outbox.put(bytes(num_bytes))
    await reader.aclose()
    await trio.testing.wait_all_tasks_blocked()
    outbox.put(bytes(num_bytes))
    await trio.testing.wait_all_tasks_blocked()  # (an error would end the nursery)
