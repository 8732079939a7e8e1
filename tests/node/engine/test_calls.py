"""Questions about texts: their order, the window of the child, and the repetition after its death."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.calls import MAX_WAITING_BYTES, SHORT_WINDOW, Calls
from mycelia.node.errors import BusyError
from mycelia.proto.wire.errors import LocalError

LONG = "x" * (ipc.LONG_CHARS + 1)


class Child:
    """A child that answers when the test calls ``answer``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self.texts: list[str] = []
        """Texts of the received questions, in order."""
        self._keys: list[int] = []
        calls.start(self._take)

    def _take(self, frame: bytes) -> None:
        message = pipe.to_child.decode(frame[4:])
        assert isinstance(message, ipc.Parse)
        self.texts.append(message.text)
        self._keys.append(message.key)

    def answer(self, place: int, error: str = "") -> None:
        self._calls.answered(ipc.Rendered(self._keys[place], b"", error))

    def die(self, is_suspect: bool = True) -> None:
        self._calls.stop()
        self._calls.lost(is_suspect)


class Asked:
    """Running questions and their results."""

    def __init__(self, calls: Calls, nursery: trio.Nursery) -> None:
        self._calls = calls
        self._nursery = nursery
        self.ends: dict[str, str] = {}
        """Text -> "answered" or the error."""

    async def ask(self, text: str, client: bytes = b"") -> trio.CancelScope:
        """Ask, and return when the question waits or the child has it."""
        scope = trio.CancelScope()
        self._nursery.start_soon(self._ask, text, client, scope)
        await wait_all_tasks_blocked()
        return scope

    async def _ask(self, text: str, client: bytes, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._calls.ask_once(text, lambda key: ipc.Parse(key, text), client, "")
                self.ends[text] = "answered"
            except LocalError as exc:
                self.ends[text] = str(exc)


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[Asked, Child, Calls]]:
    calls = Calls(count())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield Asked(calls, nursery), Child(calls), calls
            nursery.cancel_scope.cancel()


async def test_what_killed_a_child_is_not_asked_again_and_what_it_was_not_at_is() -> None:
    async with asking() as (asked, child, calls):
        for text in ("killer", "innocent", LONG):
            await asked.ask(text)
        assert child.texts == ["killer", "innocent", LONG]
        child.die()
        await wait_all_tasks_blocked()
        died = "the engine process died while it read this text"
        assert asked.ends == {"killer": died, LONG: died}, "the first of the short ones, and of the long ones"
        second = Child(calls)
        assert second.texts == ["innocent"]
        second.answer(0)
        await wait_all_tasks_blocked()
        assert asked.ends["innocent"] == "answered"


async def test_all_is_asked_again_when_the_child_died_of_something_else() -> None:
    async with asking() as (asked, child, calls):
        await asked.ask("one")
        left = await asked.ask("nobody waits for this")
        left.cancel()
        await wait_all_tasks_blocked()
        child.die(is_suspect=False)
        await asked.ask("two")
        assert Child(calls).texts == ["one", "two"] and not asked.ends


async def test_a_question_that_waits_while_there_is_no_child_is_asked_of_the_next() -> None:
    async with asking() as (asked, child, calls):
        child.die()
        await asked.ask("later")
        assert not asked.ends
        assert Child(calls).texts == ["later"]


async def test_long_texts_go_one_by_one_in_turn_and_short_ones_past_them() -> None:
    async with asking() as (asked, child, _):
        for number in range(4):
            await asked.ask(f"{number}{LONG}", b"greedy")
        await asked.ask(f"honest{LONG}", b"honest")
        await asked.ask("short", b"honest")
        assert child.texts == [f"0{LONG}", "short"]
        child.answer(0)
        child.answer(2)
        assert child.texts[2:] == [f"1{LONG}", f"honest{LONG}"], "not all of the greedy one's come first"


async def test_a_window_of_short_questions_is_with_the_child() -> None:
    async with asking() as (asked, child, _):
        for number in range(SHORT_WINDOW + 3):
            await asked.ask(f"{number}")
        assert len(child.texts) == SHORT_WINDOW
        child.answer(5)
        assert len(child.texts) == SHORT_WINDOW + 1


async def test_who_asks_alike_at_a_time_asks_once() -> None:
    async with asking() as (asked, child, _):
        first = await asked.ask("prompt", b"one")
        for _ in range(9):
            await asked.ask("prompt", b"one")
        await asked.ask("prompt", b"other")
        assert child.texts == ["prompt", "prompt"], "one for each client"
        first.cancel()
        await wait_all_tasks_blocked()
        assert child.texts == ["prompt"] * 3, "another of the nine asks for them now"
        child.answer(2, "no prompt")
        await wait_all_tasks_blocked()
        assert asked.ends == {"prompt": "no prompt"}


async def test_what_waits_is_bounded_in_bytes_and_a_client_leaves_room_for_others() -> None:
    size = MAX_WAITING_BYTES // 64
    async with asking() as (asked, _, calls):
        for number in range(80):
            await asked.ask(f"{number:<{size}}", b"greedy")
        refused = [text for text, end in asked.ends.items() if end == "too many texts wait to be read"]
        assert 80 - 33 <= len(refused) < 80 - 20
        await asked.ask("x" * size, b"honest")
        assert "x" * size not in asked.ends
        with pytest.raises(BusyError) as caught:
            await calls.ask(lambda key: ipc.Parse(key, "y" * size), b"greedy")
        assert caught.value.retry_s > 0
