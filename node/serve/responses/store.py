"""The responses that later requests go on from (``previous_response_id``), for a while and in this process only.

A response is known to the client (key) that asked for it, and to no other. Bounds: the bytes of all, of which one
client may have half while others want room too, and their number.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from mycelia.node.serve.responses.types import Item, ResponseBody

MAX_STORED_BYTES = 32 << 20
MAX_STORED = 1_024
MAX_ITEMS_BYTES = MAX_STORED_BYTES // 8
"""A longer conversation is not kept."""


@dataclass(frozen=True)
class Stored:
    """Both texts are JSON: the values that a client chose would take twelve times as much memory."""

    client: bytes
    body: bytes
    items: bytes
    """The conversation up to the end of the response."""

    @property
    def num_bytes(self) -> int:
        return len(self.body) + len(self.items)


class ResponseStore:
    """Invariant: ``num_bytes`` and the number of responses are within their bounds."""

    def __init__(self) -> None:
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        """The longest unused first."""
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._stored)

    def add(self, client: bytes, body: ResponseBody, items: Sequence[Item]) -> None:
        """Mutates."""
        stored = Stored(client, msgspec.json.encode(body), msgspec.json.encode(items))
        if stored.num_bytes > MAX_ITEMS_BYTES:
            return
        self._remove(body.id)
        self._stored[body.id] = stored
        self.num_bytes += stored.num_bytes
        while self.num_bytes > MAX_STORED_BYTES or len(self._stored) > MAX_STORED:
            self._remove(self._surplus())

    def find(self, client: bytes, name: str) -> bytes | None:
        """The body of a response; None: it is not known."""
        stored = self._stored.get(name)
        return stored.body if stored is not None and stored.client == client else None

    def items(self, client: bytes, name: str) -> list[Item] | None:
        """The conversation up to the end of a response; None: it is not known. Mutates: it counts as used."""
        if self.find(client, name) is None:
            return None
        self._stored.move_to_end(name)
        return msgspec.json.decode(self._stored[name].items, type=list[Item])

    def remove(self, client: bytes, name: str) -> bool:
        """False: it is not known. Mutates."""
        is_known = self.find(client, name) is not None
        if is_known:
            self._remove(name)
        return is_known

    def _surplus(self) -> str:
        """The longest unused one of the client that has most."""
        sizes: dict[bytes, int] = {}
        for stored in self._stored.values():
            sizes[stored.client] = sizes.get(stored.client, 0) + stored.num_bytes
        greediest = max(sizes, key=lambda client: sizes[client])
        return next(name for name, stored in self._stored.items() if stored.client == greediest)

    def _remove(self, name: str) -> None:
        stored = self._stored.pop(name, None)
        if stored is not None:
            self.num_bytes -= stored.num_bytes
