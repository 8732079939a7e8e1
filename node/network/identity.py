"""A node's identity: one Ed25519 key, kept in a file, from which its libp2p peer id follows.

An Ed25519 peer id contains its public key, so a peer's signature can be verified with its peer id alone. Nothing here
needs libp2p.

The file holds two lines of text: ``mycelia-identity-1 SEED`` and ``peer PEERID``, both hexadecimal. The second line
follows from the first, so a damaged file is an error and not another node.
"""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from mycelia.node.peer_id import ED25519_PREFIX, KEY_BYTES, is_ed25519
from mycelia.proto.wire.errors import LocalError

IDENTITY_FILE = "identity.key"
_HEADER = "mycelia-identity-1"
_MAX_BYTES = 4_096
"""Bytes that are read of the file, however large it is."""
SIGNATURE_BYTES = 64


@dataclass(frozen=True)
class Identity:
    """A private key and what follows from it. ``repr`` leaves the seed out, so no log shows it."""

    seed: bytes = field(repr=False)
    """32 bytes, the Ed25519 secret."""

    @cached_property
    def _signing_key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def peer_id(self) -> bytes:
        """38 bytes, the libp2p peer id in binary form."""
        return ED25519_PREFIX + bytes(self._signing_key.verify_key)

    def sign(self, payload: bytes) -> bytes:
        """A 64-byte Ed25519 signature of ``payload``."""
        return bytes(self._signing_key.sign(payload).signature)


def new_identity() -> Identity:
    """A fresh identity that is kept nowhere: for light clients and tests."""
    return Identity(os.urandom(KEY_BYTES))


def verify(owner_peer_id: bytes, payload: bytes, signature: bytes) -> bool:
    """Whether the owner of ``owner_peer_id`` signed ``payload``. Never raises, whatever a peer sent."""
    if not is_ed25519(owner_peer_id) or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        VerifyKey(owner_peer_id[len(ED25519_PREFIX) :]).verify(payload, signature)
    except BadSignatureError:
        return False
    return True


def load_or_create_identity(data_dir: Path) -> Identity:
    """The identity in ``data_dir``, made on first use. Two processes that start at once get the same one. Raises
    LocalError when the file cannot be read, written or understood; a damaged file is never overwritten."""
    path = data_dir / IDENTITY_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _create(path)
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)  # a copied file easily ends up readable by others
    except OSError as exc:
        raise LocalError(f"cannot use the identity file {path}: {exc.strerror or exc}") from exc
    return _parse(path, text)


def _create(path: Path) -> None:
    """Writes a new identity atomically: the file gets its name when it is complete, and never replaces another."""
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
        whole = header == _HEADER and label == "peer" and len(identity.seed) == KEY_BYTES
        if whole and identity.peer_id == bytes.fromhex(peer):
            return identity
    except ValueError:
        pass
    raise LocalError(
        f"the identity file {path} is damaged; restore it from a backup, or move it away to start as a new node"
    )
