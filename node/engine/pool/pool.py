"""The engines of a node that serves several models, or some only when they are asked for: one plan for their memory.

``proto/loading/loader.py`` decides; here its effects are carried out. Each model has a folder for the prefixes that it
keeps. Where there is shared memory the folders lie in it and count for the plan; with a cache directory of the user's
they lie there, and count only for its own bound.
"""

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import assert_never

import structlog
import trio

from mycelia.node.engine.engine import Engine
from mycelia.node.engine.pool.facts import Facts, FactsFile, guessed_bytes, guessed_load_s
from mycelia.node.engine.pool.memory import memory_folder, resident_bytes, trim, usable_shared_bytes
from mycelia.node.engine.pool.pooled import PooledEngine
from mycelia.node.engine.settings import EngineSettings, available_memory_bytes
from mycelia.node.errors import BusyError
from mycelia.node.signals import Signal
from mycelia.proto.cache.tier import GIB, MIB
from mycelia.proto.loading.events import (
    Declared,
    Effect,
    Event,
    Keep,
    Learned,
    Load,
    Loaded,
    LoadFailed,
    Looked,
    Measured,
    Refuse,
    Unload,
    Unloaded,
    Withdrawn,
)
from mycelia.proto.loading.loader import RETRY_S, Loader, State
from mycelia.proto.loading.plan import KEPT_SHARE
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

MEMORY_SHARE = 0.8
"""The part of the memory that is free at the start which is planned with, unless the user says otherwise."""
MEASURE_S = 10.0
GROWTH_BYTES = 64 * MIB
"""What an engine takes more than after its load, once it has computed long prompts."""


@dataclass(frozen=True)
class PoolModel:
    """A model of a pool. settings: ``cache_dir``, ``ram_tier_mib`` and ``disk_tier_gib`` are of all together."""

    settings: EngineSettings
    stays: bool = True
    """Loaded from the start where there is room; otherwise when it is asked for."""

    @property
    def name(self) -> str:
        return self.settings.model_name or self.settings.model_path.stem


@dataclass(frozen=True)
class _Entry:
    engine: PooledEngine
    folder: Path | None
    facts: FactsFile
    scope: trio.CancelScope


