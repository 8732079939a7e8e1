"""The swarm's models as one node knows them: the nodes that serve them, the exchange of this knowledge with peers, and
the search for a model.

Peers' reports are only hints. To find a model that no connected node serves, this node looks it up in the DHT and dials
its nodes, whose own Hello must name the model. If none can be dialled (they may be behind routers), the prompt enters
at a peer that is connected with one.
"""

import math
import random
import secrets
from collections import Counter, OrderedDict
from contextlib import suppress

import structlog
import trio
from blake3 import blake3

from mycelia.node.driver import OverlayDriver
from mycelia.node.engine.engine import Engine
from mycelia.node.models.catalogue import served_as
from mycelia.node.network.exchange import receive_opening
from mycelia.node.network.network import MessageStream, Network, NetworkError
from mycelia.node.queries.questions import ask_all, drawn, spread
from mycelia.node.queries.uses import PeerUses
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.views.state import ModelRow
from mycelia.proto.admission.limits import Limits
from mycelia.proto.admission.subnets import Places, of_client, subnet_of
from mycelia.proto.config import RoutingConfig
from mycelia.proto.events import Malformed
from mycelia.proto.overlay import NodeView, Overlay
from mycelia.proto.planes.directory import Directory, ModelKey, SeenModel, mark_of, shared_room
from mycelia.proto.routing.choose import wait_here_s
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import Models, ModelsQuery, Vitals

log = structlog.get_logger()

MODELS = "/mycelia/models/1"
"""A separate protocol, since an older node would treat this question as an offence."""
MAX_ROWS = 256
"""Models that are listed: peers can report any number of names."""
MAX_ENTRIES = 3
"""Nodes at which a prompt for another model may enter."""
ENTRY_TURN_S = 3_600.0
ASK_EVERY_S = 60.0
"""Peers pass on these reports, so nodes know all models of a swarm some minutes after its start."""
NUM_ASKED_STEADILY, NUM_ASKED_NOW = 3, 8
FRESH_S = 3.0
"""Shortest pause between questions that clients cause: many may list models or ask for models that no node serves."""
TELL_EVERY_S = 1.0
"""Time for which peers get the same answer, unless a node joins: peers may ask at any rate."""
ANSWERS_PER_S, ANSWERS_BURST = 1 / FRESH_S, 16.0
"""Answers to one subnet, in a private network to one peer: each may take 330 kB, and its question 30 bytes."""
ANSWER_DEADLINE_S = 2.0
LOOKUP_DEADLINE_S = 3.0
HELLO_DEADLINE_S = 2.0
FIND_DEADLINE_S = 8.0
"""Time for all these steps together, for a model that no client asked for before."""
MAX_FINDING = 4
"""Searches at once for this node's own clients, and as many for peers: a liar reports more models than a node can look
for. A client or a subnet has at most three of these places, and one if its address is public."""
MISSED_S, MAX_MISSED = 60.0, 128
"""Time for which namespaces whose nodes could not be dialled are not looked up again."""
MAX_MET = 16
"""Connections kept because of other models. Those without an open exchange are closed first."""
MAX_NAMESPACES = 2
"""Namespaces that are looked up for one model name."""


