"""How much of other nodes' digests each peer may make this node keep, and what is dropped when the room is full.

Owners cost nothing to invent, so the peer that announced them counts. Every estimate is kept on the *account* of one
peer: the owner's own while it is connected, otherwise the first peer that announced it. A peer's account holds at most
three sixteenths of all entries, or one sixteenth without a hello. The same bound holds for all that a subnet announces
of other owners. A subnet's own connected nodes may have three quarters if it is an address of a private network, which
may have a whole swarm.

When the room is full, suspect owners are dropped first, then unconnected owners in favour of connected ones, then
owners of subnets that hold a quarter more than the newcomer's would. So a peer that fills the room only pushes out its
own entries, and a connected owner of another subnet always finds room.

Invariant: the counts here are the sums over the estimates.
"""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

from mycelia.proto.admission.subnets import is_local
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.estimate import Estimate, Key, Source

NODE_SHARE, STRANGER_SHARE, LOCAL_SHARE = 3 / 16, 1 / 16, 3 / 4
"""Shares of all entries: for one peer and what its subnet announces of others, the same without a hello, and for the
nodes of one address of a private network. At the default the first is 15 MB."""
_MUCH = 1.25
"""Factor on the newcomer's share: subnets of about equal size do not displace each other in turns."""


@dataclass
class _Need:
    num_owners: int
    num_entries: int
    gone: list[Key] = field(default_factory=list)

    def is_met(self) -> bool:
        return self.num_owners <= 0 and self.num_entries <= 0

    def take(self, key: Key, estimate: Estimate) -> None:
        self.num_owners -= 1
        self.num_entries -= len(estimate.entries)
        self.gone.append(key)


class Room:
    """The counts of all accounts. It only decides; ``Estimates`` acts."""

    def __init__(self, config: DigestConfig, estimates: Mapping[Key, Estimate], connected: Set[bytes]) -> None:
        """estimates, connected: read-only."""
        self._config = config
        self._estimates = estimates
        self._connected = connected
        self.num_entries = 0
        """Entries kept of all owners together."""
        self._entries_of: Counter[bytes | str] = Counter()
        """Entries by peer and by subnet."""
        self._owners_of: Counter[str] = Counter()
        self._told_of: Counter[str] = Counter()
        """Subnet -> entries of owners other than the account's peer."""
        self._suspects: dict[Key, None] = {}
        """The longest suspect first."""

    def add(self, owner: bytes, account: Source, num_owners: int, num_entries: int) -> None:
        """This much more of ``owner``, or less if negative, is kept on ``account``. Mutates."""
        if account.peer != owner:
            self._told_of[account.subnet] += num_entries
            if not self._told_of[account.subnet]:
                del self._told_of[account.subnet]
        self.num_entries += num_entries
        for name in (account.peer, account.subnet):
            self._entries_of[name] += num_entries
            if not self._entries_of[name]:
                del self._entries_of[name]
        self._owners_of[account.subnet] += num_owners
        if not self._owners_of[account.subnet]:
            del self._owners_of[account.subnet]

    def fits(self, owner: bytes, account: Source, num_entries: int) -> bool:
        """Whether ``account`` may hold ``num_entries`` more of ``owner``. Does not mutate."""
        share = NODE_SHARE if account.is_node else STRANGER_SHARE
        of_subnet = LOCAL_SHARE if is_local(account.subnet) else share
        most = self._config.max_entries
        return (
            self._entries_of[account.peer] + num_entries <= share * most
            and self._entries_of[account.subnet] + num_entries <= of_subnet * most
            and (account.peer == owner or self._told_of[account.subnet] + num_entries <= share * most)
        )

    def surplus(self, account: Source) -> list[Key]:
        """The estimates by which ``account`` is over its bound, the longest quiet first. Does not mutate."""
        mine = sorted((one.heard_at, key) for key, one in self._estimates.items() if one.account.peer == account.peer)
        gone, num_gone = [], 0
        for _, key in mine:
            if self.fits(key[0], account, -num_gone):
                break
            num_gone += len(self._estimates[key].entries)
            gone.append(key)
        return gone

    def note_suspect(self, key: Key, is_suspect: bool) -> None:
        """The owner of ``key`` is or is no longer suspect. Mutates."""
        if is_suspect:
            self._suspects.setdefault(key)
        else:
            self._suspects.pop(key, None)

    def victims(self, key: Key, account: Source, num_entries: int) -> list[Key] | None:
        """The estimates that must be forgotten so that ``key`` can have ``num_entries`` more on ``account``; None:
        impossible. Does not mutate. Cheap for accounts that hold the most, because they ask most often."""
        need = _Need(
            len(self._estimates) + (key not in self._estimates) - self._config.max_owners,
            self.num_entries + num_entries - self._config.max_entries if num_entries > 0 else 0,
        )
        if need.is_met():
            return []
        is_connected = key[0] in self._connected
        for other in self._suspects:
            if other != key and (is_connected or other[0] not in self._connected):
                need.take(other, self._estimates[other])
                if need.is_met():
                    return need.gone
        mine = account.subnet

        def is_larger(name: str) -> bool:
            has_more_owners = self._owners_of[name] > _MUCH * self._owners_of[mine] + 1
            has_more_entries = self._entries_of[name] > _MUCH * self._entries_of[mine] + num_entries
            return (
                name != mine
                and (need.num_owners <= 0 or has_more_owners)
                and (need.num_entries <= 0 or has_more_entries)
            )

        larger = {name for name in self._owners_of if is_larger(name)}
        if not larger and not is_connected:
            return None
        ranked = sorted(
            (other[0] in self._connected, -self._entries_of[one.account.subnet], one.heard_at, other)
            for other, one in self._estimates.items()
            if other != key and not one.suspect and (is_connected or other[0] not in self._connected)
            if one.account.subnet in larger or (is_connected and other[0] not in self._connected)
        )
        for *_, other in ranked:
            need.take(other, self._estimates[other])
            if need.is_met():
                return need.gone
        return None

    def check_invariants(self) -> None:
        estimates = self._estimates.values()
        assert self.num_entries == sum(len(one.entries) for one in estimates) <= self._config.max_entries
        assert len(estimates) <= self._config.max_owners
        by_peer, by_subnet = Counter[bytes](), Counter[str]()
        for one in estimates:
            by_peer[one.account.peer] += len(one.entries)
            by_subnet[one.account.subnet] += len(one.entries)
        assert {name: num for name, num in self._entries_of.items() if isinstance(name, bytes)} == +by_peer
        assert {name: num for name, num in self._entries_of.items() if isinstance(name, str)} == +by_subnet
        assert self._suspects.keys() == {key for key, one in self._estimates.items() if one.suspect}
        told = Counter[str]()
        for (owner, _), one in self._estimates.items():
            told[one.account.subnet] += len(one.entries) if one.account.peer != owner else 0
        assert self._told_of == +told
        assert self._owners_of == Counter(one.account.subnet for one in estimates)
