"""Hostile requests for the engine's step loop, on a model that is a list. Each request ends or is refused, whatever
runs beside it, and the invariants hold after every end."""

import random

from mycelia.node.engine import ipc
from mycelia.node.engine.child.loop import TextRead
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.test_loop import VOCAB, Rig

_CELLS = 200
_STOPS = ("a", "ab", "\x00", "é😀", "x" * 64)
_COUNTS = (0, 1, 2, 3, 63, 64, 65, 128, 199, 200, 201, 10**6)
_SUBNETS = ("", "198.51.100.0/24", "203.0.113.0/24")
_SWARMS = (b"", b"s" * 16, b"")
_TAGS = (b"", b"t" * 16, b"u" * 16)
_MAX_STEPS = 3_000

Request = tuple[list[int], int, tuple[str, ...], int, bool, int, int, int, int]
"""prompt, max_tokens, stop, resumed_tokens, whether it is due at once, client, subnet, tag, open_tokens"""
Item = list[tuple[Request | float | int, int]]
"""A request, or seconds for a text, or the index of a request to cancel; and the steps before the next entry."""


class Steps:
    """Generates of peers, after the codec and the parent's checks."""

    name = "steps"
    weight = 0.2

    def make(self, rng: random.Random) -> Item:
        item: Item = []
        for place in range(rng.choice((1, 2, 2, 8))):
            way = rng.random()
            what: Request | float | int
            if way < 0.8:
                what = _request(rng)
            elif way < 0.9:
                what = rng.choice((0.0, 0.5, 100.0))
            else:
                what = rng.randrange(place + 1)
            item.append((what, rng.choice((0, 0, 1, 3))))
        return item

    def check(self, item: Item) -> bool:
        rig, keys = Rig(_CELLS), []
        for place, (what, num_steps) in enumerate(item):
            if isinstance(what, tuple):
                keys.append(place)
                rig.loop.inbox.put(_submit(place, what))
            elif isinstance(what, float):
                rig.loop.inbox.put(TextRead(b"c" * 32, _SUBNETS[1], what))
            else:
                rig.loop.inbox.put(ipc.Cancel(what))
            for _ in range(num_steps):
                if rig.loop.has_work:
                    rig.loop.step()
        for _ in range(_MAX_STEPS):
            if not rig.loop.has_work:
                break
            rig.loop.step()
        ends = [message for message in rig.replies.messages if isinstance(message, ipc.Ended | ipc.Refused)]
        assert sorted(end.key for end in ends) == keys, "each ends once"
        rig.loop.jobs.check_invariants()
        return any(isinstance(end, ipc.Ended) for end in ends)


def _request(rng: random.Random) -> Request:
    length = rng.choice((0, 1, 5, 64, 65, 130, 199, 200)) if rng.random() < 0.3 else rng.randrange(1, 100)
    first = rng.choice((1, 2, rng.randrange(VOCAB)))
    prompt = [(first + place) % 40 for place in range(length)]
    if prompt and rng.random() < 0.1:
        prompt[rng.randrange(length)] = rng.choice((VOCAB - 1, VOCAB, 2**32 - 1))
    stops = tuple(rng.choices(_STOPS, k=rng.randrange(3)))
    resumed = min(rng.choice((0, 0, 1, 70)), length)
    whose = rng.randrange(3), rng.randrange(3), rng.randrange(3)
    max_tokens = rng.randrange(1, 4) if rng.random() < 0.9 else rng.choice(_COUNTS[1:])
    return prompt, max_tokens, stops, resumed, rng.random() < 0.1, *whose, rng.choice(_COUNTS)


def _submit(key: int, request: Request) -> ipc.Submit:
    prompt, max_tokens, stop, resumed, is_due, client, subnet, tag, open_tokens = request
    sampling = Sampling(max_tokens=max_tokens, stop=stop)
    clients = (b"", b"c" * 32, b"d" * 32)
    return ipc.Submit(
        key,
        pack_tokens(prompt),
        sampling,
        resumed,
        0.0 if is_due else None,
        clients[client],
        _SUBNETS[subnet],
        _TAGS[tag],
        _SUBNETS[subnet],
        _SWARMS[subnet],
        open_tokens,
    )
