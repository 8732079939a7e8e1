"""A node that chooses its model: over the in-memory network, with fake engines and a pool without processes."""

import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from mycelia.node.auto import auto as auto_module
from mycelia.node.auto import fetch
from mycelia.node.auto.auto import AUTO_FILE, Auto, Kept, Part
from mycelia.node.auto.fetch import Say, pull
from mycelia.node.auto.machine import Machine, options
from mycelia.node.engine.engine import Engine
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.settings import FakeSettings
from mycelia.node.engine.pool.pool import PoolModel, open_pool
from mycelia.node.engine.settings import EngineSettings
from mycelia.node.errors import PassingError
from mycelia.node.models.catalogue import Catalogue, Entry
from mycelia.node.models.find import MissingError
from mycelia.node.queries.demand import TELL_EVERY_S
from mycelia.node.swarms import Swarms
from mycelia.proto.cache.tier import GIB
from mycelia.proto.supply.chooser import INTERVAL_S
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Answered
from tests.node.members import Member, an_ask, frames_of, open_members
from tests.node.threads import run_here

RATE = 100.0
DEADLINE_S = 240.0


def entry(size_mb: int) -> Entry:
    return Entry("hf:o/r:Q4_0", "1B", size_mb, 1_000, 8_192, "MIT", "a test")


CATALOGUE: Catalogue = {"qwen3-4b": entry(900), "smollm3-3b": entry(800), "qwen3-30b-a3b": entry(90_000)}


class FakePool:
    """Engines without processes."""

    def __init__(self) -> None:
        self.engines: dict[str, Engine] = {}
        self.broken = set[str]()

    @property
    def names(self) -> set[str]:
        return {"toy", *self.engines}

    def room_beside(self, name: str) -> int:
        return 4 * GIB

    def asked_per_hour(self, name: str) -> float:
        return 0.0

    async def add(self, model: PoolModel) -> Engine:
        if model.name in self.broken:
            raise LocalError("llama.cpp does not know it")
        engine = FakeEngine(FakeSettings(model_name=model.name, prefill_rate=RATE, decode_rate=RATE))
        self.engines[model.name] = engine
        return engine

    async def remove(self, name: str) -> None:
        del self.engines[name]


class Choosing:
    """Five members, of which the first one chooses its model."""

    def __init__(self, members: list[Member], data_dir: Path, nursery: trio.Nursery) -> None:
        self.one, *self.others = members
        self.pool, self.here, self.fetched = FakePool(), {"smollm3-3b"}, list[str]()
        self.is_hub_gone = False
        self._args = data_dir, nursery
        self.catalogue: Callable[[], Catalogue] = lambda: CATALOGUE
        self.auto = self.made()

    def made(self, *others: Member) -> Auto:
        """others: further parts of the node."""
        data_dir, nursery = self._args
        return Auto(
            self.pool,
            [Part(member.node, lambda shares: shares.of(b"")) for member in (self.one, *others)],
            data_dir,
            nursery,
            lambda path: PoolModel(EngineSettings(Path(path), Path(path).name, fake=True)),
            find=self.find,
            fetch=self.fetch,
            catalogue=lambda: self.catalogue(),
            rng=random.Random(1),
        )

    def find(self, name: str) -> Path:
        if name not in self.here:
            raise MissingError(name)
        return Path(name)

    async def fetch(self, name: str, say: Say) -> None:
        if self.is_hub_gone:
            raise PassingError("cannot ask the hub")
        say(f"1 of 2 bytes of {name}")
        await trio.sleep(10)
        self.fetched.append(name)
        self.here.add(name)

    async def want(self, model: str, num: int = 30) -> None:
        """Clients of the other members ask in vain."""
        for member in self.others:
            for _ in range(num):
                member.node.demand.ended(model, "unknown_model")

    async def decided(self) -> None:
        """Hears what the others were asked for, and decides."""
        await trio.sleep(TELL_EVERY_S + 1)
        for _ in range(4):  # (three others each time, at random)
            await self.auto.listen()
        await self.auto.decide()


@pytest.fixture(autouse=True)
def _quick_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto_module, "run_in_thread", run_here)
    monkeypatch.setattr(auto_module, "memory_rate", lambda: 20e9)
    monkeypatch.setattr(auto_module, "free_gpu_bytes", lambda: 0)
    monkeypatch.setattr(auto_module, "free_disk_bytes", lambda folder: 10**11)


@asynccontextmanager
async def open_choosing(tmp_path: Path) -> AsyncIterator[Choosing]:
    models = ["toy", *[f"m{number}" for number in range(4)]]
    async with (
        open_members(5, models=models, prefill_rate=RATE, decode_rate=RATE) as (_, members),
        trio.open_nursery() as nursery,
    ):
        yield Choosing(members, tmp_path, nursery)
        nursery.cancel_scope.cancel()


