"""Connected peers, and the tables of their load that routing reads (``routing/load_table.py``)."""

from collections.abc import Callable, ItemsView
from dataclasses import dataclass, field

from mycelia.proto.config import RoutingConfig
from mycelia.proto.routing.load_table import LoadTable
from mycelia.proto.routing.observed import Observed
from mycelia.proto.wire.messages import Served


@dataclass
class Member:
    peer: bytes
    address: str
    connected_at: float
    subnet: str = ""
    """The subnet of the address; the peer's own if the address has none."""
    is_node: bool = False
    wire_version: int = 0
    """The version in its hello; 0: none yet."""
    is_confirmed: bool = False
    """Whether Connected reported it, and not only a Hello that came earlier."""
    agent: str = ""
    served: dict[bytes, Served] = field(default_factory=dict)
    told_at: dict[bytes, float] = field(default_factory=dict)
    """Namespace -> when its load there was last reported."""
    holds_until: dict[bytes, float] = field(default_factory=dict)
    """Namespace -> until when silence means that its load is unchanged."""
    round_trip_s: float | None = None
    hello_sent_at: float = 0.0
    num_repeats: int = 0
    makes_way: bool = False
    """Whether it is being disconnected for another peer and no longer counts."""


class LoadTables:
    """The load of each node and what was observed of it, for the namespaces that this node routes in."""

    def __init__(
        self,
        me: bytes,
        config: RoutingConfig,
        counted_as: Callable[[bytes], bytes],
        connected_at: Callable[[bytes], float],
    ) -> None:
        """counted_as, connected_at: see ``LoadTable``."""
        self._me = me
        self._config = config
        self._counted_as = counted_as
        self._connected_at = connected_at
        self._tables: dict[bytes, LoadTable] = {}
        self.observed = Observed(config, self._observe)

    def get(self, namespace: bytes) -> LoadTable | None:
        """The table; None: not needed yet."""
        return self._tables.get(namespace)

    def items(self) -> ItemsView[bytes, LoadTable]:
        return self._tables.items()

    def begin(self, namespace: bytes) -> LoadTable:
        """An empty table, kept from now on. Mutates, like all methods below."""
        table = LoadTable(self._me, self._config, self.observed, self._counted_as, self._connected_at, namespace)
        self._tables[namespace] = table
        return table

    def put(self, member: Member, namespace: bytes) -> None:
        table = self._tables.get(namespace)
        if table is not None:
            told_at, until = member.told_at[namespace], member.holds_until.get(namespace, 0.0)
            table.put(member.peer, member.served[namespace], told_at, until, member.round_trip_s)

    def put_own(self, served: Served, told_at: float) -> None:
        table = self._tables.get(served.namespace)
        if table is not None:
            table.put(self._me, served, told_at, 0.0, 0.0)

    def remove(self, peer: bytes, namespace: bytes) -> None:
        table = self._tables.get(namespace)
        if table is not None:
            table.remove(peer)

    def _observe(self, peer: bytes) -> None:
        for table in self._tables.values():
            table.observe(peer)
