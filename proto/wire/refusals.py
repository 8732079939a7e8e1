"""Why something that a peer sent was not used: one counter each, in one place.

Some of these cost their sender (an offence, see ``trust.py``), some cannot, because an honest node may cause them:
gossip comes late and twice, and a relay is not to blame for an owner's clock. Both kinds are counted in
``Overlay.refusals``. The names are part of a node's state as programs see it.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """What was wrong. The first group costs the sender, or the owner where it is the owner who signed it."""

    MALFORMED = "malformed"
    """Bytes that are no message, a kind that does not belong where it came, records out of order."""
    OVERSIZED = "oversized"
    """A claimed length over the limit; not one byte of it is read."""
    TOO_MANY = "too_many"
    """More than a sender may send, and than anything on the way could bring at once; an offence only of who sent it
    first hand."""
    WRONG_OWNER = "wrong_owner"
    """Gossip about somebody else's digest."""
    WRONG_NAMESPACE = "wrong_namespace"
    """A head of another namespace than its topic's; in a repair, which may have been meant well, no offence."""
    WRONG_CELL = "wrong_cell"
    """Gossip of an owner that is not of its topic's cell; in a repair, a digest of a cell that this node is not in, no
    offence."""
    WRONG_SIGNATURE = "wrong_signature"
    WRONG_DELTA = "wrong_delta"
    """A delta, or the log in a repair, that does not lead to the set its head commits to. No offence of a relay."""
    WRONG_SNAPSHOT = "wrong_snapshot"
    """A snapshot that does not hash to its head's root."""
    EQUIVOCATION = "equivocation"
    """Two sets signed under one version: the owner's offence, whoever brought them."""
    WRONG_FRAME = "wrong_frame"
    """A frame of an answer out of place."""

    REPLAYED = "replayed"
    """A version that is known already, or older than one that is. Never an offence: late copies are normal."""
    FUTURE = "future"
    """An epoch or a time of issue too far ahead: a clock is wrong, perhaps this node's."""
    EXPIRED = "expired"
    """A head issued too long ago to make an estimate of it."""
    NO_ROOM = "no_room"
    """An owner too many, or too many entries."""
    TOO_SOON = "too_soon"
    """A repair or reconciliation asked for too often; not answered."""
    QUARANTINED = "quarantined"
    """A message of a quarantined peer, or about its digest; not looked at."""
    WRONG_VERSION = "wrong_version"
    """A hello of another wire version."""
