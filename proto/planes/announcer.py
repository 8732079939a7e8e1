"""When this node's digests go out: deltas on average one per interval, a few of them early, and heartbeats between.

The interval stretches while more is received than a node should: all nodes see the same excess and react alike.
"""

import random
from collections.abc import Mapping

from mycelia.proto.cache.sharing import unpaint
from mycelia.proto.cells.cells import CellPosition
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.budget import Traffic
from mycelia.proto.digests.digest import OwnDigest
from mycelia.proto.effects import CancelTimer, Effect, Publish, SetTimer
from mycelia.proto.events import CacheChanged, Timer
from mycelia.proto.planes.sender import Sender
from mycelia.proto.wire.blocks import STRIDE, block_hashes


def jittered(interval_s: float, config: DigestConfig, rng: random.Random) -> float:
    """``interval_s``, a little longer or shorter at random, so that nodes do not act in step."""
    return interval_s * rng.uniform(1 - config.jitter, 1 + config.jitter)


class Announcer:
    def __init__(
        self,
        config: DigestConfig,
        rng: random.Random,
        own: Mapping[bytes, OwnDigest],
        positions: Mapping[bytes, CellPosition],
        sender: Sender,
        traffic: Traffic,
    ) -> None:
        self._config = config
        self._rng = rng
        self._own = own
        self._positions = positions
        self._sender = sender
        self._traffic = traffic
        self._stretch = 1.0
        """Factor on the interval between deltas, from the traffic received."""
        self._delta_at: dict[bytes, float] = {}
        self._paced_until: dict[bytes, float] = {}
        """When the deltas sent so far are paid for, at one per interval."""
        self._due: dict[bytes, float] = {}

    def on_served(self, namespace: bytes, now: float) -> list[Effect]:
        """A new namespace. Its head waits a moment, to include what the engine kept over a restart."""
        return self._set_due(namespace, now + self._config.delta_delay_s)

    def on_withdrawn(self, namespace: bytes) -> list[Effect]:
        """Nothing more goes out, heartbeats neither."""
        self._due.pop(namespace, None)
        return [CancelTimer(Timer("digest", namespace=namespace))]

    def hasten(self, namespace: bytes, now: float) -> list[Effect]:
        """Other nodes shall learn of this one soon."""
        return self._set_due(namespace, min(self._due[namespace], self._next_delta(namespace, now)))

    def on_cache_changed(self, event: CacheChanged, now: float) -> list[Effect]:
        own = self._own[event.namespace]
        if event.reset:
            own.reset()
        for leaf in event.evicted:
            own.evict(leaf)
        for leaf, path in event.stored:
            tokens, num_open, tag, _ = unpaint(path)
            own.store(leaf, block_hashes(event.namespace, tokens), num_open // STRIDE, tag)
        at = self._next_delta(event.namespace, now)
        if at >= self._due[event.namespace] or not own.is_behind():
            return []
        return self._set_due(event.namespace, at)

    def publish(self, namespace: bytes, now: float) -> list[Effect]:
        """Sends the digest whose timer is due, and sets the timer for the next one."""
        ready_at = self._sender.ready_at(now)
        if ready_at > now:
            self._traffic.num_postponed += 1
            return self._set_due(namespace, ready_at)
        if self._own[namespace].is_behind():
            paced_from = max(self._paced_until.get(namespace, 0.0), now)
            self._paced_until[namespace] = paced_from + jittered(self._stretched_interval(now), self._config, self._rng)
            self._delta_at[namespace] = now
        position = self._positions[namespace]
        message = self._own[namespace].advance(now, position.bits)
        publishes = [Publish(namespace, message, cell) for cell in position.cells()]
        self._sender.spend(message, now, len(publishes))
        heartbeat = now + jittered(self._config.heartbeat_s, self._config, self._rng)
        return [*publishes, *self._set_due(namespace, heartbeat)]

    def _next_delta(self, namespace: bytes, now: float) -> float:
        """When the next delta may go out: on average one per interval, a few of them early (GCRA)."""
        if self._own[namespace].head is None:
            return self._due[namespace]
        ahead = (self._config.delta_burst - 1) * self._config.delta_interval_s
        budget = self._paced_until.get(namespace, 0.0) - ahead
        spaced = self._delta_at.get(namespace, 0.0) + self._config.delta_min_gap_s
        return max(now + self._config.delta_delay_s, budget, spaced)

    def _stretched_interval(self, now: float) -> float:
        """The interval between deltas, stretched by the square root of the excess each time until the traffic fits, and
        back. (By the whole excess it would swing, because all nodes see the same and react alike.)"""
        excess = self._traffic.digests_per_s(now) / self._config.receive_bytes_per_s
        self._stretch = min(max(self._stretch * excess**0.5, 1.0), self._config.max_stretch)
        return self._config.delta_interval_s * self._stretch

    def _set_due(self, namespace: bytes, at: float) -> list[Effect]:
        if self._due.get(namespace) == at:
            return []
        self._due[namespace] = at
        return [SetTimer(Timer("digest", namespace=namespace), at)]