async def test_it_serves_what_is_lacking_and_moves_on(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with open_choosing(tmp_path) as made:
        node = made.one.node
        assert "listens" in Swarms(node, auto=made.auto.text).state().auto
        await made.want("smollm3-3b")
        await made.decided()
        assert node.own_models == ["smollm3-3b", "toy"] and made.fetched == [], "it is here already"
        assert "smollm3-3b" in made.auto.text() and "lack an answer" in made.auto.text()
        answered = (await frames_of(made.others[0], an_ask("hello", model="smollm3-3b")))[-1]
        assert isinstance(answered, Answered) and answered.served_by == made.one.peer
        unnamed = (await frames_of(made.one, an_ask("hello")))[-1]
        assert isinstance(unnamed, Answered) and node.model == "smollm3-3b"

        await made.decided()
        assert node.own_models == ["smollm3-3b", "toy"], "nothing else is lacking"
        await made.want("qwen3-4b", 200)
        await made.decided()
        assert (
            made.fetched == ["qwen3-4b"]
            and node.own_models == ["qwen3-4b", "toy"]
            and set(made.pool.engines) == {"qwen3-4b"}
        )
        assert AUTO_FILE.load(tmp_path) is not None
        reports = [one for other in made.others for one in await other.node.demand.ask(is_private=False)]
        assert any(report.demand.chooses and "qwen3-4b" in report.demand.coming for report in reports)


async def test_after_a_restart_it_serves_the_same_and_does_not_decide_sooner(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_choosing(tmp_path) as made:
        now = made.one.node.now()
        AUTO_FILE.save(tmp_path, Kept("smollm3-3b", decided_at=now - 60))
        again = made.made()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.run)
            await trio.sleep(10)
            assert made.one.node.own_models == ["smollm3-3b", "toy"]
            assert again.chooser.due_at >= now + INTERVAL_S - 61
            nursery.cancel_scope.cancel()
        AUTO_FILE.save(tmp_path, Kept("gone", decided_at=now))
        lost = made.made()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost.run)
            await trio.sleep(10)
            assert lost.chooser.held == ""
            nursery.cancel_scope.cancel()


async def test_a_download_that_was_cut_off_goes_on_after_a_restart(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_choosing(tmp_path) as made:
        await made.want("qwen3-4b", 200)
        with trio.move_on_after(TELL_EVERY_S + 6):
            await made.decided()
        assert made.fetched == [] and "1 of 2 bytes of qwen3-4b" not in made.auto.text(), "its process has ended"
        again = made.made()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.run)
            await trio.sleep(5)
            assert "goes on fetching qwen3-4b" in again.text() and "(1 of 2 bytes of qwen3-4b)" in again.text()
            assert again.chooser.coming(made.one.node.now()) == ("qwen3-4b",)
            await trio.sleep(10)
            assert made.one.node.own_models == ["qwen3-4b", "toy"] and made.fetched == ["qwen3-4b"]
            nursery.cancel_scope.cancel()
        kept = AUTO_FILE.load(tmp_path)
        assert kept is not None and (kept.model, kept.fetching) == ("qwen3-4b", "")


