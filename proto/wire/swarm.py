"""Private swarms: the signed list of members, and the exchange by which a peer joins. ``proto/swarm/`` gives them
their meaning."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire.bounds import Counter, Kind, ModelName, PeerId, Record, Signature, Small

MAX_MEMBERS = 512
MAX_INVITATIONS = 32
MAX_OLD_KEYS = 4
MAX_SWARM_MODELS = 16
MAX_CONTACTS, MAX_CONTACT_ADDRESSES = 4, 4

SwarmKey = Annotated[bytes, Meta(min_length=32, max_length=32)]
SwarmId = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""The public key of the swarm's authority."""
InvitationId = Annotated[bytes, Meta(min_length=8, max_length=8)]
ShortName = Annotated[str, Meta(max_length=32)]


class Member(Record, frozen=True, kw_only=True):
    """A peer that belongs to a private swarm."""

    peer: PeerId = field(name="1")
    name: ShortName = field(name="2")
    """A name for people; may be empty."""
    since: Counter = field(name="3")
    """Unix time in seconds."""


class JoinKey(Record, frozen=True, kw_only=True):
    """What a member needs to let the holder of an invitation ask for membership."""

    invitation_id: InvitationId = field(name="1")
    key: SwarmKey = field(name="2")


class Roster(Kind, frozen=True, kw_only=True, tag=28):
    """All that the members of a private swarm share, signed by its authority. It is sent to members only."""

    swarm: SwarmId = field(name="1")
    version: Counter = field(name="2")
    """Grows with each change. The greatest counts."""
    name: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="3")
    admin: PeerId = field(name="4")
    """The node that holds the authority's secret and decides who joins."""
    epoch: Small = field(name="5")
    """Grows with each new key."""
    key: SwarmKey = field(name="6")
    """The pre-shared key of connections."""
    old_keys: Annotated[tuple[SwarmKey, ...], Meta(max_length=MAX_OLD_KEYS)] = field(name="7")
    """Keys of earlier epochs, the newest first. They open only the exchange that hands out this roster."""
    salt: SwarmKey = field(name="8")
    """The swarm salt of namespaces. It stays when the key changes."""
    models: Annotated[tuple[ModelName, ...], Meta(max_length=MAX_SWARM_MODELS)] = field(name="9")
    """The models that members serve; empty: any."""
    members: Annotated[tuple[Member, ...], Meta(max_length=MAX_MEMBERS)] = field(name="10")
    join_keys: Annotated[tuple[JoinKey, ...], Meta(max_length=MAX_INVITATIONS)] = field(name="11")
    signature: Signature = field(name="12")


class RosterQuery(Kind, frozen=True, kw_only=True, tag=29):
    """Asks for a newer roster than the sender's. Answered by Roster, or by RosterQuery if there is none."""

    version: Counter = field(name="1")


class Join(Kind, frozen=True, kw_only=True, tag=30):
    """Asks for membership. Answered by Roster or JoinRefused."""

    invitation_id: InvitationId = field(name="1")
    proof: Annotated[bytes, Meta(min_length=16, max_length=16)] = field(name="2")
    """Shows that the joining peer holds the invitation, see ``proto/swarm/keys.py``."""
    name: ShortName = field(name="3")
    joiner: Annotated[bytes, Meta(max_length=64)] = field(name="4", default=b"")
    """The joining peer, if a member passes its request on to the admin; empty: the sender."""


class JoinRefused(Kind, frozen=True, kw_only=True, tag=31):
    """The answer to a peer that does not become, or no longer is, a member."""

    reason: Annotated[str, Meta(pattern="^(unknown|expired|used|revoked|removed|not_allowed|full|admin_away)$")] = (
        field(name="1")
    )


class Contact(Record, frozen=True, kw_only=True):
    """A member through which to join."""

    peer: PeerId = field(name="1")
    addresses: Annotated[tuple[Annotated[bytes, Meta(max_length=128)], ...], Meta(max_length=MAX_CONTACT_ADDRESSES)] = (
        field(name="2")
    )
    """Multiaddrs in binary form, without the peer id."""


class Invitation(Kind, frozen=True, kw_only=True, tag=32):
    """The content of an invitation's text. Never sent over a connection."""

    swarm: SwarmId = field(name="1")
    secret: Annotated[bytes, Meta(min_length=16, max_length=16)] = field(name="2")
    name: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="3")
    """The swarm's name."""
    expires: Counter = field(name="4")
    """Unix time in seconds."""
    contacts: Annotated[tuple[Contact, ...], Meta(max_length=MAX_CONTACTS)] = field(name="5")


SwarmMessage = Roster | RosterQuery | Join | JoinRefused | Invitation
