"""Which models are loaded: by hand, and with random requests in virtual time."""

import math
import random
from collections import Counter
from heapq import heappop, heappush

import pytest

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
from mycelia.proto.loading.loader import IDLE_S, TURN, Loader, State
from mycelia.proto.loading.plan import KEPT_SHARE, LEAST_CHANGE, divided, room_of_engines

GIB = 2**30
BUDGET = 16 * GIB
ROOM = room_of_engines(BUDGET)


def changes(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Keep)]


def loads(effects: list[Effect]) -> list[str]:
    return [effect.model for effect in effects if isinstance(effect, Load)]


class World:
    """A node whose engines load in ``load_s`` and answer in ``answer_s``, in virtual time."""

    def __init__(self, *models: Declared, budget: int = BUDGET, answer_s: float = 1.0) -> None:
        self.loader = Loader(models, budget)
        self.sizes = {model.name: model.num_bytes for model in models}
        self.load_s = {model.name: model.load_s for model in models}
        self.answer_s = answer_s
        self.now = 0.0
        self.waiting = {model.name: list[float]() for model in models}
        self.running = Counter[str]()
        self.todo: list[tuple[float, int, Event]] = []
        self.loads = Counter[str]()
        self.loading_s = 0.0
        self.waits: list[float] = []
        self.refused = 0
        self.closed = set[str]()
        self.kept: dict[str, int] = {}
        self._number = 0
        self.handle(Looked())

    def at(self, when: float, event: Event) -> None:
        self._number += 1
        heappush(self.todo, (when, self._number, event))

    def run(self, until: float) -> None:
        while True:
            next_at = self.todo[0][0] if self.todo else math.inf
            due = min(next_at, max(self.loader.due_at, self.now))
            if due > until:
                self.now = until
                return
            self.now = due
            if next_at > due:
                self.handle(Looked())
                continue
            event = heappop(self.todo)[2]
            if isinstance(event, Asked):
                self.ask(event.model)
            elif isinstance(event, Ended):
                self.running[event.model] -= 1
                self.handle(event)
                self.finish_unload(event.model)
            else:
                self.handle(event)

    def ask(self, name: str) -> None:
        self.waiting[name].append(self.now)
        self.handle(Asked(name))
        if self.loader.states[name] is State.LOADED:
            self.begin(name)

    def begin(self, name: str) -> None:
        for came in self.waiting[name]:
            self.waits.append(self.now - came)
            self.running[name] += 1
            self.at(self.now + self.answer_s, Ended(name, 0.5))
        self.waiting[name].clear()

    def finish_unload(self, name: str) -> None:
        if name in self.closed and not self.running[name]:
            self.closed.discard(name)
            self.handle(Unloaded(name))

    def handle(self, event: Event) -> None:
        effects = self.loader.handle(event, self.now)
        self.loader.check_invariants()
        if isinstance(event, Loaded):
            self.begin(event.model)
        for effect in effects:
            match effect:
                case Load():
                    self.loads[effect.model] += 1
                    self.loading_s += self.load_s[effect.model]
                    took_s = self.load_s[effect.model]
                    self.at(self.now + took_s, Loaded(effect.model, took_s, self.sizes[effect.model]))
                    self.kept[effect.model] = effect.kept_bytes
                case Unload():
                    self.closed.add(effect.model)
                    self.finish_unload(effect.model)
                case Keep():
                    self.kept[effect.model] = effect.kept_bytes
                case Refuse():
                    for _ in self.waiting[effect.model]:
                        self.refused += 1
                        self.handle(Ended(effect.model))
                    self.waiting[effect.model].clear()
        taken = sum(size for name, size in self.sizes.items() if self.loader.states[name] is not State.UNLOADED)
        assert taken <= ROOM and taken + sum(self.kept.values()) <= BUDGET

    @property
    def loaded(self) -> set[str]:
        return {name for name, state in self.loader.states.items() if state is State.LOADED}


