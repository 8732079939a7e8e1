"""Many runs of the simulator at once, one process per core. The results do not depend on the number of processes.

Workers are spawned, not forked, so they share nothing with this process. They end with it, even if it is killed, and
leave Ctrl-C to it.
"""

import gc
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait

from mycelia.sim.outcome import Outcome
from mycelia.sim.scenario import Scenario
from mycelia.sim.simulate import simulate


@dataclass(frozen=True)
class Run:
    scenario: Scenario
    policy: str
    seed: int


def num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def outcomes(runs: Sequence[Run], jobs: int) -> Generator[tuple[int, Outcome, float], None, None]:
    """(place in ``runs``, its outcome, seconds that it took) for each, in the order in which they end. jobs: number of
    processes; 1: only this one. Raises what ``simulate`` raises. Then, and when the caller stops early, the remaining
    runs are ended."""
    if min(jobs, len(runs)) <= 1:
        for place, run in enumerate(runs):
            yield place, *_perform(run)
        return
    others = set(active_children())
    executor = ProcessPoolExecutor(min(jobs, len(runs)), mp_context=get_context("spawn"), initializer=_end_with_parent)
    try:
        with _sigint_ignored():  # (the workers inherit it)
            places = {executor.submit(_perform, run): place for place, run in enumerate(runs)}
        for future in as_completed(places):
            yield places[future], *future.result()
        executor.shutdown()
    finally:
        workers = set(active_children()) - others
        executor.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()


def _perform(run: Run) -> tuple[Outcome, float]:
    began = time.monotonic()
    with no_garbage_collection():
        outcome = simulate(run.scenario, run.policy, run.seed, lambda what: None)
        gc.collect()
    return outcome, time.monotonic() - began


@contextmanager
def _sigint_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """No garbage collection: a simulation keeps millions of objects without cycles, and the search doubles its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
