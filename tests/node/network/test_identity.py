"""The peer id suffices to verify signatures."""

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from mycelia.node.network.identity import new_identity, verify
from mycelia.node.peer_id import peer_from_text, peer_text
from mycelia.proto.wire.errors import LocalError


def test_the_seed_is_not_printed() -> None:
    identity = new_identity()
    assert identity.seed.hex() not in repr(identity)
    assert str(identity.seed) not in repr(identity)


def test_peer_id_is_the_one_of_libp2p() -> None:
    identity = new_identity()
    theirs = ID.from_pubkey(create_new_key_pair(identity.seed).public_key)
    assert theirs.to_bytes() == identity.peer_id
    assert theirs.to_base58() == peer_text(identity.peer_id)
    assert peer_from_text(peer_text(identity.peer_id)) == identity.peer_id


@pytest.mark.parametrize("text", ["", "nonsense!", "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG"])
def test_other_peer_ids_are_refused(text: str) -> None:
    with pytest.raises(LocalError):
        peer_from_text(text)


def test_signatures() -> None:
    owner, other = new_identity(), new_identity()
    signature = owner.sign(b"payload")
    assert len(signature) == 64
    assert verify(owner.peer_id, b"payload", signature)
    assert not verify(owner.peer_id, b"payloaD", signature)
    assert not verify(other.peer_id, b"payload", signature)
    assert not verify(owner.peer_id, b"payload", signature[:-1])
    assert not verify(owner.peer_id[:-1], b"payload", signature)
    assert not verify(b"", b"", b"")
    assert not verify(owner.peer_id[:6] + bytes(32), b"payload", bytes(64))
