"""One engine for several swarms: each gets a share of it, which is an ``Engine`` of its own to a node.

A share answers the prompts of its swarm. It gives each request the swarm's name (``Owner.swarm``), under which the
engine caches what it computes, and passes on only the changes of the cache that concern this swarm. So a node neither
reuses nor announces what was computed for another swarm. The weights, the KV cells, the queue and the load are common.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

import numpy as np
import trio
from numpy.typing import NDArray

from mycelia.node.engine.changes import ChangeLog
from mycelia.node.engine.engine import CacheChange, Engine, EngineItem, EngineRequest, Residence
from mycelia.node.signals import Signal
from mycelia.proto.admission.subnets import of_member
from mycelia.proto.answers.spelling import Vocabulary
from mycelia.proto.cache.sharing import split_swarm, swarm_of
from mycelia.proto.wire.messages import Conversation, Vitals


class EngineShare:
    """The part of an engine that one swarm has. Made by ``EngineShares.of``; an ``Engine``."""

    def __init__(self, engine: Engine, salt: bytes, is_first: bool) -> None:
        self.info = engine.info.in_swarm(salt)
        self._engine = engine
        self._swarm = swarm_of(salt)
        self._is_first = is_first
        self._vitals_told = engine.vitals()
        self._vitals_changed = Signal()
        self._changes = ChangeLog()
        self._changed = Signal()

    @property
    def vocabulary(self) -> Vocabulary | None:
        return self._engine.vocabulary

    @property
    def residence(self) -> Residence:
        return self._engine.residence

    def vitals(self) -> Vitals:
        return self._engine.vitals()

    async def vitals_changes(self) -> Vitals:
        await trio.lowlevel.checkpoint()
        while (vitals := self._engine.vitals()) == self._vitals_told:
            await self._vitals_changed.wait()
        self._vitals_told = vitals
        return vitals

    async def detokenize(self, sequences: Sequence[Sequence[int]]) -> list[str]:
        return await self._engine.detokenize(sequences)

    async def tokenize_chat(self, conversation: Conversation, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        return await self._engine.tokenize_chat(conversation, client, self._subnet(client, subnet))

    async def tokenize_text(self, text: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        return await self._engine.tokenize_text(text, client, self._subnet(client, subnet))

    async def tokenize_pair(self, query: str, document: str, client: bytes = b"", subnet: str = "") -> Sequence[int]:
        return await self._engine.tokenize_pair(query, document, client, self._subnet(client, subnet))

    async def embed(
        self, texts: Sequence[Sequence[int]], client: bytes = b"", subnet: str = ""
    ) -> list[NDArray[np.float32]]:
        return await self._engine.embed(texts, client, self._subnet(client, subnet))

    def generate(self, request: EngineRequest) -> AbstractAsyncContextManager[AsyncIterator[EngineItem]]:
        subnet = self._subnet(request.client, request.subnet)
        if self._swarm or subnet != request.subnet:
            request = replace(request, subnet=subnet, owner=request.owner._replace(swarm=self._swarm))
        return self._engine.generate(request)

    async def cache_changes(self) -> CacheChange:
        await trio.lowlevel.checkpoint()
        while not self._changes:
            await self._changed.wait()
        return self._changes.take()

    def _subnet(self, client: bytes, subnet: str) -> str:
        return of_member(client, subnet) if self._is_first and client else subnet

    def add_change(self, change: CacheChange) -> None:
        self._changes.add(change)
        self._changed.notify()

    def note_vitals(self) -> None:
        self._vitals_changed.notify()


class EngineShares:
    """An engine and its shares. ``run`` must be running while they are used."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shares: dict[bytes, EngineShare] = {}
        self._swarm_of_leaf: dict[int, bytes] = {}

    def of(self, salt: bytes, is_first: bool = False) -> EngineShare:
        """The share of the swarm whose namespaces have this salt; empty: the open network. is_first: its clients come
        before those of other shares. Call it once for each swarm, before ``run``."""
        share = self._shares[swarm_of(salt)] = EngineShare(self._engine, salt, is_first)
        return share

    async def run(self) -> None:
        """Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_vitals)
            while True:
                self._distribute(await self._engine.cache_changes())

    async def _follow_vitals(self) -> None:
        while True:
            await self._engine.vitals_changes()
            for share in self._shares.values():
                share.note_vitals()

    def _distribute(self, change: CacheChange) -> None:
        stored = {swarm: list[tuple[int, Sequence[int]]]() for swarm in self._shares}
        evicted = {swarm: list[int]() for swarm in self._shares}
        if change.reset:
            self._swarm_of_leaf.clear()
        for leaf in change.evicted:
            swarm = self._swarm_of_leaf.pop(leaf, None)
            if swarm in evicted:
                evicted[swarm].append(leaf)
        for leaf, path in change.stored:
            swarm, own_path = split_swarm(path)
            if swarm in stored:  # (other swarms, of earlier runs, may have left prefixes on disk)
                self._swarm_of_leaf[leaf] = swarm
                stored[swarm].append((leaf, own_path))
        for swarm, share in self._shares.items():
            if change.reset or stored[swarm] or evicted[swarm]:
                share.add_change(CacheChange(stored[swarm], evicted[swarm], change.reset))
