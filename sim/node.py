"""A simulated node: what the shell would keep for an overlay, and a stand-in for the node's key."""

from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3

from mycelia.proto.events import Event, Timer
from mycelia.proto.overlay import Overlay


def sign_as(owner: bytes) -> Callable[[bytes], bytes]:
    """A stand-in for Ed25519, see the module's docstring."""
    return lambda payload: blake3(owner + payload).digest(length=64)


def verify(owner: bytes, payload: bytes, signature: bytes) -> bool:
    return blake3(owner + payload).digest(length=64) == signature


def peer_id(number: int) -> bytes:
    """An id as long as that of a real node with an Ed25519 key."""
    return b"\x00\x24\x08\x01\x12\x20" + blake3(b"node %d" % number).digest()


def address_of(number: int) -> str:
    """Each node is in a network of its own, as far as there are /24s between 16.0.0.0 and 80.0.0.0."""
    return f"/ip4/{16 + number // 65_536 % 64}.{number // 256 % 256}.{number % 256}.1/tcp/1"


@dataclass
class SimNode:
    """One overlay and what the shell would keep for it."""

    number: int
    peer: bytes
    overlay: Overlay
    timers: dict[Timer, tuple[float, int]] = field(default_factory=dict)
    """When each timer fires, and the number of its heap entry."""
    near: set[int] = field(default_factory=set)
    """Connected nodes."""
    clock_s: float = 0.0
    """How far its clock is ahead, in seconds."""
    held: list[tuple[int, "Event | Timer"]] | None = None
    """While the node is frozen: what has happened to it meanwhile, with the numbers of the heap entries."""
