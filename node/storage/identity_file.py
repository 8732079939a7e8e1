"""The file with a node's identity.

It holds two lines of text: ``mycelia-identity-1 SEED`` and ``peer PEERID``, both hexadecimal. The second line follows
from the first, so a damaged file is an error and not another node.
"""

import os
from contextlib import suppress
from pathlib import Path

from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.peer_id import KEY_BYTES
from mycelia.node.storage.files import replacing
from mycelia.proto.wire.errors import LocalError

IDENTITY_FILE = "identity.key"
_HEADER = "mycelia-identity-1"
_MAX_BYTES = 4_096
"""Bytes that are read of the file, however large it is."""


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
    """Writes a new identity that is complete when it gets its name. If another process was faster, its file stays."""
    identity = new_identity()
    temporary = f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp"
    with suppress(FileExistsError), replacing(path, temporary, is_synced=True, keeps=True) as file:
        file.write(f"{_HEADER} {identity.seed.hex()}\npeer {identity.peer_id.hex()}\n".encode())
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