class SwarmModels:
    """Knows the swarm's models, exchanges this knowledge with peers and finds nodes for a model."""

    def __init__(self, network: Network, overlay: Overlay, driver: OverlayDriver, own: OwnModels) -> None:
        self._network = network
        self._overlay = overlay
        self._driver = driver
        self._own = own
        self._routing = RoutingConfig()
        self._directory = Directory()
        self._uses = PeerUses(network)
        self._asking = trio.Lock()
        self._asked_at = -math.inf
        self._told = Models(models=())
        self._told_at = -math.inf
        self._rows: list[ModelRow] = []
        self._rows_at = -math.inf
        self._rows_of: object = None
        """The own models, and the event of the next node that joins, when the rows were made."""
        self._answered = Limits[str](ANSWERS_PER_S, ANSWERS_BURST)
        self._told_before = driver.joined.next
        """The event of the next node that joins, as it was at the last answer."""
        self._finding: dict[str, trio.Event] = {}
        """Model that is being looked for -> the event that is set at the end of the search."""
        self._places_of_clients = Places(MAX_FINDING, per_key=MAX_FINDING)
        self._places_of_peers = Places(MAX_FINDING, per_key=MAX_FINDING)
        self._secret = secrets.token_bytes(16)
        self._missed: OrderedDict[bytes, float] = OrderedDict()
        """Namespace -> the time at which none of its nodes could be reached."""
        self._met: OrderedDict[bytes, None] = OrderedDict()
        """Peers that were dialled for another model, ordered by the last request for their model."""

    async def keep_asking(self) -> None:
        """Asks some peers about every ASK_EVERY_S. Never returns."""
        while True:
            joined = self._driver.joined
            if not self._peers():
                await joined.wait()
            await self._ask(NUM_ASKED_STEADILY)
            await trio.sleep(ASK_EVERY_S * random.uniform(0.75, 1.25))  # noqa: S311  jitter, no secret

    async def serve_stream(self, stream: MessageStream) -> None:
        """Answers one question of a peer. Raises RemoteError for another message, NetworkError for too many."""
        question = await receive_opening(stream)
        if not isinstance(question, ModelsQuery):
            raise RemoteError(f"a {type(question).__name__} where a ModelsQuery belongs")
        now = self._driver.now()
        if not self._answered.take(self._overlay.subnet(stream.peer), now):
            raise NetworkError("its network asks too often")
        if now - self._told_at >= TELL_EVERY_S or self._told_before is not self._driver.joined.next:
            self._told, self._told_at = Models(models=self._directory.told(self._seen(), now, len(self._own))), now
            self._told_before = self._driver.joined.next
        await stream.send(self._told)

    async def rows(self) -> list[ModelRow]:
        """See ``Api.models``. Asks peers first, for at most ANSWER_DEADLINE_S, unless their answers are recent."""
        await self._ask_now()
        return self.known_rows()

    def known_rows(self) -> list[ModelRow]:
        """The same without asking, at most TELL_EVERY_S old: each prompt for an unknown model looks here, and peers may
        have reported half a million nodes."""
        state, now = ([engine.info.name for engine in self._own], self._driver.joined.next), self._driver.now()
        if now - self._rows_at >= TELL_EVERY_S or self._rows_of != state:
            self._rows, self._rows_at, self._rows_of = self._counted_rows(), now, state
        return self._rows

    def _counted_rows(self) -> list[ModelRow]:
        own = {engine.info.name: place for place, engine in enumerate(self._own)}
        num_connected = Counter(dict.fromkeys(own, 1))
        for view in self._peers():
            num_connected.update({served.model for served in view.served})
        num_nodes, context_tokens = Counter[str](), Counter[str]()
        for known in self._directory.known(self._seen(), self._driver.now()):
            num_nodes[known.model] += known.num_nodes
            # (strangers' reports of a context's size do not change what its own nodes report)
            if known.num_seen or not num_connected[known.model]:
                context_tokens[known.model] = max(context_tokens[known.model], known.context_tokens)
        connected = sorted(
            filter(num_connected.get, num_nodes),
            key=lambda name: (own.get(name, len(own)), -num_connected[name], name),
        )
        told = [name for name in num_nodes if not num_connected[name]]
        order = shared_room(connected, told, MAX_ROWS)
        spaces = {served.model: served.namespace for view in self._peers() for served in view.served}
        facts = {model: ("", self._uses.kind_of(space)) for model, space in spaces.items()}
        facts |= {engine.info.name: (engine.info.reuse, engine.info.kind) for engine in self._own}
        rows = [
            ModelRow(name, num_nodes[name], context_tokens[name], num_connected[name], *facts.get(name, ()))
            for name in order
        ]
        return [*rows[: len(own)], *sorted(rows[len(own) :], key=lambda row: row.model)]

    def name_of(self, model: str) -> str:
        """The name in the swarm of the model that ``model`` means: itself, or what the catalogue says of it."""
        if self._own.named(model) is not None:
            return model
        return served_as(model, self.known_names)

    def known_names(self) -> list[str]:
        """The models of ``known_rows``."""
        return [row.model for row in self.known_rows()]

    def num_nodes(self, is_private: bool) -> int:
        """Nodes of the swarm, as far as one subnet alone could not make it believe: those that are connected, or the
        second largest of what subnets report. is_private: each peer counts, as in a private swarm."""
        told = Counter[str]()
        for peer, num in self._directory.num_told(self._driver.now()).items():
            name = self._overlay.counted_as(peer, is_private)
            told[name] = max(told[name], num)
        return max([1 + len(self._peers()), *sorted(told.values())[-2:-1]])

    def servers(self, model: str) -> list[bytes]:
        """At most MAX_ENTRIES connected nodes that serve ``model``, first those where a prompt begins soonest, to the
        second, and of these those with a free slot; equal ones in an order that changes after ENTRY_TURN_S, of as many
        subnets as possible. (If the one that claims the least load came first, one liar would get every prompt for any
        model that it names. If the order changed sooner, the next turn of a conversation would enter at a node that
        does not know where it is cached.)"""
        loads = {
            view.peer: (round(wait_here_s(served.vitals, 0, self._routing)), _is_full(served.vitals))
            for view in self._peers()
            for served in view.served
            if served.model == model
        }
        turn = b"%s %s %d " % (self._secret, model.encode(), self._driver.now() // ENTRY_TURN_S)
        order = spread(sorted(loads, key=lambda peer: blake3(turn + peer).digest(8)), self._overlay.subnet)
        return sorted(order, key=lambda peer: loads[peer])[:MAX_ENTRIES]

    def sooner(self, engine: Engine) -> list[bytes]:
        """At most MAX_ENTRIES connected nodes at which a prompt for the model of ``engine``, which is not loaded here,
        would begin sooner, the best first."""
        own_s = wait_here_s(engine.vitals(), 0, self._routing)
        return [peer for peer, wait_s in self._soonest(engine) if wait_s < own_s]

    async def find_sooner(self, engine: Engine) -> list[bytes]:
        """The same, or those that serve the model, if it begins sooner at none."""
        return self.sooner(engine) or self.servers(engine.info.name)

    def others(self, engine: Engine) -> list[bytes]:
        """At most MAX_ENTRIES connected nodes that serve the model of ``engine``, those where a prompt would begin
        soonest first."""
        return [peer for peer, _ in self._soonest(engine)]

    def _soonest(self, engine: Engine) -> list[tuple[bytes, float]]:
        """(Connected node that serves the model of ``engine``, seconds until a prompt would begin there)."""
        waits = {
            view.peer: wait_here_s(served.vitals, 0, self._routing) + self._overlay.round_trip_s(view.peer)
            for view in self._peers()
            for served in view.served
            if served.namespace == engine.info.namespace and served.vitals.slots
        }
        return sorted(waits.items(), key=lambda one: one[1])[:MAX_ENTRIES]

    async def find(self, model: str, client: bytes = b"", peer: bytes = b"") -> list[bytes]:
        """Connected peers at which a prompt for ``model`` can enter, the best first. These are nodes that serve it,
        which this node looks for and dials if none is connected, or otherwise peers that are connected with one. Takes
        at most FIND_DEADLINE_S. client, peer: the asking client or peer; if its share of searches is in use, only
        known nodes are returned."""
        if not self.servers(model):
            with trio.move_on_after(FIND_DEADLINE_S):
                while not self.servers(model) and (over := self._finding.get(model)) is not None:
                    await over.wait()  # (the search may have been cancelled, as its client left)
                if not self.servers(model):
                    await self._look_in_turn(model, client, peer)
        servers = self.servers(model)
        for peer in servers:
            if peer in self._met:
                self._met.move_to_end(peer)
        if servers:
            return servers
        connected = {view.peer for view in self._peers()}
        informants = self._directory.informants(model, self._driver.now() - 2 * FIND_DEADLINE_S)
        return [peer for peer in informants if peer in connected][:MAX_ENTRIES]

    def _peers(self) -> list[NodeView]:
        return self._overlay.nodes()

    def _seen(self) -> dict[ModelKey, SeenModel]:
        context_tokens, nodes = dict[ModelKey, int](), dict[ModelKey, set[int]]()
        for info in (engine.info for engine in self._own):
            neighbours = {owner.peer for owner in self._overlay.estimates.live(info.namespace)}
            context_tokens[info.namespace, info.name] = info.context_tokens
            nodes[info.namespace, info.name] = {mark_of(peer) for peer in (self._network.peer_id, *neighbours)}
        for view in self._peers():
            for served in view.served:
                key = (served.namespace, served.model)
                context_tokens[key] = max(served.context_tokens, context_tokens.get(key, 0))
                nodes.setdefault(key, set()).add(mark_of(view.peer))
        return {key: SeenModel(context_tokens[key], frozenset(marks)) for key, marks in nodes.items()}

    async def _ask_now(self) -> None:
        async with self._asking:
            if trio.current_time() - self._asked_at >= FRESH_S:
                await self._ask(NUM_ASKED_NOW)
                self._asked_at = trio.current_time()

    async def _ask(self, num_peers: int) -> None:
        served = {view.peer: [served.namespace for served in view.served] for view in self._peers()}
        chosen = drawn([*served], num_peers, self._overlay.subnet)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._uses.ask, {peer: served[peer] for peer in chosen})
            answers = await ask_all(self._network, MODELS, ModelsQuery(), chosen, ANSWER_DEADLINE_S)
        for peer, answer in answers.items():
            if isinstance(answer, Models):
                self._rows_at = -math.inf
                try:
                    self._directory.hear(peer, answer.models, self._driver.now())
                except RemoteError as exc:
                    self._driver.handle(Malformed(peer, str(exc)))

    async def _look_in_turn(self, model: str, client: bytes, peer: bytes) -> None:
        places = self._places_of_peers if peer else self._places_of_clients
        share = subnet_of(self._network.remote_address(peer)) if peer else of_client(client)
        if not places.take(peer or client, share, is_known=not (peer or client)):
            return
        over = self._finding[model] = trio.Event()
        try:
            await self._look_for(model)
        finally:
            over.set()
            del self._finding[model]
            places.free(peer or client, share)

    async def _look_for(self, model: str) -> None:
        """Connects with nodes that serve ``model``, if any can be found and dialled."""
        if self.servers(model):
            return
        await self._ask_now()
        for namespace in self._directory.namespaces(model, self._driver.now())[:MAX_NAMESPACES]:
            missed_at = self._missed.get(namespace, -math.inf)
            if not self.servers(model) and trio.current_time() - missed_at > MISSED_S:
                await self._meet(namespace, model)
                if not self.servers(model):
                    self._missed[namespace] = trio.current_time()
                    self._missed.move_to_end(namespace)
                    if len(self._missed) > MAX_MISSED:
                        self._missed.popitem(last=False)

    async def _meet(self, namespace: bytes, model: str) -> None:
        """Dials some nodes that the DHT names, and waits until one of them reports that it serves ``model``."""
        before = {view.peer for view in self._peers()}
        providers: list[bytes] = []
        with trio.move_on_after(LOOKUP_DEADLINE_S), suppress(NetworkError):
            providers = [peer for peer in await self._network.find_nodes(namespace) if peer not in before]
        chosen = random.sample(providers, min(MAX_ENTRIES, len(providers)))
        with trio.move_on_after(LOOKUP_DEADLINE_S):
            async with trio.open_nursery() as nursery:
                for peer in chosen:
                    nursery.start_soon(self._dial, peer)
        reached = [peer for peer in chosen if self._network.remote_address(peer)]
        with trio.move_on_after(HELLO_DEADLINE_S if reached else 0):
            while not self.servers(model):
                await self._driver.joined.wait()
        log.debug("model_looked_up", model=model, providers=len(providers), reached=len(reached))
        for peer in reached:
            self._met[peer] = None
            self._met.move_to_end(peer)
        while len(self._met) > MAX_MET:
            idle = (peer for peer in self._met if peer not in reached and not self._network.num_exchanges(peer))
            surplus = next(idle, next(iter(self._met)))
            del self._met[surplus]
            await self._network.disconnect(surplus)

    async def _dial(self, peer: bytes) -> None:
        with suppress(NetworkError):
            await self._network.dial(peer)


def _is_full(vitals: Vitals) -> bool:
    return vitals.active_requests + vitals.waiting_requests >= vitals.slots