async def test_a_model_that_one_part_of_the_node_cannot_serve_is_served_by_none(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_choosing(tmp_path) as made:
        await made.others[0].node.serve(FakeEngine(FakeSettings(model_name="smollm3-3b")))
        AUTO_FILE.save(tmp_path, Kept("smollm3-3b", decided_at=made.one.node.now()))
        both = made.made(made.others[0])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(both.run)
            await trio.sleep(10)
            assert both.chooser.held == "" and not made.pool.engines
            assert made.one.node.own_models == ["toy"] and made.others[0].node.own_models == ["m0", "smollm3-3b"]
            nursery.cancel_scope.cancel()


async def test_a_model_that_cannot_be_served_changes_nothing(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_choosing(tmp_path) as made:
        made.pool.broken.add("smollm3-3b")
        await made.want("smollm3-3b", 100)
        await made.decided()
        assert made.one.node.own_models == ["toy"] and "cannot be served" in made.auto.text()
        await made.want("smollm3-3b", 100)
        await made.decided()
        assert "smollm3-3b" not in made.one.node.own_models


async def test_a_hub_that_could_not_be_reached_is_asked_again_within_minutes_also_after_a_restart(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_choosing(tmp_path) as made:
        made.is_hub_gone = True
        await made.want("qwen3-4b", 200)
        await made.decided()
        now = made.one.node.now()
        assert "cannot ask the hub" in made.auto.text() and made.auto.chooser.due_at < now + 180
        assert made.made().chooser.due_at < now + 960, "its failure was no decision"
        made.is_hub_gone = False
        await trio.sleep(made.auto.chooser.due_at - now)
        await made.want("qwen3-4b", 200)
        await made.auto.listen()
        await made.auto.decide()
        assert made.one.node.own_models == ["qwen3-4b", "toy"]


async def test_it_says_why_it_can_choose_none(
    autojump_clock: trio.testing.MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_choosing(tmp_path) as made:
        monkeypatch.setattr(auto_module, "free_disk_bytes", lambda folder: 10**6)
        made.here.clear()
        await made.auto.decide()
        assert "1.0 MB of the disk" in made.auto.text() and "4.3 GB of memory" in made.auto.text()

        def broken() -> Catalogue:
            raise LocalError("catalogue.toml is not TOML")

        made.catalogue = broken
        await made.auto.decide()
        assert "cannot choose: catalogue.toml is not TOML" in made.auto.text()


async def test_one_neighbour_that_lies_moves_nobody(autojump_clock: trio.testing.MockClock, tmp_path: Path) -> None:
    async with open_choosing(tmp_path) as made:
        await made.want("smollm3-3b")
        await made.decided()
        for _ in range(4):
            for _ in range(10_000):
                made.others[0].node.demand.ended("qwen3-4b", "overloaded")
            await made.decided()
        assert made.one.node.own_models == ["smollm3-3b", "toy"]


async def test_a_report_names_no_model_that_only_its_client_knows(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    async with open_members(2, models=("a", "b")) as (_, (one, other)):
        for _ in range(50):
            for model in ("a", "b", "qwen3-4b", "Qwen3-4B-Q4_K_M", "my-secret-project"):
                one.node.demand.ended(model, "unknown_model")
                one.node.demand.ended(model, "bad_request")
                one.node.demand.ended(model, "")
        (report,) = await other.node.demand.ask(is_private=False)
        assert {row.model for row in report.demand.models} == {"a", "b", "qwen3-4b"}
        rates = {row.model: row.asked for row in report.demand.models}
        assert rates["qwen3-4b"] == 2 * rates["a"] and not report.demand.chooses
        (private,) = await other.node.demand.ask(is_private=True)
        assert private.subnet == one.peer.hex()


def real(path: str) -> PoolModel:
    return PoolModel(EngineSettings(Path(path), path, slots=2, fake=True))


async def test_it_moves_between_engines_in_processes(tmp_path: Path) -> None:
    """With the pool that nodes have, and an answer of the model that it leaves under way."""
    names = {"smollm3-3b": "fake-b", "qwen3-4b": "fake-c"}
    async with (
        open_members(1) as (_, (one,)),
        open_pool([real("fake-a")], tmp_path, 4 * GIB) as pool,
        trio.open_nursery() as nursery,
    ):
        part = Part(one.node, lambda shares: shares.of(b""))
        auto = Auto(
            pool,
            [part],
            tmp_path,
            nursery,
            real,
            find=lambda name: Path(names.get(name, "fake-x")),
            catalogue=lambda: CATALOGUE,
        )
        with trio.fail_after(DEADLINE_S):
            await auto.decide()
            assert one.node.own_models == ["fake-c", "fake"] and pool.names == {"fake-a", "fake-c"}, auto.text()
            for _ in range(300):
                one.node.demand.ended("smollm3-3b", "unknown_model")
            async with one.node.ask(an_ask("hello", max_tokens=200)) as frames, trio.open_nursery() as moving:
                await anext(frames)
                moving.start_soon(auto.decide)
                rest = [frame async for frame in frames]
            assert isinstance(rest[-1], Answered) and pool.names == {"fake-a", "fake-b"}
            answered = (await frames_of(one, an_ask("hello")))[-1]
            assert isinstance(answered, Answered) and one.node.own_models == ["fake-b", "fake"]
        nursery.cancel_scope.cancel()


async def test_a_download_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said: list[str] = []
    with trio.fail_after(DEADLINE_S), pytest.raises(PassingError, match=r"^cannot ask .*Qwen3-4B-GGUF"):
        await pull("qwen3-4b", said.append)
    assert len(said) == 1


_TELLS_AND_WAITS = "import os, sys; print(os.getpid(), os.getsid(0), file=sys.stderr, flush=True); sys.stdin.read()"


async def test_a_download_is_out_of_a_terminals_reach_and_its_violent_end_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fetch, "program", lambda: [sys.executable, "-c", _TELLS_AND_WAITS])

    def kill(line: str) -> None:
        pid, session = map(int, line.split())
        assert session == pid, "a terminal's Ctrl-C does not reach it"
        os.kill(pid, signal.SIGKILL)

    with trio.fail_after(DEADLINE_S), pytest.raises(LocalError, match="was ended by SIGKILL"):
        await pull("qwen3-4b", kill)


def test_models_that_others_choose_leave_half_of_the_disk_free() -> None:
    models = {"one": entry(10_000), "two": entry(20_000), "three": entry(25_000)}
    here = set[str]()

    def offered(disk_gb: float) -> set[str]:
        machine = Machine(10**12, 0, round(disk_gb * 10**9), 10**12, 10**8)
        return {option.name for option in options(models, machine, here.__contains__, {})}

    assert offered(21) == {"one"} and offered(22) == {"one", "two"}, "the first one gets all but 2 GB"
    here.add("one")
    assert offered(50) == {"one", "two"} and offered(49) == {"one"} and offered(60) == {"one", "two", "three"}
    here.add("two")
    assert offered(79) == {"one", "two"} and offered(80) == {"one", "two", "three"}
