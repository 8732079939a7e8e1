"""Which node serves what, its load and its cache: control messages, one-way over a direct stream, and gossip."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire.bounds import (
    MAX_CELL_BITS,
    MAX_DELTA_BYTES,
    MAX_ENTRIES_PER_OWNER,
    MAX_NAMESPACES,
    MAX_VECTOR,
    Counter,
    Digest128,
    Kind,
    ModelName,
    NamespaceKey,
    PackedEntries,
    PeerId,
    Record,
    Signature,
    Small,
)


class Vitals(Record, frozen=True, kw_only=True):
    """A node's measurements of itself now. Rates in tokens/s; 0 means not measured yet."""

    queued_tokens: Small = field(name="1")
    """Prompt tokens accepted but not yet prefilled. While the model is not loaded, also as many as could be prefilled
    in the time that loading takes."""
    active_requests: Small = field(name="2")
    """Requests being prefilled or decoded."""
    waiting_requests: Small = field(name="3")
    slots: Small = field(name="4")
    """Requests the engine works on at once; 0 while there is no engine."""
    prefill_rate: Small = field(name="5", default=0)
    decode_rate: Small = field(name="6", default=0)
    hold_ms: Small = field(name="7", default=0)
    """Recent mean time from the start of a request's prefill to its last token; 0: no request ended yet."""


class Served(Record, frozen=True, kw_only=True):
    namespace: NamespaceKey = field(name="1")
    model: ModelName = field(name="2")
    context_tokens: Small = field(name="3")
    vitals: Vitals = field(name="4")


class Head(Record, frozen=True, kw_only=True):
    """The signed head of a digest, see ``digest.py``."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")
    count: Annotated[int, Meta(ge=0, le=MAX_ENTRIES_PER_OWNER)] = field(name="5")
    root: Digest128 = field(name="6")
    issued_at: Counter = field(name="7")
    """Unix time in ms."""
    signature: Signature = field(name="8")
    cell_bits: Annotated[int, Meta(ge=0, le=MAX_CELL_BITS)] = field(name="9", default=0)
    """Depth of the owner's cell, see ``cells.py``."""


class Version(Record, frozen=True, kw_only=True):
    """The version held of one owner's digest."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")


class Hello(Kind, frozen=True, kw_only=True, tag=1):
    """First message in each direction of a connection: the sender and what it serves."""

    wire_version: Small = field(name="1")
    agent: Annotated[str, Meta(max_length=64)] = field(name="2")
    served: Annotated[tuple[Served, ...], Meta(max_length=MAX_NAMESPACES)] = field(name="3")


class VitalsUpdate(Kind, frozen=True, kw_only=True, tag=2):
    namespace: NamespaceKey = field(name="1")
    vitals: Vitals = field(name="2")


class RepairRequest(Kind, frozen=True, kw_only=True, tag=3):
    """Asks for an owner's digest and says which version is held: epoch, seq, count and root, all zero for nothing."""

    owner: PeerId = field(name="1")
    namespace: NamespaceKey = field(name="2")
    epoch: Counter = field(name="3")
    seq: Counter = field(name="4")
    count: Annotated[int, Meta(ge=0, le=MAX_ENTRIES_PER_OWNER)] = field(name="5")
    root: Digest128 = field(name="6")


class Repair(Kind, frozen=True, kw_only=True, tag=4):
    """Brings a reader to ``head``. Any relay may send it; it is accepted only if the result hashes to the root."""

    head: Head = field(name="1")
    mode: Annotated[int, Meta(ge=0, le=2)] = field(name="2")
    """0 SAME: the set held is right. 1 LOG: final state of every key touched since ``from_seq``. 2 SNAPSHOT:
    ``upserts`` is everything."""
    from_seq: Counter = field(name="3")
    upserts: PackedEntries = field(name="4")
    removes: PackedEntries = field(name="5")


class Reconcile(Kind, frozen=True, kw_only=True, tag=5):
    """Pairwise anti-entropy: the versions that the sender holds. The receiver sends newer ones and asks for others."""

    versions: Annotated[tuple[Version, ...], Meta(max_length=MAX_VECTOR)] = field(name="1")


class Subscribe(Kind, frozen=True, kw_only=True, tag=18):
    """Asks the receiver to report its load now, and at each change for this many seconds."""

    namespace: NamespaceKey = field(name="1")
    seconds: Small = field(name="2")


class Delta(Kind, frozen=True, kw_only=True, tag=6):
    """The final state of every key that its owner touched in (from_seq, head.seq]."""

    head: Head = field(name="1")
    from_seq: Counter = field(name="2")
    upserts: Annotated[bytes, Meta(max_length=MAX_DELTA_BYTES)] = field(name="3")
    removes: Annotated[bytes, Meta(max_length=MAX_DELTA_BYTES)] = field(name="4")


class Announce(Kind, frozen=True, kw_only=True, tag=7):
    """A head alone: the change is too large for gossip."""

    head: Head = field(name="1")


Control = Hello | VitalsUpdate | RepairRequest | Repair | Reconcile | Subscribe
Gossip = Delta | Announce
