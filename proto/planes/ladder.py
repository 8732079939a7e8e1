"""The prefix ladder in a node: when to provide, when a request waits for a lookup, which nodes to connect to.

The rules are in ``cells/ladder.py``; here are time, peers and effects. The performer of ``FindProviders`` reports each
key once with ``ProvidersFound``; missing reports are given up after ``lookup_over_s``.
"""

import random
from collections.abc import Callable, Sequence

from mycelia.proto.cells.ladder import Lookups, Publisher, ladder_key, rungs_of
from mycelia.proto.config import LadderConfig
from mycelia.proto.effects import Connect, Disconnect, Effect, FindProviders, Provide, SetTimer
from mycelia.proto.events import ModelServed, ProvidersFound, Timer
from mycelia.proto.planes.digests import DigestPlane
from mycelia.proto.planes.membership import Membership

_ONE_CELL_PAUSE_S = 60.0
"""How often a node that provides nothing checks whether there are other cells now."""


class LadderPlane:
    """Provides this node's rungs and looks up the rungs of its requests."""

    def __init__(
        self, me: bytes, config: LadderConfig, rng: random.Random, members: Membership, digests: DigestPlane
    ) -> None:
        self._config = config
        self._rng = rng
        self._members = members
        self._digests = digests
        self._publishers: dict[bytes, Publisher] = {}
        self._lookups = Lookups(me, config, rng)
        self.is_busy: Callable[[bytes], bool] = lambda peer: False
        """Whether a peer is answering a request of this node: its connection stays."""

    def on_served(self, event: ModelServed, now: float) -> list[Effect]:
        if event.namespace in self._publishers:
            return []
        self._publishers[event.namespace] = Publisher(self._config)
        return [self._again(event.namespace, now)]

    def on_due(self, namespace: bytes, now: float) -> list[Effect]:
        own = self._digests.own(namespace)
        effects: list[Effect] = [self._again(namespace, now)]
        if own is None or not self._is_part(namespace):
            return effects
        wanted = (block for chain in own.chains() for _, block in rungs_of(chain))
        block = self._publishers[namespace].next_block(wanted, now)
        return effects if block is None else [Provide(namespace, ladder_key(namespace, block)), *effects]

    def may_help(self, namespace: bytes, num_tokens: int) -> bool:
        """Whether ``seek`` may help a prompt of this many tokens."""
        return num_tokens >= self._config.min_prompt_tokens and self._is_part(namespace)

    def seek(
        self, request_id: bytes, namespace: bytes, chain: Sequence[int], num_tokens: int, best: int, now: float
    ) -> list[Effect]:
        """The lookup for a prompt of which ``best`` tokens are known to be held; empty if it shall not wait.
        ``on_wait_over`` comes when it has waited long enough."""
        keys = self._lookups.begin(request_id, namespace, chain, num_tokens, best, now)
        if not keys:
            return []
        vitals = self._members.own_vitals(namespace)
        wait_s = self._lookups.wait_s(num_tokens, best, vitals.prefill_rate if vitals else 0)
        timer = Timer("lookup", request_id, namespace)
        return [FindProviders(request_id, namespace, keys), SetTimer(timer, now + wait_s)]

    def on_found(self, event: ProvidersFound, now: float) -> tuple[list[Effect], list[bytes]]:
        """The effects, and the peers whose digests the request may wait for if it still waits; no peers if nothing more
        will come. Both are empty while other keys are looked up."""
        if not self._lookups.found(event.request_id, event.key, event.providers):
            return [], []
        return self._connect(event.request_id, now)

    def is_looking(self, request_id: bytes) -> bool:
        return self._lookups.over_at(request_id) is not None

    def on_wait_over(self, request_id: bytes, namespace: bytes, now: float) -> list[Effect]:
        """The request waits no longer; later finds serve later requests."""
        over_at = self._lookups.over_at(request_id)
        if over_at is None:
            return []
        if now < over_at:
            return [SetTimer(Timer("lookup", request_id, namespace), over_at)]
        return self._connect(request_id, now)[0]

    def on_peer_lost(self, peer: bytes) -> None:
        self._lookups.forget(peer)
        self._digests.unfollow(peer)

    def check_invariants(self) -> None:
        self._lookups.check_invariants()

    def _connect(self, request_id: bytes, now: float) -> tuple[list[Effect], list[bytes]]:
        effects: list[Effect] = []
        strangers = []
        for peer in self._lookups.end(request_id):
            if self._members.is_connected(peer):
                continue
            may_dial, surplus = self._lookups.may_dial(peer, self.is_busy)
            if not may_dial:
                break
            strangers.append(peer)
            self._digests.follow(peer)
            effects.append(Connect(peer))
            if surplus is not None:
                self._digests.unfollow(surplus)
                effects.append(Disconnect(surplus, "room for a node that holds more", now))
        return effects, strangers

    def _is_part(self, namespace: bytes) -> bool:
        """Whether there are other cells."""
        position = self._digests.position(namespace)
        return position is not None and position.bits > 0

    def _again(self, namespace: bytes, now: float) -> SetTimer:
        pause_s = self._publishers[namespace].pause_s if self._is_part(namespace) else _ONE_CELL_PAUSE_S
        return SetTimer(Timer("ladder", namespace=namespace), now + pause_s * self._rng.uniform(1.0, 1.2))
