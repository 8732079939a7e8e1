"""The exchange of what clients ask for: each node reports what its own clients do (``proto/supply/demand.py``).

A report has models that others know anyway, and rates rounded to powers of two. So it shows neither a single request
nor a name that only its client knows. Only nodes that choose their models ask for reports.
"""

from collections.abc import Callable

from mycelia.node.driver import OverlayDriver
from mycelia.node.models.catalogue import catalogue_names, one_name
from mycelia.node.network.exchange import receive_opening
from mycelia.node.network.network import MessageStream, Network
from mycelia.node.queries.questions import ask_all, drawn
from mycelia.proto.overlay import Overlay
from mycelia.proto.supply.chooser import Reported, Serving
from mycelia.proto.supply.demand import OwnDemand
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import MAX_SMALL, Demand, DemandQuery, ModelDemand, Vitals

DEMAND = "/mycelia/demand/1"
"""A separate protocol, since an older node would treat this question as an offence."""
LACKING = frozenset(("unknown_model", "overloaded", "no_peer", "deadline", "timeout"))
"""Failures that more nodes of the model would have prevented."""
NUM_ASKED = 3
ANSWER_DEADLINE_S = 2.0
TELL_EVERY_S = 10.0
"""Time for which peers get the same answer."""


class DemandExchange:
    """One node's reports to others, and theirs to it."""

    def __init__(
        self, network: Network, overlay: Overlay, driver: OverlayDriver, own_models: Callable[[], list[str]]
    ) -> None:
        """own_models: those that this node serves."""
        self._network = network
        self._overlay = overlay
        self._driver = driver
        self._own_models = own_models
        self.own = OwnDemand()
        """What this node's clients ask for, by the catalogue's names. Read-only."""
        self._coming: Callable[[], tuple[str, ...]] | None = None
        self._told = Demand(models=(), coming=(), chooses=False)
        self._told_at = -TELL_EVERY_S

    def choose(self, coming: Callable[[], tuple[str, ...]]) -> None:
        """This node chooses its models from now on. coming: those that it is about to serve."""
        self._coming = coming

    def ended(self, model: str, outcome: str) -> None:
        """A request of this node's own clients ended. outcome: see ``Use.outcome``."""
        if outcome == "answered" or outcome in LACKING:
            self.own.ended(one_name(model)[:128], outcome == "answered", self._driver.now())

    async def serve_stream(self, stream: MessageStream) -> None:
        """Answers one question of a peer. Raises RemoteError for another message."""
        question = await receive_opening(stream)
        if not isinstance(question, DemandQuery):
            raise RemoteError(f"a {type(question).__name__} where a DemandQuery belongs")
        now = self._driver.now()
        if now - self._told_at >= TELL_EVERY_S:
            names = catalogue_names()
            public = {*names.values(), *(one_name(model, names) for model in self._own_models())}
            public.update(one_name(one.model, names) for view in self._overlay.nodes() for one in view.served)
            coming = self._coming() if self._coming else ()
            rows = self.own.rows(public.__contains__, now)
            self._told, self._told_at = Demand(models=rows, coming=coming, chooses=self._coming is not None), now
        await stream.send(self._told)

    async def ask(self, is_private: bool) -> list[Reported]:
        """The reports of some connected nodes. is_private: in a private swarm, whose members count one by one."""
        peers = [view.peer for view in self._overlay.nodes()]
        chosen = drawn(peers, NUM_ASKED, self._overlay.subnet)
        answers = await ask_all(self._network, DEMAND, DemandQuery(), chosen, ANSWER_DEADLINE_S)
        return [
            Reported(peer, self._overlay.counted_as(peer, is_private), _by_catalogue(answer))
            for peer, answer in answers.items()
            if isinstance(answer, Demand)
        ]

    def serving(self, is_private: bool) -> list[Serving]:
        """The connected nodes with the models that they serve."""
        names = catalogue_names()
        return [
            Serving(one_name(served.model, names), self._overlay.counted_as(view.peer, is_private), load)
            for view in self._overlay.nodes()
            for served in view.served
            if (load := _load(served.vitals)) is not None
        ]


def _load(vitals: Vitals) -> float | None:
    """None: the node takes nothing now (it leaves, is paused, or has no engine)."""
    if not vitals.slots or vitals.waiting_requests == MAX_SMALL:
        return None
    return (vitals.active_requests + vitals.waiting_requests) / vitals.slots


def _by_catalogue(demand: Demand) -> Demand:
    names = catalogue_names()
    rows = [
        ModelDemand(model=one_name(row.model, names), asked=row.asked, refused=row.refused) for row in demand.models
    ]
    coming = tuple(one_name(model, names) for model in demand.coming)
    return Demand(models=tuple(rows), coming=coming, chooses=demand.chooses)
