"""Inspect streams, which answer people's questions about a node; models streams: what the swarm serves; and demand
streams: what it is asked for."""

from typing import Annotated

from msgspec import Meta, field

from mycelia.proto.wire.bounds import (
    MAX_COMING,
    MAX_DEMANDED,
    MAX_LINKS,
    MAX_MODEL_NODES,
    MAX_MODELS,
    MAX_TRACE_STEPS,
    Counter,
    Kind,
    ModelName,
    NamespaceKey,
    PeerId,
    Record,
    RequestId,
    Small,
)


class TraceStep(Record, frozen=True, kw_only=True):
    at_ms: Small = field(name="1")
    """Time since the first step at this node."""
    name: Annotated[str, Meta(min_length=1, max_length=32)] = field(name="2")
    detail: Annotated[str, Meta(max_length=256)] = field(name="3", default="")
    peer: Annotated[bytes, Meta(max_length=64)] = field(name="4", default=b"")
    """The other node involved; empty: none."""


class TraceQuery(Kind, frozen=True, kw_only=True, tag=20):
    """Asks what happened to a request here; answered by Trace. Any peer that knows the id may ask: ids are random and
    are sent nowhere else."""

    request_id: RequestId = field(name="1")


class Trace(Kind, frozen=True, kw_only=True, tag=21):
    """The steps of a request at this node, in order; the first ones of too many; none: unknown or forgotten."""

    steps: Annotated[tuple[TraceStep, ...], Meta(max_length=MAX_TRACE_STEPS)] = field(name="1")


class Link(Record, frozen=True, kw_only=True):
    """A node that the sender is connected to."""

    peer: PeerId = field(name="1")
    round_trip_ms: Small = field(name="2")
    """0: not measured."""


class LinksQuery(Kind, frozen=True, kw_only=True, tag=22):
    """Asks which nodes the receiver is connected to; answered by Links."""


class Links(Kind, frozen=True, kw_only=True, tag=23):
    """The nodes that the sender is connected to; the nearest ones if there are too many."""

    links: Annotated[tuple[Link, ...], Meta(max_length=MAX_LINKS)] = field(name="1")


class ReachQuery(Kind, frozen=True, kw_only=True, tag=24):
    """Asks where the receiver sees the sender, and whether this TCP port is open there. Answered by Reach."""

    port: Annotated[int, Meta(ge=1, le=65_535)] = field(name="1")


class Reach(Kind, frozen=True, kw_only=True, tag=25):
    """The sender's view of its peer."""

    address: Annotated[str, Meta(max_length=128)] = field(name="1")
    """Multiaddr of the other end of the connection."""
    time_ms: Counter = field(name="2")
    """The sender's clock: ms since 1970."""
    outcome: Annotated[str, Meta(pattern="^(open|closed|untried)$")] = field(name="3")
    """Result of the connection to the port; untried: the sender had too many such queries."""


class ModelNodes(Record, frozen=True, kw_only=True):
    """A model, and the nodes that serve it as far as the sender knows, see ``directory.py``."""

    namespace: NamespaceKey = field(name="1")
    model: ModelName = field(name="2")
    context_tokens: Small = field(name="3")
    age_s: Small = field(name="4")
    """How long ago any node was connected with a node of the model; 0: the sender is connected with one, or is one."""
    nodes: Annotated[bytes, Meta(max_length=8 * MAX_MODEL_NODES)] = field(name="5")
    """The last 8 bytes of each node's peer id, packed like block hashes."""


class ModelsQuery(Kind, frozen=True, kw_only=True, tag=26):
    """Asks which models the receiver knows of; answered by Models."""


class Models(Kind, frozen=True, kw_only=True, tag=27):
    """The models that the sender knows of; the surest ones if there are too many."""

    models: Annotated[tuple[ModelNodes, ...], Meta(max_length=MAX_MODELS)] = field(name="1")


class ModelDemand(Record, frozen=True, kw_only=True):
    """How often the sender's own clients asked for a model lately. Rates are rounded to powers of two."""

    model: ModelName = field(name="1")
    asked: Small = field(name="2")
    """Requests per hour."""
    refused: Small = field(name="3")
    """Those of ``asked`` that nobody answered."""


class DemandQuery(Kind, frozen=True, kw_only=True, tag=38):
    """Asks what the receiver's clients ask for; answered by Demand."""


class Demand(Kind, frozen=True, kw_only=True, tag=39):
    """What the sender's own clients ask for, first-hand: never what it heard from others."""

    models: Annotated[tuple[ModelDemand, ...], Meta(max_length=MAX_DEMANDED)] = field(name="1")
    coming: Annotated[tuple[ModelName, ...], Meta(max_length=MAX_COMING)] = field(name="2")
    """Models that the sender is about to serve, or serves since less than an hour."""
    chooses: bool = field(name="3")
    """Whether the sender itself chooses the models that it serves, see ``supply/chooser.py``."""


Inspect = TraceQuery | Trace | LinksQuery | Links | ReachQuery | Reach
