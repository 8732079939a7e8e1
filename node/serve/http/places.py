"""The places for HTTP connections: who gets one, and whose connection ends when there is none left.

A connection *waits* until a gate has let its request in, and again after the answer. Everything that needs no key is
done while waiting: half a head, an idle connection, a refusal that its client does not read. Waiting places are shared
among the subnets that the connections come from, and a new connection always gets one: its subnet gives up its
own longest waiting connection when it has taken its share, else the subnet with the most does when all places are
taken.

A connection whose request was let in is never ended here. Those are shared among clients (keys), since behind a proxy
all come from one address; without keys there is one client, this machine, and nothing to share.

With its place, a connection has a share of two more things: the bytes of bodies that are held until their requests are
done, and the turns at parsing what came (``turns.py``). Each is its subnet's, or its client's once it was let in.
"""

import socket
from collections import OrderedDict
from collections.abc import Callable

import trio
from starlette.types import Scope

from mycelia.node.serve.http.turns import Turns
from mycelia.proto.admission.byte_shares import ByteShares
from mycelia.proto.admission.subnets import Places, of_client, subnet_of

MAX_HELD_BODY_BYTES = 32 << 20
"""Of all bodies: ten of the longest, of which one client alone may hold five. A request holds two to four times as much
while its text is decoded."""
PLACE = "mycelia.place"
"""Where a request's scope has the place of its connection."""


class HttpPlaces:
    """One caller at a time: no method waits. Invariant: at most ``num_places`` connections hold a place."""

    def __init__(self, num_places: int) -> None:
        self.turns = Turns()
        self.bodies = ByteShares(MAX_HELD_BODY_BYTES)
        self._places = Places(num_places, per_key=num_places)
        self._waiting: dict[str, OrderedDict[HttpPlace, None]] = {}
        """Subnet -> its waiting connections, the longest waiting first."""

    def enter(self, subnet: str, end: Callable[[], None]) -> "HttpPlace | None":
        """A place for a new connection, of which ``end`` is called when it must go; call ``leave`` at its end. None:
        all connections are being answered. May end another connection."""
        if not self._places.has_room(subnet):
            fullest = max(self._waiting.values(), key=len, default=None)
            crowd = self._waiting.get(subnet, fullest)
            if not crowd:
                return None
            longest = next(iter(crowd))
            longest.leave()
            longest.end()
        place = HttpPlace(self, subnet, end)
        self.count(place, subnet, is_known=True)  # (there is room now)
        return place

    def count(self, place: "HttpPlace", name: str, is_known: bool = False) -> bool:
        """Whether ``place``, which is not counted, now counts for ``name``, a subnet or client. Mutates."""
        if not self._places.take(b"", name, is_known):
            return False
        place.counted_for = name
        if name == place.subnet:
            self._waiting.setdefault(name, OrderedDict())[place] = None
        return True

    def uncount(self, place: "HttpPlace") -> None:
        """``place`` counts for nobody. Mutates."""
        name, place.counted_for = place.counted_for, None
        if name is None:
            return
        self._places.free(b"", name)
        if name == place.subnet:
            del self._waiting[name][place]
            if not self._waiting[name]:
                del self._waiting[name]


class HttpPlace:
    """The place of one connection."""

    def __init__(self, places: HttpPlaces, subnet: str, end: Callable[[], None]) -> None:
        self._places = places
        self.subnet = subnet
        self.end = end
        self.counted_for: str | None = None
        """Whose share it takes; None: it was given up."""
        self._num_held = 0
        self._held_for = ""

    @property
    def is_admitted(self) -> bool:
        """Whether a gate has let in the request that is being answered."""
        return self.counted_for not in (None, self.subnet)

    async def turn(self) -> None:
        """See ``Turns.take``."""
        await self._places.turns.take(self._share)

    def hold(self, num_bytes: int) -> bool:
        """So many more bytes of its request's body are to be held until it rests or leaves. False: its share of them
        is taken. Mutates."""
        self._held_for = self._held_for or self._share
        if not self._places.bodies.take(self._held_for, num_bytes):
            return False
        self._num_held += num_bytes
        return True

    def admit(self, client: bytes) -> bool:
        """Its request was let in, and is ``client``'s. False: that client has its share already. Mutates."""
        if self.counted_for is None:
            return False
        self._places.uncount(self)
        if self._places.count(self, of_client(client), is_known=not client):
            return True
        self._places.count(self, self.subnet, is_known=True)
        return False

    def rest(self) -> None:
        """Its request is answered, and it waits again. Mutates."""
        self._let_go()
        if self.is_admitted:
            self._places.uncount(self)
            self._places.count(self, self.subnet, is_known=True)

    def leave(self) -> None:
        """The connection is over. Mutates."""
        self._let_go()
        self._places.uncount(self)

    @property
    def _share(self) -> str:
        return self.subnet if self.counted_for is None else self.counted_for

    def _let_go(self) -> None:
        if self._num_held:
            self._places.bodies.free(self._held_for, self._num_held)
        self._num_held, self._held_for = 0, ""


def admit(scope: Scope, client: bytes) -> bool:
    """Whether the request may be answered now; see ``HttpPlace.admit``. Call once a gate has let it in."""
    place: HttpPlace | None = scope.get(PLACE)
    return place is None or place.admit(client)


def hold(scope: Scope, num_bytes: int) -> bool:
    """Whether so many more bytes of the request's body may be held; see ``HttpPlace.hold``."""
    place: HttpPlace | None = scope.get(PLACE)
    return place is None or place.hold(num_bytes)


def subnet_of_socket(connected: trio.socket.SocketType) -> str:
    """Where the other end is. Raises OSError when it is gone."""
    kind = "ip6" if connected.family == socket.AF_INET6 else "ip4"
    return subnet_of(f"/{kind}/{connected.getpeername()[0]}")
