"""The identity file is made once, is private and is never overwritten. The peer id suffices to verify signatures."""

import stat
from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from mycelia.node.network.identity import IDENTITY_FILE, load_or_create_identity, new_identity, verify
from mycelia.node.peer_id import peer_from_text, peer_text
from mycelia.proto.wire.errors import LocalError


def test_is_created_once_and_private(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path / "data")
    path = tmp_path / "data" / IDENTITY_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load_or_create_identity(tmp_path / "data") == first
    assert [entry.name for entry in path.parent.iterdir()] == [IDENTITY_FILE]


def test_a_readable_file_is_made_private_again(tmp_path: Path) -> None:
    load_or_create_identity(tmp_path)
    (tmp_path / IDENTITY_FILE).chmod(0o644)
    load_or_create_identity(tmp_path)
    assert stat.S_IMODE((tmp_path / IDENTITY_FILE).stat().st_mode) == 0o600


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:40], lambda data: data[:-3] + b"00\n"])
def test_a_damaged_file_is_reported_and_kept(tmp_path: Path, damage) -> None:  # type: ignore[no-untyped-def]
    load_or_create_identity(tmp_path)
    path = tmp_path / IDENTITY_FILE
    path.write_bytes(damaged := damage(path.read_bytes()))
    with pytest.raises(LocalError, match="is damaged; restore it from a backup"):
        load_or_create_identity(tmp_path)
    assert path.read_bytes() == damaged


def test_an_unusable_directory_is_a_local_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError, match="cannot use the identity file"):
        load_or_create_identity(tmp_path / "file")


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