def model(name: str, gib: float, load_s: float = 10.0, stays: bool = False) -> Declared:
    return Declared(name, int(gib * GIB), load_s, stays, is_measured=True)


def test_models_that_stay_are_loaded_in_order_as_far_as_they_fit() -> None:
    world = World(model("a", 6, stays=True), model("b", 9, stays=True), model("c", 8, stays=True))
    world.run(1_000)
    assert world.loaded == {"a", "c"}


def test_a_declared_model_is_loaded_when_asked_and_goes_when_idle() -> None:
    world = World(model("a", 6, stays=True), model("b", 4))
    world.run(100)
    assert world.loaded == {"a"}
    world.ask("b")
    world.run(120)
    assert world.loaded == {"a", "b"} and world.waits == [10.0]
    world.run(120 + IDLE_S)
    assert world.loaded == {"a"}


def test_a_model_that_was_loaded_only_to_learn_of_it_goes_at_once() -> None:
    loader = Loader([model("a", 6), model("b", 6, stays=True)], BUDGET)
    loader.handle(Asked("a"), 0.0)
    loader.handle(Loaded("a", 1.0), 1.0)
    loader.handle(Loaded("b", 1.0), 2.0)
    loader.handle(Ended("a"), 2.0)
    assert changes(loader.handle(Learned("a"), 3.0)) == [Unload("a")]


def test_the_model_that_nobody_asks_for_makes_room() -> None:
    world = World(model("a", 6), model("b", 6), model("c", 6))
    for name in ("a", "b"):
        world.ask(name)
        world.run(world.now + 50)
    for _ in range(5):
        world.ask("b")
        world.run(world.now + 20)
    world.ask("c")
    world.run(world.now + 20)
    assert world.loaded == {"b", "c"}


def test_no_more_goes_than_has_to() -> None:
    """The smallest one alone would not make room, and the large one alone does."""
    world = World(model("small", 2), model("large", 9), model("new", 11))
    for name in ("small", "large"):
        world.ask(name)
        world.run(world.now + 100)
    world.ask("new")
    world.run(world.now + 50)
    assert world.loaded == {"small", "new"}


def test_an_idle_model_goes_after_the_time_of_its_own_load() -> None:
    world = World(model("a", 10, load_s=10.0), model("b", 10, load_s=3.0))
    world.ask("a")
    world.run(11.5)  # loaded at 10, answered at 11
    world.ask("b")
    world.run(20.9)
    assert world.loaded == {"a"}
    world.run(21.1)
    assert world.loaded == set()
    world.run(24.1)
    assert world.loaded == {"b"}


def test_two_models_asked_for_all_the_time_take_turns() -> None:
    """Without a turn each request would wait for two loads, and nearly all time would be spent on them."""
    world = World(model("a", 10, load_s=10.0), model("b", 10, load_s=10.0), answer_s=4.0)
    end = 1_000.0
    for tick in range(int(end)):
        world.at(float(tick), Asked("a" if tick % 2 else "b"))
    world.run(end)
    exchange_s = 20.0
    assert world.loading_s / end <= 1 / (1 + TURN) + 0.02
    assert max(world.waits) <= TURN * exchange_s + 2 * world.answer_s + exchange_s
    assert abs(world.loads["a"] - world.loads["b"]) <= 1


def test_peers_that_keep_a_model_busy_do_not_keep_a_client_of_this_node_waiting_for_a_whole_turn() -> None:
    def begun(is_own: bool) -> Loader:
        """a is loaded for b's sake, and busy for ever."""
        loader = Loader([model("a", 10), model("b", 10), model("c", 10)], BUDGET)
        loader.handle(Asked("a", is_own), 0.0)
        loader.handle(Loaded("a", 10.0), 10.0)
        return loader

    exchange_s = 20.0
    for keeps, waits, turn in ((False, False, TURN), (True, True, TURN), (True, False, TURN), (False, True, 1.0)):
        loader = begun(is_own=keeps)
        assert changes(loader.handle(Asked("b", is_own=waits), 11.0)) == []
        assert loader.due_at == 10.0 + turn * exchange_s
        assert changes(loader.handle(Looked(), loader.due_at)) == [Unload("a")]
    loader = begun(is_own=False)
    loader.handle(Asked("b", is_own=False), 11.0)
    loader.handle(Asked("c"), 12.0)
    loader.handle(Looked(), 30.0)
    assert loads(loader.handle(Unloaded("a"), 31.0)) == ["c"], "it came later, and comes first"
    loader.check_invariants()


