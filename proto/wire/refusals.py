"""Why something that a peer sent was not used: one counter per reason.

Some refusals cost the sender (an offence, see ``trust.py``). Others must not, because an honest node may cause them:
gossip comes late and twice, and a relay is not to blame for an owner's clock. ``Overlay.refusals`` counts both. The
names are part of a node's state as programs see it.
"""

from enum import StrEnum


class Refusal(StrEnum):
    """The reason of a refusal. The first group costs the sender, or the owner if the owner signed it."""

    MALFORMED = "malformed"
    """Bytes that are no message, a kind on the wrong stream, records out of order."""
    OVERSIZED = "oversized"
    """A claimed length above the limit; no byte of it is read."""
    TOO_MANY = "too_many"
    """More than a sender may send and any delay could bring at once. An offence only of the direct sender."""
    WRONG_OWNER = "wrong_owner"
    """Gossip about another owner's digest."""
    WRONG_NAMESPACE = "wrong_namespace"
    """A head of another namespace than its topic's. No offence in a repair, which may be honest."""
    WRONG_CELL = "wrong_cell"
    """Gossip of an owner outside its topic's cell; in a repair, a digest of another cell, no offence."""
    WRONG_SIGNATURE = "wrong_signature"
    WRONG_DELTA = "wrong_delta"
    """A delta, or the log in a repair, that does not lead to the set its head commits to. No offence of a relay."""
    WRONG_SNAPSHOT = "wrong_snapshot"
    """A snapshot that does not hash to its head's root."""
    EQUIVOCATION = "equivocation"
    """Two different sets signed under one version: the owner's offence, not the forwarder's."""
    WRONG_FRAME = "wrong_frame"
    """A frame of an answer out of place."""

    REPLAYED = "replayed"
    """A version that is already known or older. Never an offence: late copies are normal."""
    FUTURE = "future"
    """An epoch or time of issue too far in the future: a clock is wrong, perhaps this node's."""
    EXPIRED = "expired"
    """A head issued too long ago to be used."""
    NO_ROOM = "no_room"
    """Too many owners or entries."""
    TOO_SOON = "too_soon"
    """A repair or reconciliation requested too often; not answered."""
    QUARANTINED = "quarantined"
    """A message of a quarantined peer, or about its digest; not read."""
    WRONG_VERSION = "wrong_version"
    """A hello of another wire version."""
