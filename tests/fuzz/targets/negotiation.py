"""Hostile bytes at the start of a stream: they ask for a served protocol, or the stream ends.

libp2p's own code reads what the quick way does not accept, so a stranger's odd bytes meet that code.
"""

import random

import trio
from libp2p.custom_types import TProtocol
from libp2p.protocol_muxer.exceptions import MultiselectError
from libp2p.protocol_muxer.multiselect import Multiselect
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.utils import encode_delim

from mycelia.node.network.libp2p import fixes as libp2p_fixes
from mycelia.node.network.libp2p import negotiation
from mycelia.node.network.libp2p.closing import BROKEN
from tests.fuzz.mutate import splice, spoil_bytes

_SERVED = ("/mycelia/ask/1", "/ipfs/id/1.0.0", "/meshsub/1.1.0")
_CORPUS = [
    *(negotiation.proposal(name) for name in _SERVED),
    negotiation.proposal("/mycelia/nothing"),
    negotiation.MULTISTREAM + encode_delim(b"ls"),
    negotiation.MULTISTREAM + encode_delim(b"/x" * 100),
    negotiation.MULTISTREAM + encode_delim(b"ls") * 20 + encode_delim(_SERVED[0].encode()),
    negotiation.MULTISTREAM,
]


class _Stream:
    """A stream with the given bytes, and then the end."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.num_written = 0

    async def read(self, num_bytes: int | None = None) -> bytes:
        data, self._incoming = self._incoming[:num_bytes], self._incoming[num_bytes or len(self._incoming) :]
        return data

    async def write(self, data: bytes) -> None:
        self.num_written += len(data)


class Negotiations:
    """The first bytes of a stream."""

    name = "negotiation"

    def __init__(self) -> None:
        libp2p_fixes.apply_module_fixes(debug=False)
        self._multiselect = Multiselect(dict.fromkeys(map(TProtocol, _SERVED), _served))

    def make(self, rng: random.Random) -> bytes:
        data = rng.choice(_CORPUS)
        if rng.random() < 0.7:
            data = spoil_bytes(data, rng)
        return splice(data, rng.choice(_CORPUS), rng) if rng.random() < 0.2 else data

    def check(self, item: bytes) -> bool:
        asked = negotiation.asked_for(item)
        if asked is not None:
            protocol, end = asked
            assert 0 < end <= len(item) and item.startswith(negotiation.MULTISTREAM)
            if protocol in _SERVED:
                return True
        stream = _Stream(item)
        try:
            chosen, _ = trio.run(self._multiselect.negotiate, MultiselectCommunicator(stream), 10)  # type: ignore[arg-type]
        except (MultiselectError, *BROKEN):
            return False
        assert chosen in _SERVED and stream.num_written <= 64 * len(item) + 64
        return True


async def _served(stream: object) -> None: ...
