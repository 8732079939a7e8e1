"""Exchanges of one question and one answer, such as ``mycelia/inspect`` and ``mycelia/models``."""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import trio

from mycelia.node.network.network import NetworkError, Opener
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Message

ANSWER_DEADLINE_S = 3.0


def spread(peers: Iterable[bytes], counted_as: Callable[[bytes], str]) -> list[bytes]:
    """``peers`` in their order, but one of each subnet first, then a second one, and so on: one machine may have most
    keys."""
    before = Counter[str]()
    rounds: list[tuple[int, bytes]] = []
    for peer in peers:
        subnet = counted_as(peer)
        rounds.append((before[subnet], peer))
        before[subnet] += 1
    return [peer for _, peer in sorted(rounds, key=lambda one: one[0])]


def drawn(peers: Sequence[bytes], num: int, counted_as: Callable[[bytes], str]) -> list[bytes]:
    """``num`` of ``peers`` at random, of as many subnets as possible."""
    return spread(random.sample(peers, len(peers)), counted_as)[:num]


async def ask_all(
    network: Opener, protocol: str, question: Message, peers: Iterable[bytes], deadline_s: float = ANSWER_DEADLINE_S
) -> dict[bytes, Message]:
    """The answers that arrive in time, by peer."""
    answers: dict[bytes, Message] = {}

    async def ask(peer: bytes) -> None:
        # (an older node does not know the question, and a node may just have left)
        with trio.move_on_after(deadline_s), suppress(NetworkError, RemoteError):
            answers[peer] = await answer_of(network, protocol, question, peer)

    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(ask, peer)
    return answers


async def answer_of(network: Opener, protocol: str, question: Message, peer: bytes) -> Message:
    """Raises NetworkError and RemoteError."""
    stream = await network.open(peer, protocol, waits=False)
    is_over = False
    try:
        await stream.send(question)
        answer = await stream.receive()
        is_over = True
        return answer
    finally:
        with trio.CancelScope(shield=True):
            await (stream.aclose() if is_over else stream.reset())
