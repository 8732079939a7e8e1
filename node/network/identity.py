"""A node's identity: one Ed25519 key, kept in a file, from which its libp2p peer id follows.

An Ed25519 peer id contains its public key: the identity multihash (00 24) of the protobuf (08 01 12 20) of 32 bytes.
So whoever knows a peer id can verify what that peer signed, and nothing here needs libp2p.

The file holds two lines of text: ``mycelia-identity-1 SEED`` and ``peer PEERID``, both hexadecimal. The second line
follows from the first, so a damaged file is noticed instead of becoming another node.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import base58
from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from proto.errors import LocalError

IDENTITY_FILE = "identity.key"
_HEADER = "mycelia-identity-1"
_PEER_ID_PREFIX = bytes.fromhex("002408011220")
_KEY_BYTES = 32
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """A private key and what follows from it. Never printed: the seed is left out of ``repr``."""

    seed: bytes = field(repr=False)
    """32 bytes, the Ed25519 secret."""

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def peer_id(self) -> bytes:
        """38 bytes, the libp2p peer id in binary form."""
        return _PEER_ID_PREFIX + bytes(self._signing_key.verify_key)

    def sign(self, payload: bytes) -> bytes:
        """A 64-byte Ed25519 signature of ``payload``."""
        return bytes(self._signing_key.sign(payload).signature)


def new_identity() -> Identity:
    """A fresh identity that is kept nowhere: for light clients and tests."""
    return Identity(os.urandom(_KEY_BYTES))


def verify(owner_peer_id: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether the owner of ``owner_peer_id`` signed ``payload``. False, never an error, for any input of a peer's."""
    if len(owner_peer_id) != len(_PEER_ID_PREFIX) + _KEY_BYTES or not owner_peer_id.startswith(_PEER_ID_PREFIX):
        return False
    if len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(owner_peer_id[len(_PEER_ID_PREFIX) :]).verify(payload, signature)
    except BadSignatureError:
        return False
    return True


def peer_text(peer: bytes) -> str:
    """The usual base58 text of a peer id, as in multiaddrs."""
    return base58.b58encode(peer).decode()


def peer_from_text(text: str) -> bytes:
    """The inverse of ``peer_text``. Raises LocalError."""
    try:
        peer = base58.b58decode(text)
    except ValueError as exc:
        raise LocalError(f"{text!r} is not a peer id") from exc
    if len(peer) != len(_PEER_ID_PREFIX) + _KEY_BYTES or not peer.startswith(_PEER_ID_PREFIX):
        raise LocalError(f"{text!r} is not the peer id of an Ed25519 key (those begin with 12D3Koo)")
    return peer


def load_or_create_identity(data_dir: Path) -> Identity:
    """The identity in ``data_dir``, made on first use. Two processes that start at once get the same one.

    Raises LocalError when the file cannot be read, written or understood; a damaged file is never overwritten.
    """
    path = data_dir / IDENTITY_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
        text = path.read_bytes()
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # a copied file easily ends up readable by others
    except OSError as exc:
        raise LocalError(f"cannot use the identity file {path}: {exc.strerror or exc}") from exc
    return _parse(path, text)


def _create(path: Path) -> None:
    """Atomically: the file is complete on disk before it has its name, and an existing one is never replaced."""
    identity = new_identity()
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(f"{_HEADER} {identity.seed.hex()}\npeer {identity.peer_id.hex()}\n".encode())
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike rename, refuses to replace what another process just made
        except FileExistsError:
            return
        except OSError:
            temporary.rename(path)  # a file system without hard links
    finally:
        temporary.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _parse(path: Path, text: bytes) -> Identity:
    """Raises LocalError unless both lines are whole and agree."""
    try:
        first, second = text.decode("ascii").splitlines()
        header, seed = first.split(" ")
        label, peer = second.split(" ")
        identity = Identity(bytes.fromhex(seed))
        whole = header == _HEADER and label == "peer" and len(identity.seed) == _KEY_BYTES
        if whole and identity.peer_id == bytes.fromhex(peer):
            return identity
    except ValueError:
        pass
    raise LocalError(
        f"the identity file {path} is damaged; restore it from a backup, or move it away to start as a new node"
    )
