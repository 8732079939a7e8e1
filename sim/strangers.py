"""Strangers in a swarm that do all that free keys allow, at the full rates that a node accepts: what it costs others.

A stranger is no node of the simulation. It has a key and connections with some nodes, sends a hello or not, and

- announces owners that it invents, by repairs without bytes, by whole snapshots and by gossip that others pass on;
- signs two sets under one version and sends them to different nodes;
- asks for digests, reconciles, subscribes and sends hellos again and again;
- asks nodes for answers, which they send on to each other.

Nodes here charge each other as nodes of the first versions did: for more than 50 control messages a second or 64
streams from one peer. So no honest node must ever reach either.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec

from mycelia.proto import WIRE_VERSION
from mycelia.proto.admission.limits import TokenBucket
from mycelia.proto.config import CellConfig, DigestConfig, OverlayConfig
from mycelia.proto.digests.digest import SAME, OwnDigest, snapshot
from mycelia.proto.effects import Dispatch, Emit, Publish, RequestEffect, Send
from mycelia.proto.events import Connected, FrameReceived, Malformed, Received, RequestSubmitted
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import (
    MAX_VECTOR,
    Announce,
    Control,
    Final,
    Hello,
    Reconcile,
    Repair,
    RepairRequest,
    Sampling,
    Served,
    Subscribe,
    Usage,
    Version,
)
from mycelia.proto.wire.refusals import Refusal
from mycelia.sim.links import Links, mesh_of, modelled_rtt, random_graph
from mycelia.sim.metadata import Churn, Step, is_converged
from mycelia.sim.node import SimNode, address_of, peer_id, sign_as
from mycelia.sim.world import CONTEXT_TOKENS, IDLE, NAMESPACE, World

CONTROL_RATE, CONTROL_BURST, MAX_STREAMS = 50.0, 200.0, 64
"""Limits that nodes of the first versions had for one peer."""
TOLD_PER_S, TOLD_AT_ONCE = 18.0, 199
"""Owners that a stranger invents for each node: below what a node accepts without a question."""
GOSSIP_PER_S = 6.0
"""Owners that a stranger invents by gossip: for five strangers about what a node passes on from one neighbour."""
ASKS_PER_S = 4.0
HOLD_S = 2.0
"""Seconds that an answer takes."""
_START_S, _CHANGES_PER_S = 20.0, 1 / 30


@dataclass(frozen=True)
class Attack:
    num_nodes: int = 12
    num_strangers: int = 5
    """0: the same swarm without an attack."""
    degree: int = 6
    """Connections of a node with other nodes."""
    reach: int = 12
    """Largest number of nodes that a stranger connects with."""
    seed: int = 1
    config: DigestConfig = field(default_factory=DigestConfig)


@dataclass
class Harm:
    banned: Counter[str] = field(default_factory=Counter)
    """"honest", "strangers" and "invented" (owners that proved that they lie) -> quarantines."""
    over_rates: Counter[str] = field(default_factory=Counter)
    """"messages" and "streams" of honest nodes for which another one would have charged them."""
    honest_bytes_per_s: float = 0.0
    """Bytes sent by a node to others."""
    most_per_s: float = 0.0
    """Control messages a second of one node to one other, the most in any ten seconds."""
    converged_s: float = 0.0
    """From the last change of the caches, while the attack goes on, until all honest nodes hold exact estimates."""
    num_asked: int = 0
    num_answered: int = 0
    most_entries: int = 0
    """Largest number of entries of invented owners that one node kept."""


class Siege:
    """A swarm and the strangers around it."""

    def __init__(self, attack: Attack) -> None:
        self.attack = attack
        self.harm = Harm()
        num_peers = attack.num_nodes + attack.num_strangers
        rng = random.Random(attack.seed)
        links = Links(modelled_rtt(num_peers, rng), attack.seed)
        self._edges = random_graph(attack.num_nodes, attack.degree, rng)
        links.set_mesh(mesh_of(self._edges, num_peers, 4, rng))
        # (one cell, though gossip of strangers can make it seem large: this measures which nodes it costs)
        overlay = OverlayConfig(digest=attack.config, cells=CellConfig(max_cell_nodes=2**20))
        self.world = World(links, num_peers, attack.seed, overlay, perform_request=self._perform)
        self._rng = rng
        self._honest = {peer_id(number) for number in range(attack.num_nodes)}
        self._strangers = [peer_id(number) for number in range(attack.num_nodes, num_peers)]
        self._targets = {
            stranger: rng.sample(range(attack.num_nodes), min(attack.reach, attack.num_nodes))
            for stranger in self._strangers
        }
        self._buckets: dict[tuple[int, bytes], TokenBucket] = {}
        self._sent: Counter[tuple[int, bytes]] = Counter()
        self._streams: Counter[tuple[bytes, bytes]] = Counter()
        self._num_invented = 0
        self._num_bytes = 0
        self.world.on_send, self.world.on_emit = self._note_sent, self._note_emitted

    def run(self, seconds: float, step: Step = lambda what: None) -> Harm:
        """Time without an attack until the nodes know each other, then ``seconds`` of attack while caches change, then
        no changes until all estimates are exact, at most for 300 s."""
        world, harm = self.world, self.harm
        step("nodes start")
        for number in range(self.attack.num_nodes):
            node = world.start(number)
            world.call(world.now + self._rng.uniform(0.0, _START_S), partial(world.serve, node))
        for one, other in self._edges:
            world.connect(one, other)
        world.run(world.now + 3 * _START_S)
        Churn(world, _CHANGES_PER_S, world.now + seconds).begin()
        for number, stranger in enumerate(self._strangers):
            self._arrive(stranger, says_hello=number % 5 == 1)
        before, ends = self._num_bytes, world.now + seconds
        while world.now < ends:
            step(f"attack, {ends - world.now:.0f} s left")
            self._sent.clear()
            world.run(min(world.now + 10.0, ends))
            harm.most_per_s = max([harm.most_per_s, *(count / 10.0 for count in self._sent.values())])
            for node in world.up():
                mine = node.overlay.estimates
                kept = mine.num_entries - sum(len(mine.entries(owner, NAMESPACE)) for owner in self._honest)
                harm.most_entries = max(harm.most_entries, kept)
            world.check_invariants(2)
        harm.honest_bytes_per_s = (self._num_bytes - before) / seconds / self.attack.num_nodes
        step("no changes any more")
        began = world.now
        while not is_converged(world) and world.now < began + 300.0:
            world.run(world.now + 1.0)
        harm.converged_s = world.now - began
        return harm

    # --- what strangers do -----------------------------------------------------------------------------------------

    def _arrive(self, stranger: bytes, says_hello: bool) -> None:
        number = self.world.number_of[stranger]
        for target in self._targets[stranger]:
            node = self.world.node(target)
            node.near.add(number)
            self.world.handle(node, Connected(stranger, address_of(number)))
            if says_hello:
                self._say(stranger, target, _hello())
            for _ in range(TOLD_AT_ONCE):
                self._say(stranger, target, self._made_up())
            self._repeat(TOLD_PER_S, partial(self._tell, stranger, target))
            self._repeat(10.0, partial(self._pester, stranger, target))
            self._repeat(ASKS_PER_S, partial(self._ask, stranger, target))
        self._repeat(GOSSIP_PER_S, partial(self._gossip, stranger))
        self._repeat(0.2, partial(self._lie, stranger))

    def _repeat(self, per_s: float, act: Callable[[], None]) -> None:
        """Acts for ever, at random intervals."""

        def again() -> None:
            act()
            self.world.call(self.world.now + self._rng.expovariate(per_s), again)

        self.world.call(self.world.now + self._rng.expovariate(per_s), again)

    def _say(self, stranger: bytes, target: int, message: Control) -> None:
        """Send ``message`` if the stranger is still connected."""
        node = self.world.node(target)
        if self.world.number_of[stranger] in node.near:
            self.world.handle(node, Received(stranger, message))

    def _made_up(self, num_blocks: int = 1) -> Repair:
        """A repair of an owner that no node ever met: without bytes, or whole if it has more than one block."""
        self._num_invented += 1
        owner = peer_id(10**6 + self._num_invented)
        own = self._owner(owner, num_blocks, self._num_invented << 20)
        head = own.advance(self.world.now).head
        if num_blocks > 1:
            return snapshot(head, own.entries)
        return Repair(head=head, mode=SAME, from_seq=0, upserts=b"", removes=b"")

    def _owner(self, owner: bytes, num_blocks: int, first: int) -> OwnDigest:
        own = OwnDigest(owner, NAMESPACE, int(self.world.now * 1000), sign_as(owner), self.attack.config)
        own.store(1, range(first, first + num_blocks))
        return own

    def _tell(self, stranger: bytes, target: int) -> None:
        self._say(stranger, target, self._made_up(self._rng.choice((1, 1, 1, 64))))

    def _gossip(self, stranger: bytes) -> None:
        node = self.world.node(self._rng.choice(self._targets[stranger]))
        if self.world.number_of[stranger] in node.near:
            self.world.publish(node, Publish(NAMESPACE, Announce(head=self._made_up().head)))

    def _lie(self, stranger: bytes) -> None:
        """Send two sets under one version to two nodes, and a newer one that the first may pass on to the second."""
        self._num_invented += 1
        owner = peer_id(10**6 + self._num_invented)
        one, other = self._rng.sample(self._targets[stranger], 2)
        for target, first in ((one, 5), (other, 9)):
            own = self._owner(owner, 3, first)
            self._say(stranger, target, snapshot(own.advance(self.world.now).head, own.entries))
        own = self._owner(owner, 3, 5)
        own.advance(self.world.now)
        own.store(2, [77])
        newer = own.advance(self.world.now)
        self._say(stranger, one, snapshot(newer.head, own.entries))
        self.world.publish(self.world.node(one), Publish(NAMESPACE, Announce(head=newer.head)))

    def _pester(self, stranger: bytes, target: int) -> None:
        rng = self._rng
        owner = rng.choice(sorted(self._honest))
        nothing = RepairRequest(owner=owner, namespace=NAMESPACE, epoch=0, seq=0, count=0, root=bytes(16))
        version = Version(owner=owner, namespace=NAMESPACE, epoch=2**60, seq=rng.randrange(2**30))
        vector = tuple(msgspec.structs.replace(version, owner=peer_id(rng.randrange(10**6))) for _ in range(64))
        way = rng.randrange(100)
        if way == 0:
            self._say(stranger, target, Reconcile(versions=vector[:MAX_VECTOR]))
        elif way < 3:
            self._say(stranger, target, _hello())
        else:
            self._say(stranger, target, nothing if way % 2 else Subscribe(namespace=NAMESPACE, seconds=20))

    def _ask(self, stranger: bytes, target: int) -> None:
        """Ask through ``target`` as entry node."""
        self.harm.num_asked += 1
        prompt = [self._rng.randrange(1_000)] * STRIDE
        request_id = self._rng.randbytes(16)
        ask = RequestSubmitted(request_id, NAMESPACE, prompt, Sampling(max_tokens=8), client=stranger)
        self.world.handle(self.world.node(target), ask)

    # --- what honest nodes do --------------------------------------------------------------------------------------

    def _perform(self, node: SimNode, effect: RequestEffect) -> None:
        """Each attempt is a stream that lasts for HOLD_S."""
        world = self.world
        if not isinstance(effect, Dispatch):
            self.harm.num_answered += type(effect).__name__ == "Finish"
            return
        pair = (node.peer, effect.peer)
        self._streams[pair] += 1
        if effect.peer != node.peer and self._streams[pair] > MAX_STREAMS:
            self.harm.over_rates["streams"] += 1
            server = world.node(world.number_of[effect.peer])
            world.call(world.now, partial(world.handle, server, Malformed(node.peer, "too many streams")))
        usage = Usage(prompt_tokens=1, cached_tokens=0, completion_tokens=1, queue_ms=0, prefill_ms=0, decode_ms=0)
        final = Final(reason="stop", usage=usage, vitals=IDLE)

        def end() -> None:
            self._streams[pair] -= 1
            world.handle(node, FrameReceived(effect.request_id, effect.attempt, final))

        world.call(world.now + HOLD_S, end)

    def _note_sent(self, node: SimNode, effect: Send, size: int) -> None:
        if effect.peer not in self._honest:
            return
        self._num_bytes += size
        pair = (node.number, effect.peer)
        self._sent[pair] += 1
        now = self.world.now
        bucket = self._buckets.setdefault(pair, TokenBucket(CONTROL_RATE, CONTROL_BURST, now))
        if not bucket.take(now):
            self.harm.over_rates["messages"] += 1
            other = self.world.node(self.world.number_of[effect.peer])
            charge = Malformed(node.peer, "too many messages", Refusal.TOO_MANY)
            self.world.call(now, partial(self.world.handle, other, charge))

    def _note_emitted(self, node: SimNode, effect: Emit) -> None:
        if effect.event == "peer_quarantined":
            peer = effect.fields["peer"]
            kind = "honest" if peer in self._honest else "strangers" if peer in self._strangers else "invented"
            self.harm.banned[kind] += 1


def _hello() -> Hello:
    served = Served(namespace=NAMESPACE, model="model", context_tokens=CONTEXT_TOKENS, vitals=IDLE)
    return Hello(wire_version=WIRE_VERSION, agent="stranger", served=(served,))