class EnginePool:
    """The engines of several models. Made by ``open_pool``."""

    def __init__(
        self,
        models: Sequence[PoolModel],
        data_dir: Path,
        budget: int,
        folder: Path | None,
        most_kept: int | None,
        nursery: trio.Nursery,
    ) -> None:
        """folder: a folder in memory; None: there is none. most_kept: see ``Loader``."""
        self._nursery = nursery
        self._data_dir = data_dir
        self._budget = budget
        self._folder = folder if most_kept else None
        self._looked = Signal()
        self._numbers = count()
        stored = [FactsFile(data_dir, model.settings) for model in models]
        known = [file.load() for file in stored]
        declared = (_declared(model, facts) for model, facts in zip(models, known, strict=True))
        self.loader = Loader(declared, budget, most_kept if self._folder else 0)
        self._entries: dict[str, _Entry] = {}
        for model, file, facts in zip(models, stored, known, strict=True):
            self._entries[model.name] = self._entry(model, file, facts, len(models))
        self.first_name, *self._later_names = [model.name for model in models]

    def _entry(self, model: PoolModel, file: FactsFile, facts: Facts | None, num_models: int) -> _Entry:
        """facts: those in ``file``; None: the model was never loaded. num_models: with which it shares the memory for
        prefixes."""
        settings, own = model.settings, None
        if self._folder is not None:
            own = self._folder / str(next(self._numbers))
            settings = replace(settings, cache_dir=own, is_dir_memory=True, ram_tier_mib=0)
        elif settings.cache_dir is not None:
            settings = replace(settings, ram_tier_mib=0)  # (the system keeps files in memory anyway)
        elif settings.ram_tier_mib is None:
            settings = replace(settings, ram_tier_mib=int(KEPT_SHARE * self._budget / num_models) // MIB)
        engine = PooledEngine(model.name, settings, facts, self.loader, self.handle)
        return _Entry(engine, own, file, trio.CancelScope())

    @property
    def engines(self) -> list[PooledEngine]:
        return [entry.engine for entry in self._entries.values()]

    async def run(self) -> None:
        """Runs until cancelled."""
        for entry in self._entries.values():
            self._nursery.start_soon(_follow, entry)
        self.handle(Looked())
        measure_at = trio.current_time() + MEASURE_S
        while True:
            looked = self._looked.next
            with trio.move_on_at(min(self.loader.due_at, measure_at)):
                await looked.wait()
            now = trio.current_time()
            if now >= measure_at:
                self._measure()
                measure_at = now + MEASURE_S
            if now >= self.loader.due_at:
                self.handle(Looked())

    def handle(self, event: Event) -> None:
        """Passes an event to the loader and begins what it wants."""
        for effect in self.loader.handle(event, trio.current_time()):
            self._perform(effect)
        self._looked.notify()

    async def known(self, name: str) -> Engine:
        """The engine of a model, when it is known what the model is: it may have to be loaded for that. Raises
        LocalError."""
        engine = self._entries[name].engine
        if not engine.is_known:
            log.info("learning_model", model=name)
            await engine.detokenize([])  # (any call loads it)
            if not self.loader.stays(name):
                self.handle(Learned(name))
        return engine

    async def first(self) -> Engine:
        """The engine of the first model, loaded unless it is only loaded when asked for. Raises LocalError."""
        engine = await self.known(self.first_name)
        if self.loader.stays(self.first_name):
            await self._entries[self.first_name].engine.detokenize([])
        return engine

    async def add(self, model: PoolModel) -> Engine:
        """Another model's engine, when it is known what the model is. Raises LocalError, and then it is forgotten."""
        if model.name in self._entries:
            raise LocalError(f"the model {model.name} is served already")
        file = FactsFile(self._data_dir, model.settings)
        facts = file.load()
        entry = self._entries[model.name] = self._entry(model, file, facts, len(self._entries) + 1)
        self._nursery.start_soon(_follow, entry)
        self.handle(_declared(model, facts))
        try:
            return await self.known(model.name)
        except LocalError:
            await self.remove(model.name)
            raise

    async def remove(self, name: str) -> None:
        """Forgets a model when its last request is over. New ones are refused."""
        entry = self._entries[name]
        self._save(entry)
        entry.engine.retire()
        self.handle(Withdrawn(name))
        while name in self.loader.states:
            await self._looked.wait()
        entry.scope.cancel()
        del self._entries[name]
        if entry.folder is not None:
            await trio.to_thread.run_sync(trim, entry.folder, 0)

    def asked_per_hour(self, name: str) -> float:
        """See ``Loader.asked_per_hour``."""
        return self.loader.asked_per_hour(name, trio.current_time())

    @property
    def names(self) -> set[str]:
        return set(self._entries)

    def room_beside(self, name: str) -> int:
        """Memory for the engine of one more model, beside those that stay loaded. name: a model that does not count;
        empty: none."""
        loader = self.loader
        others = sum(loader.num_bytes(one) for one in self._entries if one != name and loader.stays(one))
        return loader.room_bytes - others

    async def later(self) -> AsyncIterator[Engine]:
        """The other engines of the start, each when it is known what its model is. Those that cannot be loaded are left
        out."""
        for name in self._later_names:
            try:
                yield await self.known(name)
            except LocalError as exc:
                log.warning("model_failed", model=name, reason=str(exc))

    def save(self) -> None:
        """Write down what was learned."""
        for entry in self._entries.values():
            self._save(entry)

    def _save(self, entry: _Entry) -> None:
        facts = entry.engine.facts()
        if facts is not None:
            try:
                entry.facts.save(facts)
            except LocalError as exc:
                log.warning("facts_not_saved", model=entry.engine.name, reason=str(exc))

    # --- effects --------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        entry = self._entries[effect.model]
        match effect:
            case Load():
                self._nursery.start_soon(self._load, entry, effect)
            case Unload():
                entry.engine.close()
                self._nursery.start_soon(self._unload, entry)
            case Keep():
                if entry.folder is None:
                    return
                entry.engine.resize(effect.kept_bytes)
                if self.loader.states[effect.model] is State.UNLOADED:
                    self._nursery.start_soon(partial(trio.to_thread.run_sync, trim, entry.folder, effect.kept_bytes))
            case Refuse():
                needed, room = math.ceil(effect.needed_bytes / MIB), effect.room_bytes // MIB
                message = f"the model {effect.model} needs {needed} MiB, and the node's plan has {room} MiB for models"
                entry.engine.fail(partial(LocalError, f"{message}: give it more with --memory"))
            case _:
                assert_never(effect)

    async def _load(self, entry: _Entry, effect: Load) -> None:
        engine, began = entry.engine, trio.current_time()
        is_known = engine.is_known
        log.info("loading_model", model=engine.name)
        try:
            if entry.folder is not None:
                engine.resize(effect.kept_bytes)
            await engine.start(self._nursery, effect.room_bytes)
        except LocalError as exc:
            log.warning("model_failed", model=engine.name, reason=str(exc))
            entry.facts.forget()  # (perhaps they are not true any more)
            self.handle(LoadFailed(engine.name))
            engine.fail(partial(BusyError, str(exc), RETRY_S))
            return
        took_s = trio.current_time() - began
        resident = resident_bytes(engine.pid) if engine.pid else 0
        num_bytes = resident + GROWTH_BYTES if resident else 0
        log.info("model_loaded", model=engine.name, took_s=round(took_s, 1), mib=num_bytes // MIB)
        self.handle(Loaded(engine.name, took_s, num_bytes))
        if entry.folder is not None:
            engine.resize(self.loader.kept_bytes(engine.name))  # (it may have changed since the load began)
        if self.loader.states[engine.name] is State.LOADED:  # (it may have turned out too large already)
            engine.open()
        if not is_known:
            self._save(entry)

    async def _unload(self, entry: _Entry) -> None:
        await entry.engine.end()
        log.info("model_unloaded", model=entry.engine.name)
        self.handle(Unloaded(entry.engine.name))
        if entry.folder is not None and entry.engine.name in self.loader.states:
            await trio.to_thread.run_sync(trim, entry.folder, self.loader.kept_bytes(entry.engine.name))

    def _measure(self) -> None:
        for entry in self._entries.values():
            if (pid := entry.engine.pid) and self.loader.states[entry.engine.name] is State.LOADED:
                self.handle(Measured(entry.engine.name, resident_bytes(pid)))


async def _follow(entry: _Entry) -> None:
    with entry.scope:
        await entry.engine.follow()


def _declared(model: PoolModel, facts: Facts | None) -> Declared:
    if facts is not None:
        return Declared(model.name, facts.memory_bytes, facts.load_s, model.stays, is_measured=True)
    return Declared(model.name, guessed_bytes(model.settings), guessed_load_s(model.settings), model.stays)


@asynccontextmanager
async def open_pool(
    models: Sequence[PoolModel], data_dir: Path, memory_bytes: int | None = None
) -> AsyncIterator[EnginePool]:
    """The engines of ``models``, whose names differ, for the duration of the block. memory_bytes: for all of them
    together; None: most of what is free. Raises LocalError when it is unknown what is free."""
    free = available_memory_bytes()
    if memory_bytes is None and free is None:
        raise LocalError("it is unknown how much memory is free here: give --memory")
    budget = memory_bytes if memory_bytes is not None else int(MEMORY_SHARE * (free or 0))
    first = models[0].settings
    with ExitStack() as stack:
        folder = stack.enter_context(memory_folder()) if first.cache_dir is None else None
        most_kept = 0
        if folder is not None:
            most_kept = min(budget, usable_shared_bytes(folder))
            if first.ram_tier_mib is not None:
                most_kept = min(most_kept, first.ram_tier_mib * MIB)
        log.info("memory_plan", gib=round(budget / GIB, 1), kept_gib=round(most_kept / GIB, 1), models=len(models))
        async with trio.open_nursery() as nursery:
            pool = EnginePool(models, data_dir, budget, folder, most_kept, nursery)
            nursery.start_soon(pool.run)
            try:
                yield pool
            finally:
                pool.save()
                for engine in pool.engines if folder is not None else ():
                    engine.drop_kept()
                nursery.cancel_scope.cancel()
