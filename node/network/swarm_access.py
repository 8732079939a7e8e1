"""What the network asks of a private swarm that has a list of members: which key opens a connection, whether a peer may
stay, and what to say to one that may not."""

from typing import Protocol

from mycelia.proto.swarm.roster import Purpose
from mycelia.proto.wire.messages import Message


class SwarmAccess(Protocol):
    """The rules of one private swarm, as one node applies them."""

    @property
    def key(self) -> bytes:
        """The key of the connections that this node makes."""
        ...

    async def new_key(self) -> None:
        """Returns when ``key`` has changed."""
        ...

    def opened_by(self, nonce: bytes) -> tuple[bytes, Purpose]:
        """The key and the purpose of a connection whose dialler began with ``nonce``."""
        ...

    def members(self) -> list[bytes]:
        """The peers that belong to the swarm, this node included."""
        ...

    def is_member(self, peer: bytes) -> bool:
        """Whether connections with ``peer``, which has proven its id, may be used."""
        ...

    def request(self) -> Message:
        """What this node says to a peer that does not let it in."""
        ...

    async def learn(self, answer: Message) -> bool:
        """Takes the answer to ``request``. Returns whether to dial again."""
        ...

    async def answer(self, request: Message, peer: bytes, purpose: Purpose) -> Message | None:
        """The answer to the one request of a peer that is not let in; None: there is none for it."""
        ...
