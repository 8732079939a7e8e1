from multiaddr import Multiaddr

from mycelia.node.network.identity import new_identity
from mycelia.node.peer_id import peer_text
from mycelia.node.private_swarm.inviting import contact
from mycelia.node.private_swarm.joining import contacts_of
from mycelia.proto.wire.messages import MAX_CONTACT_ADDRESSES, Contact, Invitation

ME, MEMBER, OUTSIDER = (new_identity().peer_id for _ in range(3))
LOOPBACK, HOME = "/ip4/127.0.0.1/tcp/7117", "/ip4/192.168.1.2/tcp/7117"


def circuit(relay: bytes) -> str:
    return f"/ip4/203.0.113.7/tcp/7117/p2p/{peer_text(relay)}/p2p-circuit"


def named(*told: str) -> list[str]:
    found = contact(peer_text(ME), [f"{one}/p2p/{peer_text(ME)}" for one in told], {MEMBER})
    return [str(Multiaddr(data)) for data in found.addresses]


def test_loopback_is_named_only_if_there_is_nothing_else() -> None:
    assert named(HOME, LOOPBACK) == [HOME]
    assert named(LOOPBACK) == [LOOPBACK]


def test_a_joining_peer_cannot_use_members_as_relays() -> None:
    assert named(circuit(MEMBER), circuit(OUTSIDER), HOME) == [circuit(OUTSIDER), HOME]


def test_few_addresses_are_named() -> None:
    many = [f"/ip4/192.168.1.{number}/tcp/1" for number in range(1, 9)]
    assert named(*many) == many[:MAX_CONTACT_ADDRESSES]


def test_addresses_that_cannot_be_dialled_are_left_out() -> None:
    odd = [b"", b"\xff", Multiaddr("/ip4/203.0.113.7/udp/1/quic-v1").to_bytes(), Multiaddr(HOME).to_bytes()]
    contacts = (Contact(peer=ME, addresses=tuple(odd)), Contact(peer=b"xx", addresses=(odd[3],)))
    invitation = Invitation(swarm=bytes(32), secret=bytes(16), name="home", expires=0, contacts=contacts)
    assert contacts_of(invitation) == [f"{HOME}/p2p/{peer_text(ME)}"]
