"""Which models the swarm has, and how many nodes serve each: what this node sees itself, and what others tell.

What a node is connected with it knows; for everything else it asks a few connected nodes now and then, and tells what
it heard on when it is asked itself. Every telling carries its *age*: how long ago somebody was connected with a node of
the model. It grows wherever the telling lies and never shrinks, so what is gone is forgotten everywhere after
HEARSAY_S, however often nodes tell it each other. Of a model that a node is connected with it tells only what it sees,
and of others only the youngest telling: else nodes that left would be passed on for as long as the model exists.

Hearsay is a hint: it is shown, and tells where to look for a model. Nobody is believed to serve one before his Hello.

Invariant: of each of the MAX_INFORMANTS nodes heard last the newest answer is kept, and nothing else; so what liars can
make up crowds out no other's word, and memory is bounded by the size of their answers.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
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
    """What this node knows itself of a model."""

    context_tokens: int
    """The most that any of the nodes takes."""
    nodes: frozenset[int]
    """Marks of those that serve it."""


@dataclass(frozen=True)
class KnownModel:
    """All that is known of a model."""

    namespace: bytes
    model: str
    context_tokens: int
    num_seen: int
    """Nodes that this one knows of itself."""
    num_nodes: int
    """At least so many, with those that others told of."""


@dataclass(frozen=True)
class _Telling:
    context_tokens: int
    born_at: float
    is_first_hand: bool
    packed: bytes
    """The nodes; unpacked they would take ten times the memory."""


def mark_of(peer: bytes) -> int:
    """What stands for a node in a telling: the last 8 bytes of its id, which are of its public key."""
    return int.from_bytes(peer[-8:], "big")


class Directory:
    """Time comes from the caller, in seconds."""

    def __init__(self) -> None:
        self._heard: OrderedDict[bytes, dict[ModelKey, _Telling]] = OrderedDict()

    def hear(self, informant: bytes, told: Sequence[ModelNodes], now: float) -> None:
        """The answer of a node, instead of its last one. Raises RemoteError for nodes that are not packed as they must
        be. Mutates."""
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
        """Every model: those in ``seen``, then those that most others told of first. Does not mutate."""
        heard = self._by_model(now)
        models = []
        for key in (*seen, *(key for key in _most_told(heard) if key not in seen)):
            own = seen.get(key)
            tellings = heard.get(key, [])
            nodes = set(own.nodes if own else ()).union(*(unpack_hashes(telling.packed) for telling in tellings))
            context_tokens = own.context_tokens if own else max(telling.context_tokens for telling in tellings)
            models.append(KnownModel(*key, context_tokens, len(own.nodes) if own else 0, len(nodes)))
        return models

    def told(self, seen: Mapping[ModelKey, SeenModel], now: float) -> tuple[ModelNodes, ...]:
        """What to tell who asks, at most MAX_MODELS: the first in ``seen``, which is this node's own, the others there
        with the most nodes, and what most others told of. A peer may say that it serves what it likes, but it is one
        node. Does not mutate."""
        own = list(seen)[:1]
        others = sorted(list(seen)[1:], key=lambda key: -len(seen[key].nodes))
        heard = self._by_model(now)
        rows = []
        for key in shared_room(own + others, [key for key in _most_told(heard) if key not in seen], MAX_MODELS):
            if view := seen.get(key):
                nodes = pack_hashes(nsmallest(MAX_MODEL_NODES, view.nodes))
                rows.append(_model_nodes(key, view.context_tokens, 0, nodes))
            else:
                youngest = max(heard[key], key=lambda telling: telling.born_at)
                # (0 would say that this node is connected with one of them)
                age_s = max(round(now - youngest.born_at), 1)
                rows.append(_model_nodes(key, youngest.context_tokens, age_s, youngest.packed))
        return tuple(rows)

    def namespaces(self, model: str, now: float) -> list[bytes]:
        """In which others told of nodes that serve it, the one that most told of first. Does not mutate."""
        return [namespace for namespace, name in _most_told(self._by_model(now)) if name == model]

    def informants(self, model: str, since: float) -> list[bytes]:
        """Who said since then that it is itself connected with a node that serves it. Does not mutate."""
        return [
            informant
            for informant, tellings in self._heard.items()
            if any(
                key[1] == model and telling.is_first_hand and telling.born_at >= since
                for key, telling in tellings.items()
            )
        ]

    def _by_model(self, now: float) -> dict[ModelKey, list[_Telling]]:
        """What is young enough; of each informant one telling."""
        found: dict[ModelKey, list[_Telling]] = {}
        for tellings in self._heard.values():
            for key, telling in tellings.items():
                if now - telling.born_at <= HEARSAY_S:
                    found.setdefault(key, []).append(telling)
        return found


def shared_room(seen: Sequence[T], heard: Sequence[T], most: int) -> list[T]:
    """At most ``most``: the first ones of both, where half of the room is for ``heard`` if it needs that much."""
    return [*seen[: most - min(len(heard), most // 2)], *heard][:most]


def _most_told(heard: Mapping[ModelKey, Sequence[_Telling]]) -> list[ModelKey]:
    return sorted(heard, key=lambda key: (-len(heard[key]), key))


def _model_nodes(key: ModelKey, context_tokens: int, age_s: int, packed: bytes) -> ModelNodes:
    return ModelNodes(namespace=key[0], model=key[1], context_tokens=context_tokens, age_s=age_s, nodes=packed)
