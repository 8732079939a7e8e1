"""The text of an invitation to a private swarm: one word that people can send, say or scan.

It is ``mycelia1`` and, in lower-case base32 (RFC 4648) without padding: the format's version (1 byte), the length of
the message (2 bytes), the message ``invitation`` of ``wire.cddl``, and 4 bytes of the BLAKE3 hash of all these bytes.
The length shows that a text was cut, the hash that it was mistyped. Case and blanks do not matter, as in a text that a
mail program broke into lines.

An invitation has no signature. Its secret is what counts: who can make another invitation of it has the secret already,
and the roster that a joining peer accepts must be signed by the authority that the invitation names.
"""

import base64
import binascii

from blake3 import blake3

from mycelia.proto.wire.codec import decode, encode
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import Invitation

PREFIX = "mycelia1"
FORMAT_VERSION = 1
CHECK_BYTES = 4
_HEAD_BYTES = 3
MAX_INVITATION_CHARS = 4_096
CLOCK_TOLERANCE_S = 7_200
"""How wrong the clock of a peer that wants to join may be. The admin's clock decides."""


def invitation_text(invitation: Invitation) -> str:
    """Raises LocalError when it would be longer than MAX_INVITATION_CHARS."""
    message = encode(invitation)
    data = bytes([FORMAT_VERSION]) + len(message).to_bytes(2, "big") + message
    text = PREFIX + base64.b32encode(data + _check(data)).decode().rstrip("=").lower()
    if len(text) > MAX_INVITATION_CHARS:
        raise LocalError(f"an invitation of {len(text)} characters is too long; name fewer addresses")
    return text


def read_invitation(text: str) -> Invitation:
    """The inverse of ``invitation_text``. Raises LocalError, which says what is wrong with the text."""
    word = "".join(text[: 2 * MAX_INVITATION_CHARS].split()).lower()
    if not word.startswith(PREFIX):
        raise LocalError(f"this is not an invitation: invitations begin with {PREFIX}; copy the whole text")
    if len(word) > MAX_INVITATION_CHARS:
        raise LocalError("this is not an invitation: it is too long; copy only the invitation")
    data = _bytes_of(word[len(PREFIX) :])
    if len(data) < _HEAD_BYTES:
        raise LocalError("this invitation is cut off; copy all of it")
    end = _HEAD_BYTES + int.from_bytes(data[1:_HEAD_BYTES], "big")
    if data[0] != FORMAT_VERSION and _is_whole(data, end):
        raise LocalError("this invitation was made by a newer version of Mycelia; install that version")
    if len(data) < end + CHECK_BYTES:
        raise LocalError("this invitation is cut off or mistyped; copy all of it")
    if not _is_whole(data, end):
        raise LocalError("this invitation is mistyped or has additional characters; copy it again")
    try:
        message = decode(data[_HEAD_BYTES:end])
    except RemoteError as exc:
        raise LocalError("this invitation cannot be read; ask for a new one") from exc
    if not isinstance(message, Invitation):
        raise LocalError("this invitation cannot be read; ask for a new one")
    return message


def is_over(invitation: Invitation, now: float) -> bool:
    """Whether it is over even if the clock that says ``now`` is wrong by CLOCK_TOLERANCE_S. Only then is it useless to
    ask the admin."""
    return now > invitation.expires + CLOCK_TOLERANCE_S


def _bytes_of(text: str) -> bytes:
    """The bytes of base32 text; a last character that makes no whole byte is left out. Raises LocalError."""
    usable = text if len(text) % 8 not in (1, 3, 6) else text[:-1]
    try:
        return base64.b32decode(usable.upper() + "=" * (-len(usable) % 8))
    except (binascii.Error, ValueError) as exc:
        raise LocalError(
            "this invitation is mistyped: it has a character that no invitation has; copy it again"
        ) from exc


def _is_whole(data: bytes, end: int) -> bool:
    return data[end:] == _check(data[:end])


def _check(data: bytes) -> bytes:
    return blake3(data).digest(CHECK_BYTES)
