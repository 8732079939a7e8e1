"""The places for HTTP connections, and which connection ends when none is left.

A connection *waits* until a gate has admitted its request, and again after the answer. Everything that needs no key
happens while waiting: half a head, an idle connection, a refusal that the client does not read. Waiting places are
shared among the subnets of the connections, and a new connection always gets one: if its subnet has used its share, the
subnet's longest waiting connection ends; otherwise, if all places are taken, that of the subnet with the most.

A connection with an admitted request never ends here. These connections are shared among clients (keys), because behind
a proxy all have one address. Without keys there is one client, this machine, and nothing to share.

Each place also has a share of two other things: the bytes of bodies that are held until their requests are done, and
the turns for parsing (``turns.py``). The share is that of the subnet, or of the client after admission.
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
"""For all bodies: ten of the longest, of which one client alone may hold five. While its text is decoded, a request
holds two to four times as much."""
PLACE = "mycelia.place"
"""Key of a request's scope under which the place of its connection is."""


class HttpPlaces:
    """One caller at a time: no method waits. Invariant: at most ``num_places`` connections hold a place."""

    def __init__(self, num_places: int) -> None:
        self.turns = Turns()
        self.bodies = ByteShares(MAX_HELD_BODY_BYTES)
        self._places = Places(num_places, per_key=num_places)
        self._waiting: dict[str, OrderedDict[HttpPlace, None]] = {}
        """Subnet -> its waiting connections, the longest waiting first."""

    def enter(self, subnet: str, end: Callable[[], None]) -> "HttpPlace | None":
        """A place for a new connection. ``end`` is called when the connection must end; then call ``leave``. None: all
        places have admitted requests. May end another connection."""
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
        """Counts ``place``, so far uncounted, for ``name``, a subnet or client; False if there is no room. Mutates."""
        if not self._places.take(b"", name, is_known):
            return False
        place.counted_for = name
        if name == place.subnet:
            self._waiting.setdefault(name, OrderedDict())[place] = None
        return True

    def uncount(self, place: "HttpPlace") -> None:
        name, place.counted_for = place.counted_for, None
        if name is None:
            return
        self._places.free(b"", name)
        if name == place.subnet:
            del self._waiting[name][place]
            if not self._waiting[name]:
                del self._waiting[name]


class HttpPlace:
    def __init__(self, places: HttpPlaces, subnet: str, end: Callable[[], None]) -> None:
        self._places = places
        self.subnet = subnet
        self.end = end
        self.counted_for: str | None = None
        """The subnet or client whose share it takes; None: the place was given up."""
        self._num_held = 0
        self._held_for = ""

    @property
    def has_place(self) -> bool:
        """False: another connection got it, or the connection has ended."""
        return self.counted_for is not None

    @property
    def is_admitted(self) -> bool:
        """Whether a gate has admitted the request being answered."""
        return self.counted_for not in (None, self.subnet)

    async def turn(self) -> None:
        """See ``Turns.take``."""
        await self._places.turns.take(self._share)

    def hold(self, num_bytes: int) -> bool:
        """Hold more bytes of the request's body until the place rests or leaves. False: the share of them is used up.
        Mutates."""
        self._held_for = self._held_for or self._share
        if not self._places.bodies.take(self._held_for, num_bytes):
            return False
        self._num_held += num_bytes
        return True

    def admit(self, client: bytes) -> bool:
        """The request was admitted, for ``client``. False: that client has used up its share. Mutates."""
        if self.counted_for is None:
            return False
        self._places.uncount(self)
        if self._places.count(self, of_client(client), is_known=not client):
            return True
        self._places.count(self, self.subnet, is_known=True)
        return False

    def rest(self) -> None:
        """The request is answered, and the connection waits again. Mutates."""
        self._let_go()
        if self.is_admitted:
            self._places.uncount(self)
            self._places.count(self, self.subnet, is_known=True)

    def leave(self) -> None:
        """The connection has ended. Mutates."""
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
    """Whether the request may be answered now, see ``HttpPlace.admit``. Call once, after a gate has admitted it."""
    place: HttpPlace | None = scope.get(PLACE)
    return place is None or place.admit(client)


def hold(scope: Scope, num_bytes: int) -> bool:
    """Whether more bytes of the request's body may be held, see ``HttpPlace.hold``."""
    place: HttpPlace | None = scope.get(PLACE)
    return place is None or place.hold(num_bytes)


async def take_turn(scope: Scope) -> None:
    """See ``HttpPlace.turn``."""
    place: HttpPlace | None = scope.get(PLACE)
    if place is not None:
        await place.turn()


def subnet_of_socket(connected: trio.socket.SocketType) -> str:
    """The subnet of the other end. Raises OSError if that end is gone."""
    kind = "ip6" if connected.family == socket.AF_INET6 else "ip4"
    return subnet_of(f"/{kind}/{connected.getpeername()[0]}")
