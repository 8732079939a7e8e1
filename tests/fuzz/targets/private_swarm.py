"""Hostile texts of invitations, and hostile requests of joining peers: an error that is expected, or an answer
that the peer may have."""

import random

import trio
from libp2p.utils import encode_delim

from mycelia.node.network.libp2p import entry_exchange
from mycelia.node.network.libp2p.closing import BROKEN
from mycelia.node.network.libp2p.negotiation import proposal
from mycelia.node.network.network import NetworkError
from mycelia.proto.swarm.invitations import PREFIX, invitation_text, read_invitation
from mycelia.proto.swarm.roster import Purpose, RosterView
from mycelia.proto.wire.codec import LENGTH_PREFIX, encode
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Invitation, Join, JoinRefused, Message, Roster, RosterQuery
from tests.fuzz.mutate import splice, spoil_bytes
from tests.proto.examples import EXAMPLES
from tests.proto.swarm.swarms import ADMIN, NOW, SECRET, new_swarm, peer, request, verify

_INVITATION = next(message for message in EXAMPLES if isinstance(message, Invitation))
_TEXTS = [invitation_text(_INVITATION), PREFIX]


class InvitationTexts:
    """A text that somebody pastes after ``mycelia join``."""

    name = "invitations"

    def make(self, rng: random.Random) -> str:
        data = rng.choice(_TEXTS).encode()
        if rng.random() < 0.8:
            data = spoil_bytes(data, rng)
        if rng.random() < 0.3:
            data = splice(data, _TEXTS[0].encode(), rng)
        text = data.decode("latin-1")
        return text[: rng.randrange(len(text) + 1)] if rng.random() < 0.3 else text

    def check(self, item: str) -> bool:
        try:
            read = read_invitation(item)
        except LocalError:
            return False
        assert read == _INVITATION
        return True


class _Secured:
    """A connection inside Noise with the given bytes, and then the end."""

    def __init__(self, incoming: bytes) -> None:
        self._incoming = incoming
        self.written = b""

    async def read(self, num_bytes: int) -> bytes:
        data, self._incoming = self._incoming[:num_bytes], self._incoming[num_bytes:]
        return data

    async def write(self, data: bytes) -> None:
        self.written += data


class _Member:
    """A member that keeps the swarm, without files."""

    def __init__(self) -> None:
        self.swarm = new_swarm()
        self.swarm.invite(SECRET, 3_600, 1, NOW)
        self.view = RosterView(self.swarm.roster, ADMIN, verify)

    @property
    def key(self) -> bytes:
        return self.view.key

    async def new_key(self) -> None:
        await trio.sleep_forever()

    def opened_by(self, nonce: bytes) -> tuple[bytes, Purpose]:
        return self.view.opened_by(nonce)

    def members(self) -> list[bytes]:
        return []

    def is_member(self, one: bytes) -> bool:
        return self.view.is_member(one)

    def request(self) -> Message:
        return self.view.roster

    async def learn(self, answer: Message) -> bool:
        return False

    async def answer(self, asked: Message, one: bytes, purpose: Purpose) -> Message | None:
        match asked:
            case Join(joiner=b"") if purpose is Purpose.JOIN:
                return self.swarm.join(asked, one, NOW)
            case Roster() if purpose is not Purpose.JOIN:
                self.view.adopt(asked)
                return self.view.roster if self.view.is_member(one) else JoinRefused(reason="removed")
        return None


class EntryRequests:
    """The bytes of a peer that is not let in, and what its key is for."""

    name = "swarm_entry"

    def make(self, rng: random.Random) -> tuple[bytes, str]:
        messages = [request(SECRET, peer(9)), new_swarm().roster, RosterQuery(version=rng.randrange(9)), *EXAMPLES]
        data = encode(rng.choice(messages[: 3 if rng.random() < 0.7 else None]))
        if rng.random() < 0.5:
            data = spoil_bytes(data, rng)
        framed = proposal(entry_exchange.PROTOCOL) + LENGTH_PREFIX.pack(len(data)) + data
        way = rng.random()
        if way < 0.2:
            framed = spoil_bytes(framed, rng)
        elif way < 0.3:
            framed = framed[: rng.randrange(len(framed) + 1)]
        return framed, rng.choice(list(Purpose)).name

    def check(self, item: tuple[bytes, str]) -> bool:
        data, purpose = item[0], Purpose[item[1]]
        member, connection = _Member(), _Secured(data)
        is_answered = True
        try:
            trio.run(entry_exchange.answer, connection, peer(1), purpose, member)  # type: ignore[arg-type]
        except (NetworkError, RemoteError, trio.TooSlowError, *BROKEN):
            is_answered = False
        # (its proofs are of another peer, so it never gets the roster)
        assert member.view.key not in connection.written and member.view.roster.salt not in connection.written
        assert len(connection.written) <= len(proposal(entry_exchange.PROTOCOL)) + len(encode_delim(b"na")) + 64
        member.view.check_invariants()
        member.swarm.check_invariants()
        return is_answered
