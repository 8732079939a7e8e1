"""Which models the swarm has, and how many nodes serve each: what this node sees itself, and what others report.

A node knows the models of its connected nodes. For all others it asks a few connected nodes from time to time, and
passes on what it heard when it is asked itself. Every report carries its *age*: how long ago any node was connected
with a node of the model. The age grows at every holder and never shrinks, so all nodes forget a model that is gone
after HEARSAY_S, however often they pass it on. About a model of its connected nodes a node reports only what it sees,
about others only the youngest report. Otherwise nodes that left would stay in reports as long as the model exists.

A report is a hint: it is displayed, and says where to look for a model. No node counts as serving one before its Hello.

Invariant: only the newest answer of each of the MAX_INFORMANTS nodes heard last is kept. So invented reports push out
no other node's reports, and memory is bounded by the size of the answers.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import TypeVar

from mycelia.proto.digests.digest import pack_hashes, unpack_hashes
from mycelia.proto.wire.messages import MAX_MODEL_NODES, MAX_MODELS, ModelNodes

T = TypeVar("T")

HEARSAY_S = 300.0
MAX_INFORMANTS = 16

ModelKey = tuple[bytes, str]
"""Namespace and name: nodes may serve different files under one name."""


@dataclass(frozen=True)
class SeenModel:
    """A model as this node itself sees it."""

    context_tokens: int
    """The longest context of any of the nodes."""
    nodes: frozenset[int]
    """Marks of the nodes that serve it."""


@dataclass(frozen=True)
class KnownModel:
    namespace: bytes
    model: str
    context_tokens: int
    num_seen: int
    """Nodes that this node sees itself."""
    num_nodes: int
    """At least this many, with those in other nodes' reports."""


@dataclass(frozen=True)
class _Telling:
    context_tokens: int
    born_at: float
    is_first_hand: bool
    packed: bytes
    """The nodes; unpacked they would take ten times the memory."""


def mark_of(peer: bytes) -> int:
    """The mark of a node in a report: the last 8 bytes of its id, which are part of its public key."""
    return int.from_bytes(peer[-8:], "big")


class Directory:
    """The reports heard and what follows from them. The caller gives the time, in seconds."""

    def __init__(self) -> None:
        self._heard: OrderedDict[bytes, dict[ModelKey, _Telling]] = OrderedDict()

    def hear(self, informant: bytes, told: Sequence[ModelNodes], now: float) -> None:
        """Store the answer of a node in place of its last one. Raises RemoteError for wrongly packed nodes. Mutates."""
        for one in told:
            unpack_hashes(one.nodes)
        self._heard[informant] = {
            (one.namespace, one.model): _Telling(one.context_tokens, now - one.age_s, not one.age_s, one.nodes)
            for one in told
            if one.nodes
        }
        self._heard.move_to_end(informant)
        if len(self._heard) > MAX_INFORMANTS:
            self._heard.popitem(last=False)

    def known(self, seen: Mapping[ModelKey, SeenModel], now: float) -> list[KnownModel]:
        """Every model: first those in ``seen``, then the others, those in most reports first. Does not mutate."""
        heard = self._by_model(now)
        models = []
        for key in (*seen, *(key for key in _most_told(heard) if key not in seen)):
            own = seen.get(key)
            tellings = heard.get(key, [])
            nodes = set(own.nodes if own else ()).union(*(unpack_hashes(telling.packed) for telling in tellings))
            context_tokens = own.context_tokens if own else max(telling.context_tokens for telling in tellings)
            models.append(KnownModel(*key, context_tokens, len(own.nodes) if own else 0, len(nodes)))
        return models

    def told(self, seen: Mapping[ModelKey, SeenModel], now: float, num_own: int = 1) -> tuple[ModelNodes, ...]:
        """The answer to a query, at most MAX_MODELS: the first ``num_own`` in ``seen``, which are this node's own, then
        those there with the most nodes (a peer is one node), and those in most reports. Does not mutate."""
        own = list(seen)[:num_own]
        others = sorted(list(seen)[num_own:], key=lambda key: -len(seen[key].nodes))
        heard = self._by_model(now)
        rows = []
        for key in shared_room(own + others, [key for key in _most_told(heard) if key not in seen], MAX_MODELS):
            if view := seen.get(key):
                nodes = pack_hashes(nsmallest(MAX_MODEL_NODES, view.nodes))
                rows.append(_model_nodes(key, view.context_tokens, 0, nodes))
            else:
                youngest = max(heard[key], key=lambda telling: telling.born_at)
                # (0 would say that this node is connected with a node of it)
                age_s = max(round(now - youngest.born_at), 1)
                rows.append(_model_nodes(key, youngest.context_tokens, age_s, youngest.packed))
        return tuple(rows)

    def namespaces(self, model: str, now: float) -> list[bytes]:
        """Namespaces with reported nodes that serve ``model``, those in most reports first. Does not mutate."""
        return [namespace for namespace, name in _most_told(self._by_model(now)) if name == model]

    def informants(self, model: str, since: float) -> list[bytes]:
        """Nodes that reported, since ``since``, to be connected to a node of ``model`` themselves. Does not mutate."""
        return [
            informant
            for informant, tellings in self._heard.items()
            if any(
                key[1] == model and telling.is_first_hand and telling.born_at >= since
                for key, telling in tellings.items()
            )
        ]

    def num_told(self, now: float) -> dict[bytes, int]:
        """Informant -> the nodes of all models with which it reported to be connected itself. (What it heard may be
        another's lie.) Does not mutate."""

        def nodes(tellings: Iterable[_Telling]) -> set[int]:
            fresh = (one for one in tellings if one.is_first_hand and now - one.born_at <= HEARSAY_S)
            return set[int]().union(*(unpack_hashes(one.packed) for one in fresh))

        return {informant: len(nodes(tellings.values())) for informant, tellings in self._heard.items()}

    def _by_model(self, now: float) -> dict[ModelKey, list[_Telling]]:
        """Reports that are young enough, one per informant."""
        found: dict[ModelKey, list[_Telling]] = {}
        for tellings in self._heard.values():
            for key, telling in tellings.items():
                if now - telling.born_at <= HEARSAY_S:
                    found.setdefault(key, []).append(telling)
        return found


def shared_room(seen: Sequence[T], heard: Sequence[T], most: int) -> list[T]:
    """The first ones of both, at most ``most``; half of the room is for ``heard`` if it needs that much."""
    return [*seen[: most - min(len(heard), most // 2)], *heard][:most]


def _most_told(heard: Mapping[ModelKey, Sequence[_Telling]]) -> list[ModelKey]:
    return sorted(heard, key=lambda key: (-len(heard[key]), key))


def _model_nodes(key: ModelKey, context_tokens: int, age_s: int, packed: bytes) -> ModelNodes:
    return ModelNodes(namespace=key[0], model=key[1], context_tokens=context_tokens, age_s=age_s, nodes=packed)
