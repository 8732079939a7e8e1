import trio
import trio.testing

from mycelia.node.signals import Signal


async def test_notify_wakes_every_waiting_task_once() -> None:
    signal, woken = Signal(), []

    async def wait(name: str) -> None:
        await signal.wait()
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, "one")
        nursery.start_soon(wait, "two")
        await trio.testing.wait_all_tasks_blocked()
        signal.notify()
        nursery.start_soon(wait, "late")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["one", "two"]
        signal.notify()
    assert woken[2:] == ["late"]


async def test_an_event_taken_before_the_look_misses_no_change() -> None:
    signal = Signal()
    signal.notify()
    changed = signal.next
    assert not changed.is_set(), "no earlier change counts"
    signal.notify()
    signal.notify()
    assert changed.is_set() and not signal.next.is_set()
    await changed.wait()
