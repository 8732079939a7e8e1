"""``mycelia node --auto``: the node that serves the model of the catalogue which the swarm lacks most.

``proto/supply/chooser.py`` decides; here it gets what it sees, and its moves are made. A model is served before the one
that it replaces is withdrawn; answers that have begun end as usual. A download that the end of the process cut off goes
on after the start.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, assert_never

import msgspec
import structlog
import trio
from msgspec import Struct

from mycelia.node.app import Node
from mycelia.node.auto.fetch import Say, pull
from mycelia.node.auto.machine import UNKNOWN_LINE, Machine, free_disk_bytes, memory_rate, options, why_none
from mycelia.node.engine.engine import Engine
from mycelia.node.engine.pool.facts import FactsFile
from mycelia.node.engine.pool.pool import PoolModel
from mycelia.node.engine.probe.probe import free_gpu_bytes
from mycelia.node.engine.shares import EngineShares
from mycelia.node.errors import PassingError
from mycelia.node.models.catalogue import Catalogue, load_catalogue, one_name
from mycelia.node.models.find import find_model
from mycelia.node.models.hub_cache import cache_folder
from mycelia.node.network.network import NetworkError
from mycelia.node.storage.sealed import SealedFile
from mycelia.proto.supply.chooser import Began, Chooser, Continued, Effect, Failed, Looked, Move, Option, Stay, View
from mycelia.proto.wire.errors import LocalError

log = structlog.get_logger()

run_in_thread = trio.to_thread.run_sync

LISTEN_EVERY_S = 60.0
SHORTEST_PULL_S = 2.0
"""A shorter download says nothing about the line."""


class Kept(Struct, frozen=True):
    """What a node that chooses its model knows of its last run."""

    model: str = ""
    """The catalogue's name of the chosen model; empty: none."""
    decided_at: float = 0.0
    """Unix time of the last decision; 0: there was none, or it came to nothing."""
    line_rate: float = UNKNOWN_LINE
    fetching: str = ""
    """The catalogue's name of the model that is being fetched; empty: none."""


AUTO_FILE = SealedFile("auto.msgpack", Kept, "the node chooses its model anew")


@dataclass(frozen=True)
class Part:
    """The node in one of the swarms that the process is in, and its share of an engine."""

    node: Node
    share_of: Callable[[EngineShares], Engine]


class Pool(Protocol):
    """See ``EnginePool``."""

    @property
    def names(self) -> set[str]: ...

    def room_beside(self, name: str) -> int: ...

    def asked_per_hour(self, name: str) -> float: ...

    async def add(self, model: PoolModel) -> Engine: ...

    async def remove(self, name: str) -> None: ...


@dataclass(frozen=True)
class _Held:
    """The chosen model, served."""

    name: str
    served_as: str
    served: Sequence[tuple[Part, Engine]]
    scope: trio.CancelScope


