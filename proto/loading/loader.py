"""Which models of a node are loaded: ``handle(event, now) -> list[Effect]``.

A model is loaded when a request needs it, and unloaded when another one needs the room, or when nobody asked for it for
``IDLE_S`` (unless it *stays*). One model is loaded or unloaded at a time; requests wait for their model in the order in
which they first asked for it.

To make room, a model goes only when its *turn* is over. So two models that do not fit together and are asked for in
turns do not spend their time on loading:

  - An idle model goes after it was idle for as long as it takes to load it again. Waiting shorter could cost a load
    that is not needed, waiting longer costs more than such a load: at most twice the best possible time is lost, as
    with skis that are rented until they could have been bought.
  - A busy model goes once it was loaded for ``TURN`` times what the exchange takes (loading the other, and loading it
    again). So at most 1 / (1 + ``TURN``) of the time is spent on exchanges, whatever is asked. It answers what it has
    begun, for a while; new requests wait.
  - One that is busy only for peers goes for a client of this node after once that time.

Models that this node's own clients wait for come first.

Of the models whose turn is over, those go first that cost least to be without: requests lately x seconds of loading,
per byte. Loads that the user asked for with the start (``stays``) and that no request waits for only take free room.

Invariants: engines together never get more than ``room_of_engines``, unless they grow while they run; then the least
valuable idle one goes. At most one model is being loaded or unloaded.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

from mycelia.proto.loading.events import (
    Asked,
    Declared,
    Effect,
    Ended,
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
from mycelia.proto.loading.plan import Faded, changed, divided, room_of_engines

IDLE_S = 600.0
"""A model that was not asked for so long is unloaded: a conversation seldom pauses longer."""
TURN = 4.0
TURN_OF_PEERS = 1.0
"""The same factor where only peers use the model and a client of this node waits for another one."""
RETRY_S = 30.0
"""Pause after a model could not be loaded, before it is loaded again without a request that needs it."""


class State(Enum):
    UNLOADED = auto()
    LOADING = auto()
    LOADED = auto()
    UNLOADING = auto()
    """It finishes what it has begun, unless that takes long."""


@dataclass
class _Model:
    name: str
    num_bytes: int
    load_s: float
    stays: bool
    is_measured: bool
    state: State = State.UNLOADED
    num_pending: int = 0
    """Requests that run or wait."""
    num_own: int = 0
    """Those of this node's own clients."""
    waits_since: float = math.inf
    """When the first request came that waits for the model to be loaded; infinity: none waits."""
    loaded_at: float = 0.0
    used_at: float = 0.0
    retry_at: float = 0.0
    is_going: bool = False
    """It is forgotten as soon as it is unloaded."""
    asked: Faded = field(default_factory=Faded)
    saved_s: Faded = field(default_factory=Faded)

    @classmethod
    def of(cls, one: Declared) -> "_Model":
        return cls(one.name, one.num_bytes, one.load_s, one.stays, one.is_measured)

    @property
    def holds_memory(self) -> bool:
        return self.state is not State.UNLOADED

    def turn_ends_at(self, other: "_Model") -> float:
        """When the model may go for ``other``."""
        idle_at = self.used_at + self.load_s if not self.num_pending else math.inf
        turn = TURN_OF_PEERS if other.num_own and not self.num_own else TURN
        return min(idle_at, self.loaded_at + turn * (self.load_s + other.load_s))

    def worth(self, now: float) -> float:
        """What its absence would cost, per byte."""
        return self.asked.now(now) * self.load_s / max(self.num_bytes, 1)