def test_what_is_cut_off_waits_for_its_model_to_come_back() -> None:
    loader = Loader([model("a", 10), model("b", 10)], BUDGET)
    loader.handle(Asked("a", is_own=False), 0.0)
    loader.handle(Loaded("a", 10.0), 10.0)
    loader.handle(Asked("b"), 11.0)
    assert changes(loader.handle(Looked(), 30.0)) == [Unload("a")]
    assert loads(loader.handle(Unloaded("a"), 40.0)) == ["b"]
    loader.handle(Loaded("b", 10.0), 50.0)
    loader.handle(Ended("b"), 51.0)
    loader.check_invariants()
    assert changes(loader.handle(Looked(), 61.0)) == [Unload("b")]
    assert loads(loader.handle(Unloaded("b"), 61.0)) == ["a"]


def test_a_person_who_asks_two_models_in_turns_waits_for_little_more_than_the_load() -> None:
    world = World(model("a", 10, load_s=2.0), model("b", 10, load_s=2.0))
    for turn in range(20):
        world.at(turn * 30.0, Asked("a" if turn % 2 else "b"))
    world.run(600)
    assert max(world.waits) <= 2.0


def test_a_model_that_fits_nowhere_is_refused_and_the_others_go_on() -> None:
    world = World(model("a", 6), model("huge", 15))
    world.ask("huge")
    world.ask("a")
    world.run(30)
    assert world.refused == 1 and world.loaded == {"a"}


def test_an_estimate_is_replaced_by_the_measurement_and_growth_counts() -> None:
    loader = Loader([Declared("a", 10 * GIB, 5.0, stays=False)], BUDGET)
    loader.handle(Asked("a"), 0.0)
    loader.handle(Loaded("a", 1.0, 3 * GIB), 1.0)
    assert loader.num_bytes("a") == 3 * GIB and loader.load_s("a") == 1.0
    loader.handle(Measured("a", 4 * GIB), 2.0)
    loader.handle(Measured("a", 2 * GIB), 3.0)
    assert loader.num_bytes("a") == 4 * GIB


def test_an_engine_that_outgrows_the_plan_pushes_an_idle_one_out() -> None:
    loader = Loader([model("a", 6), model("b", 6)], BUDGET)
    for at, name in enumerate("ab"):
        loader.handle(Asked(name), 10.0 * at)
        loader.handle(Loaded(name, 1.0), 10.0 * at + 1)
    loader.handle(Ended("b"), 20.0)
    assert changes(loader.handle(Measured("a", 9 * GIB), 21.0)) == [Unload("b")]


def test_after_a_failed_load_requests_try_again_and_the_rest_waits() -> None:
    loader = Loader([model("a", 6, stays=True)], BUDGET)
    assert [type(effect) for effect in changes(loader.handle(Looked(), 0.0))] == [Load]
    assert changes(loader.handle(LoadFailed("a"), 1.0)) == [] and 1.0 < loader.due_at < math.inf
    assert [type(effect) for effect in changes(loader.handle(Asked("a"), 2.0))] == [Load]