class Auto:
    """The choice of one process, for all swarms that it is in. ``run`` does everything."""

    def __init__(
        self,
        pool: Pool,
        parts: Sequence[Part],
        data_dir: Path,
        nursery: trio.Nursery,
        pool_model: Callable[[str], PoolModel],
        allowed: Callable[[str], bool] = lambda name: True,
        is_first: bool = True,
        find: Callable[[str], Path] = find_model,
        fetch: Callable[[str, Say], Awaitable[None]] = pull,
        catalogue: Callable[[], Catalogue] = load_catalogue,
        rng: random.Random | None = None,
    ) -> None:
        """nursery: lives as long as the pool. pool_model: the settings of the engine for a model's file. allowed:
        whether the swarm serves a model of the catalogue. is_first: prompts that name no model get the chosen one.
        find: the file of a model; it and fetch raise LocalError."""
        self._pool = pool
        self._parts = parts
        self._data_dir = data_dir
        self._nursery = nursery
        self._pool_model = pool_model
        self._allowed = allowed
        self._is_first = is_first
        self._find = find
        self._fetch = fetch
        self._catalogue = catalogue
        self._kept = AUTO_FILE.load(data_dir) or Kept()
        first = parts[0].node
        self._now = first.now
        own = [part.node.demand.own for part in parts]
        rng = rng or random.SystemRandom()
        self.chooser = Chooser(first.peer, own, rng, self._now(), self._kept.decided_at)
        for part in parts:
            part.node.demand.choose(self._coming)
        self._held: _Held | None = None
        self._gpu_bytes, self._memory_rate = 0, 0.0
        """The most that was measured."""
        self._reason = "it listens first to what is asked for"
        self._progress = ""
        """The last line about the download that goes on."""

    async def run(self) -> None:
        """Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._resume()
            while True:
                await trio.sleep(max(0.0, self.chooser.due_at - self._now()))
                await self.decide()

    def text(self) -> str:
        """What was chosen and why, for people."""
        held = f"serves {self._held.name}: " if self._held else ""
        minutes = max(0, round((self.chooser.due_at - self._now()) / 60))
        progress = f" ({self._progress})" if self._progress else ""
        return f"{held}{self._reason}{progress}; decides again in {minutes} min"

    async def decide(self) -> None:
        """Look at what is asked for, and move if that helps."""
        view = await self._look()
        effects = self.chooser.handle(Looked(view), self._now())
        self._keep(decided_at=self._now())
        for effect in effects:
            await self._perform(effect)

    async def listen(self) -> None:
        """Ask some peers of each swarm what their clients ask for."""
        for part in self._parts:
            for report in await part.node.demand.ask(bool(part.node.swarm)):
                self.chooser.handle(report, self._now())

    async def _listen(self) -> None:
        while True:
            await self.listen()
            await trio.sleep(LISTEN_EVERY_S * random.uniform(0.75, 1.25))  # noqa: S311  jitter, no secret

    def _coming(self) -> tuple[str, ...]:
        return self.chooser.coming(self._now())

    # --- what it sees -------------------------------------------------------------------------------------------------

    async def _look(self) -> View:
        held = self._held.served_as if self._held else ""
        others = {one_name(name) for name in self._pool.names - {held}}
        found, why_none = await run_in_thread(self._options, others, self._pool.room_beside(held))
        nodes = sum(part.node.swarm_models.num_nodes(bool(part.node.swarm)) for part in self._parts)
        answered = self._pool.asked_per_hour(held) if held else 0.0
        return View(
            options=found,
            serving=[one for part in self._parts for one in part.node.demand.serving(bool(part.node.swarm))],
            answered=answered,
            scale=nodes / (1 + self.chooser.heard.num_fresh(self._now())),
            why_none=why_none,
        )

    def _options(self, others: Collection[str], room_bytes: int) -> tuple[list[Option], str]:
        """(the models to choose from, why there are none). Runs in a thread. others: models that the node serves
        besides the chosen one."""
        try:
            catalogue = self._catalogue()
        except LocalError as exc:
            log.warning("catalogue_unusable", reason=str(exc))
            return [], f"it cannot choose: {exc}"
        wanted = {name: one for name, one in catalogue.items() if name not in others and self._allowed(name)}
        here = {name: self._found(name) for name in wanted}
        rates = {name: rate for name, path in here.items() if path is not None and (rate := self._rate(path))}
        # (what the chosen model takes of a GPU, and of the memory's rate, would be free for another one)
        self._gpu_bytes, self._memory_rate = (
            max(self._gpu_bytes, free_gpu_bytes()),
            max(self._memory_rate, memory_rate()),
        )
        disk_bytes = free_disk_bytes(cache_folder())
        machine = Machine(
            room_bytes, self._gpu_bytes, disk_bytes, round(self._memory_rate), round(self._kept.line_rate)
        )
        log.info("auto_measured", **msgspec.structs.asdict(machine))
        return options(wanted, machine, lambda name: here[name] is not None, rates), why_none(machine)

    def _found(self, name: str) -> Path | None:
        """The file of a model of the catalogue, if it is here."""
        with suppress(LocalError):
            return self._find(name)
        return None

    def _rate(self, path: Path) -> int:
        """Tokens/s of one answer, as measured when the model ran here; 0: it never did."""
        with suppress(LocalError, OSError):
            facts = FactsFile(self._data_dir, self._pool_model(str(path)).settings).load()
            return facts.decode_rate if facts else 0
        return 0

    # --- what it does -------------------------------------------------------------------------------------------------

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case Stay():
                self._reason = effect.reason
                log.info("auto_stays", model=self._held.name if self._held else "", reason=effect.reason)
            case Move():
                self._reason = f"fetches {effect.model}: {effect.reason}"
                log.info("auto_moves", model=effect.model, instead=effect.instead, reason=effect.reason)
                await self._move(effect.model, effect.reason)
            case _:
                assert_never(effect)

    async def _move(self, model: str, reason: str) -> None:
        before = self._held
        try:
            await self._obtain(model)
            await self._serve(model)
        except (LocalError, NetworkError, OSError) as exc:
            log.warning("auto_failed", model=model, reason=str(exc))
            self._reason = f"{model} cannot be served here: {exc}"
            is_passing = isinstance(exc, PassingError)
            self.chooser.handle(Failed(model, is_passing), self._now())
            if is_passing:
                self._keep(decided_at=0.0)  # (a restart is to try it as soon as this run would)
            return
        self._reason = reason
        if before is not None:
            await self._withdraw(before)

    async def _resume(self) -> None:
        """Serve the model of the last run, if its file is still here, and go on with the download of its last move."""
        name, fetching = self._kept.model, self._kept.fetching
        if name and self._held is None:
            try:
                await self._serve(name)
                self._reason = "it served this model before its restart"
            except (LocalError, NetworkError) as exc:
                log.info("auto_not_resumed", model=name, reason=str(exc))
        if fetching:
            self._keep(fetching="")
            if await run_in_thread(self._found, fetching) is None:  # (if it is whole, to load it may have been the end)
                log.info("auto_continues", model=fetching)
                self.chooser.handle(Continued(fetching), self._now())
                self._reason = f"goes on fetching {fetching}, which it chose before its restart"
                await self._move(fetching, "it chose this model before its restart")

    async def _obtain(self, name: str) -> None:
        """Fetch the model if it is not here. Raises LocalError."""
        if await run_in_thread(self._found, name) is not None:
            return
        entry = (await run_in_thread(self._catalogue)).get(name)
        if entry is None:
            raise LocalError(f"the catalogue has no {name} any more")
        began = trio.current_time()
        self._keep(fetching=name)
        try:
            await self._fetch(name, self._say)
        except (LocalError, OSError):
            self._keep(fetching="")
            raise
        finally:
            self._progress = ""
        self._keep(fetching="")
        took_s = trio.current_time() - began
        if took_s >= SHORTEST_PULL_S:
            self._keep(line_rate=entry.size_bytes / took_s)

    def _say(self, line: str) -> None:
        self._progress = line
        log.info("fetching_model", says=line)

    async def _serve(self, name: str) -> None:
        """Serve a model that is here, in all swarms. Raises LocalError."""
        model = self._pool_model(str(await run_in_thread(self._find, name)))
        shares = EngineShares(await self._pool.add(model))
        scope = trio.CancelScope()
        self._nursery.start_soon(_run_shares, shares, scope)
        served: list[tuple[Part, Engine]] = []
        held = _Held(name, model.name, served, scope)
        try:
            for part in self._parts:
                if not part.node.ended:
                    engine = part.share_of(shares)
                    await part.node.serve(engine)
                    served.append((part, engine))
        except (LocalError, NetworkError):
            await self._withdraw(held)
            raise
        if self._is_first:
            for part, engine in served:
                part.node.prefer(engine)
        self._held = held
        self.chooser.handle(Began(name), self._now())
        self._keep(model=name)
        log.info("serving", model=model.name)

    async def _withdraw(self, held: _Held) -> None:
        for part, engine in held.served:
            if not part.node.ended:
                await part.node.withdraw(engine)
        await self._pool.remove(held.served_as)
        held.scope.cancel()
        log.info("withdrawn", model=held.served_as)

    def _keep(self, **changes: str | float) -> None:
        self._kept = msgspec.structs.replace(self._kept, **changes)
        try:
            AUTO_FILE.save(self._data_dir, self._kept)
        except LocalError as exc:
            log.warning("choice_not_saved", reason=str(exc))


async def _run_shares(shares: EngineShares, scope: trio.CancelScope) -> None:
    with scope:
        await shares.run()