class Loader:
    """The models of one node under one budget of memory. After every call look at ``due_at``."""

    def __init__(self, models: Iterable[Declared], budget: int, most_kept: int | None = None) -> None:
        """budget: bytes for engines and kept prefixes together. most_kept: bytes that all kept prefixes may take at
        most; None: no further limit; 0: none are kept in memory."""
        self._budget = budget
        self._most_kept = budget if most_kept is None else most_kept
        self._room = budget if most_kept == 0 else room_of_engines(budget)
        self._models = {one.name: _Model.of(one) for one in models}
        self._kept: dict[str, int] = {}
        self.due_at = math.inf
        """When to call ``handle`` with Looked, if nothing happens before; infinity: never."""

    @property
    def room_bytes(self) -> int:
        """Memory that all engines together may take."""
        return self._room

    @property
    def states(self) -> Mapping[str, State]:
        return {name: model.state for name, model in self._models.items()}

    def load_s(self, name: str) -> float:
        return self._models[name].load_s

    def asked_per_hour(self, name: str, now: float) -> float:
        """Requests for the model lately."""
        return self._models[name].asked.per_hour(now)

    def stays(self, name: str) -> bool:
        return self._models[name].stays

    def num_bytes(self, name: str) -> int:
        return self._models[name].num_bytes

    def kept_bytes(self, name: str) -> int:
        """Room for the model's kept prefixes."""
        return self._kept.get(name, 0)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """What to do after ``event``. Mutates."""
        effects: list[Effect] = []
        match event:
            case Asked():
                effects = self._on_asked(self._models[event.model], event.is_own, now)
            case Ended():
                model = self._models[event.model]
                model.num_pending -= 1
                model.num_own -= event.is_own
                model.used_at = now
                model.saved_s.add(event.saved_s, now)
                if not model.num_pending:
                    model.waits_since = math.inf
            case Loaded():
                model = self._models[event.model]
                model.state, model.loaded_at, model.used_at, model.load_s = State.LOADED, now, now, event.took_s
                model.waits_since = math.inf
                self._measured(model, event.num_bytes)
            case LoadFailed():
                model = self._models[event.model]
                model.state, model.waits_since, model.retry_at = State.UNLOADED, math.inf, now + RETRY_S
            case Unloaded():
                model = self._models[event.model]
                model.state = State.UNLOADED
                if model.num_pending:  # (some were cut off, and wait to go on)
                    model.waits_since = min(model.waits_since, now)
            case Measured():
                self._measured(self._models[event.model], event.num_bytes)
            case Learned():
                model = self._models[event.model]
                if not model.num_pending:
                    model.used_at = now - IDLE_S
            case Declared():
                self._models[event.name] = _Model.of(event)
            case Withdrawn():
                model = self._models[event.model]
                model.is_going, model.stays = True, False
            case Looked():
                pass
        self._forget_gone()
        return [*effects, *self._decide(now)]

    def check_invariants(self) -> None:
        moving = [model for model in self._models.values() if model.state in (State.LOADING, State.UNLOADING)]
        assert len(moving) <= 1, "two models are being loaded or unloaded"
        for model in self._models.values():
            assert model.num_pending >= model.num_own >= 0
            assert model.state is not State.LOADED or model.waits_since == math.inf, "a request waits for nothing"
            assert model.num_pending or model.waits_since == math.inf, "nobody waits"
        assert sum(self._kept.values()) <= max(self._kept_room(), 0), "too much is kept"

    # --- events ---------------------------------------------------------------------------------------------------

    def _on_asked(self, model: _Model, is_own: bool, now: float) -> list[Effect]:
        model.num_pending += 1
        model.num_own += is_own
        model.used_at = now
        model.asked.add(1.0, now)
        if model.state is State.LOADED:
            return []
        if model.state is State.UNLOADED and model.num_bytes > self._room:
            return [Refuse(model.name, model.num_bytes, self._room)]
        model.waits_since = min(model.waits_since, now)
        return []

    def _measured(self, model: _Model, num_bytes: int) -> None:
        """An engine grows with its use, so what counts is the most that it took."""
        if num_bytes:
            model.num_bytes = max(num_bytes, model.num_bytes if model.is_measured else 0)
            model.is_measured = True

    def _forget_gone(self) -> None:
        for model in list(self._models.values()):
            if model.is_going and model.state is State.UNLOADED and not model.num_pending:
                del self._models[model.name]
                self._kept.pop(model.name, None)

    # --- decisions ------------------------------------------------------------------------------------------------

    def _decide(self, now: float) -> list[Effect]:
        self.due_at = math.inf
        effects: list[Effect] = []
        if not any(model.state in (State.LOADING, State.UNLOADING) for model in self._models.values()):
            effects = self._next_change(now)
        loads = [effect for effect in effects if isinstance(effect, Load)]
        keeps = self._divide(now)
        if not loads:
            return [*keeps, *effects]
        # (others give their room back before this one takes it)
        load = loads[0]
        others = [keep for keep in keeps if keep.model != load.model]
        return [*others, Load(load.model, self.kept_bytes(load.model), load.room_bytes)]

    def _next_change(self, now: float) -> list[Effect]:
        """Begins to load or to unload one model, if that is due now; otherwise sets ``due_at``."""
        waiting = [model for model in self._models.values() if model.waits_since < math.inf]
        if waiting:
            wanted = min(waiting, key=lambda model: (not model.num_own, model.waits_since))
            short = wanted.num_bytes - self._free()
            if short <= 0:
                return [self._load(wanted)]
            victim = self._victim(wanted, short, now)
            return [self._unload(victim)] if victim is not None else []
        loaded = [model for model in self._models.values() if model.state is State.LOADED]
        idle = [model for model in loaded if not model.num_pending]
        if self._free() < 0 and idle and len(loaded) > 1:
            return [self._unload(min(idle, key=lambda model: model.worth(now)))]
        over = {
            model.name: -math.inf if model.is_going else model.used_at + IDLE_S for model in idle if not model.stays
        }
        for name, at in over.items():
            if at <= now:
                return [self._unload(self._models[name])]
        for model in self._models.values():
            if model.stays and model.state is State.UNLOADED and model.num_bytes <= self._free():
                if model.retry_at <= now:
                    return [self._load(model)]
                over[model.name] = model.retry_at
        self.due_at = min(over.values(), default=math.inf)
        return []

    def _victim(self, wanted: _Model, short: int, now: float) -> _Model | None:
        """The model to unload next for ``wanted``, which is ``short`` bytes short; None: no turn is over, or too few to
        make enough room. Then sets ``due_at``."""
        loaded = [model for model in self._models.values() if model.state is State.LOADED]
        ready = [model for model in loaded if model.turn_ends_at(wanted) <= now]
        if sum(model.num_bytes for model in ready) < short:
            freed = 0
            for model in sorted(loaded, key=lambda model: model.turn_ends_at(wanted)):
                freed, self.due_at = freed + model.num_bytes, model.turn_ends_at(wanted)
                if freed >= short:
                    break
            return None
        going, freed = list[_Model](), 0
        for model in sorted(ready, key=lambda model: model.worth(now)):
            if freed < short:
                going.append(model)
                freed += model.num_bytes
        # (the last one may have made the first ones unnecessary)
        for model in list(going):
            if freed - model.num_bytes >= short:
                going.remove(model)
                freed -= model.num_bytes
        return going[0]

    def _load(self, model: _Model) -> Load:
        room = self._free()
        model.state = State.LOADING
        return Load(model.name, 0, room)

    def _unload(self, model: _Model) -> Unload:
        model.state = State.UNLOADING
        return Unload(model.name)

    def _free(self) -> int:
        """Bytes that another engine may take."""
        return self._room - self._taken()

    def _taken(self) -> int:
        return sum(model.num_bytes for model in self._models.values() if model.holds_memory)

    def _kept_room(self) -> int:
        return min(self._budget - self._taken(), self._most_kept)

    def _divide(self, now: float) -> list[Keep]:
        if not self._models:
            return []
        room = max(self._kept_room(), 0)
        earned = {name: model.saved_s.now(now) for name, model in self._models.items()}
        new = changed(self._kept, divided(room, earned), room)
        self._kept |= new
        return [Keep(name, kept) for name, kept in new.items()]