def test_kept_prefixes_get_what_they_earn() -> None:
    loader = Loader([model("a", 4), model("b", 4)], BUDGET)
    for at, name in enumerate("ab"):
        loader.handle(Asked(name), 10.0 * at)
        loader.handle(Loaded(name, 1.0), 10.0 * at + 1)
    assert loader.kept_bytes("a") == loader.kept_bytes("b") == 4 * GIB
    loader.handle(Ended("a", saved_s=90.0), 20.0)
    loader.handle(Ended("b", saved_s=10.0), 21.0)
    assert loader.kept_bytes("a") > 3 * loader.kept_bytes("b") > 0
    assert loader.kept_bytes("a") + loader.kept_bytes("b") <= 8 * GIB


def test_small_changes_of_what_is_earned_move_nothing() -> None:
    loader = Loader([model("a", 4), model("b", 4)], BUDGET)
    loader.handle(Looked(), 0.0)
    for name in "ab":
        loader.handle(Asked(name), 0.0)
        loader.handle(Loaded(name, 1.0), 0.0)
    loader.handle(Ended("b", 1.0), 1.0)
    loader.handle(Ended("a", 1.0), 1.0)
    after = [loader.kept_bytes(name) for name in "ab"]
    loader.handle(Asked("a"), 2.0)
    loader.handle(Ended("a", LEAST_CHANGE / 2), 2.0)
    assert [loader.kept_bytes(name) for name in "ab"] == after


def test_the_room_for_prefixes_is_never_taken_by_engines() -> None:
    assert BUDGET - int(BUDGET * KEPT_SHARE) == ROOM
    parts = divided(1_000, {"a": 0.0, "b": 0.0, "c": 0.0})
    assert set(parts.values()) == {333}
    assert sum(divided(1_000, {"a": 3.0, "b": 1.0}).values()) <= 1_000


@pytest.mark.parametrize("seed", range(4))
def test_random_requests_are_all_answered_within_the_plan(seed: int) -> None:
    """Poisson requests for models of random sizes: the plan holds at every moment, and nobody waits for ever."""
    rng = random.Random(seed)
    models = [model(str(n), rng.uniform(2, 10), rng.uniform(1, 20), rng.random() < 0.5) for n in range(4)]
    world = World(*models, answer_s=3.0)
    at = 0.0
    num = 400
    for _ in range(num):
        at += rng.expovariate(0.3)
        world.at(at, Asked(str(min(int(rng.expovariate(0.8)), 3))))
    world.run(at + 2_000)
    assert len(world.waits) == num and not world.refused
    assert max(world.waits) < 4 * (TURN + 2) * 40


def test_a_model_that_comes_later_is_loaded_and_one_that_goes_is_forgotten_after_its_last_request() -> None:
    loader = Loader([model("a", 6, stays=True)], BUDGET)
    loader.handle(Looked(), 0.0)
    loader.handle(Loaded("a", 10.0), 10.0)
    (load,) = changes(loader.handle(model("b", 6, stays=True), 20.0))
    assert isinstance(load, Load) and load.model == "b"
    loader.handle(Loaded("b", 10.0), 30.0)
    loader.handle(Asked("a"), 40.0)
    assert changes(loader.handle(Withdrawn("a"), 41.0)) == []
    assert changes(loader.handle(Ended("a"), 42.0)) == [Unload("a")]
    loader.handle(Unloaded("a"), 43.0)
    assert set(loader.states) == {"b"} and loader.kept_bytes("a") == 0
    loader.check_invariants()
    assert loader.asked_per_hour("b", 50.0) == 0


def test_a_model_that_goes_while_it_is_loaded_or_was_never_loaded() -> None:
    loader = Loader([model("a", 6, stays=True), model("b", 4)], BUDGET)
    loader.handle(Looked(), 0.0)
    loader.handle(Withdrawn("a"), 1.0)
    loader.handle(Withdrawn("b"), 1.0)
    assert set(loader.states) == {"a"}
    assert changes(loader.handle(Loaded("a", 10.0), 10.0)) == [Unload("a")]
    assert changes(loader.handle(Unloaded("a"), 11.0)) == [] and not loader.states
    loader.handle(Looked(), 12.0)
