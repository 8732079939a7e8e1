"""Measurements inside the engine: the part of a decode step that is not llama.cpp's, and the cost of a restore.

They are made on the engine's own step loop, in a process of its own, with the settings, the memory tier and the pipe to
a parent that it has in a node. The clock wraps llama.cpp's functions in the bindings, so the engine's code runs
unchanged.

Run as a module, this file is that process: its reports go to stdout, like the engine's, and the result is the last line
of stderr.
"""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import trio

from mycelia.bench.engine.target import FIRST_PLAIN_TOKEN, Settings
from mycelia.node.engine import ipc, pipe
from mycelia.node.engine.child.cells import Evicted
from mycelia.node.engine.child.llama.batch import BatchRow
from mycelia.node.engine.child.llama.bindings import L
from mycelia.node.engine.child.llama.llama import OK
from mycelia.node.engine.child.loop import StepLoop
from mycelia.node.engine.child.tier.tier_store import TierStore
from mycelia.node.engine.child.worker import Service, load
from mycelia.node.engine.child_process import child_environment, load_message
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.cache.tier import GIB, Tier
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling

STREAMS, PROMPT_TOKENS, ANSWER_TOKENS = 8, 50, 48
RESTORED_TOKENS, RESTORES = 1_000, 5
MIN_STEPS = 8
"""With fewer steps with all streams, because answers ended early, the result would mean nothing."""
_TIER_BYTES = 4 * GIB


class Shares(msgspec.Struct, frozen=True):
    """The result, with one entry for each run."""

    step_overhead: list[float]
    tier_restore: list[float]
    """See ``tier_restore_share``; empty for a model whose cells cannot be saved."""


class LlamaClock:
    """Adds up the time inside ``llama_decode`` and ``llama_sampler_sample``."""

    def __init__(self) -> None:
        self.inside_s = 0.0
        self.num_rows = 0
        """Tokens that ``llama_decode`` was given."""
        self.num_samples = 0

    def restart(self) -> None:
        self.inside_s, self.num_rows, self.num_samples = 0.0, 0, 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """While the block runs, every call of the two functions in this process counts."""
        decode, sample = L.llama_decode, L.llama_sampler_sample

        def timed_decode(context: Any, batch: Any) -> Any:
            self.num_rows += batch.n_tokens
            began = time.perf_counter()
            result = decode(context, batch)
            self.inside_s += time.perf_counter() - began
            return result

        def timed_sample(chain: Any, context: Any, output: int) -> Any:
            self.num_samples += 1
            began = time.perf_counter()
            token = sample(chain, context, output)
            self.inside_s += time.perf_counter() - began
            return token

        L.llama_decode, L.llama_sampler_sample = timed_decode, timed_sample
        try:
            yield
        finally:
            L.llama_decode, L.llama_sampler_sample = decode, sample


class Bench:
    """A model and the step loop over it, made as in the engine's own process."""

    def __init__(self, model: Path, settings: Settings, replies: pipe.Replies, seed: int) -> None:
        """replies: where the loop reports. seed: for the prompts. Raises LocalError for a model that fails."""
        wanted = EngineSettings(model, threads=settings.threads, cells=settings.cells, slots=settings.slots)
        service = Service(replies)
        loop, _ = load(load_message(wanted, wanted.cells), replies, service)
        assert isinstance(loop, StepLoop), "a model that writes text"
        self._loop, self._llama = loop, loop.llama
        self._rng = random.Random(seed)  # noqa: S311  no secret
        self._num_requests = 0

    def step_overhead_share(self) -> float:
        """Share of a decode step's wall time that is neither inside ``llama_decode`` nor inside the C sampler's call.

        Eight greedy answers to short unrelated prompts. Only whole steps of the loop count that give each of the eight
        exactly one token, from reading messages to writing reports to the pipe; steps in which answers end count too.
        So the overhead is all Python of the step, except the conversion of arguments, and the engine's other calls into
        llama.cpp: texts of tokens, copies and removals of cells. The parent's work on a report is not included. Raises
        LocalError when too few steps had eight streams.
        """
        for _ in range(STREAMS):
            self._num_requests += 1
            prompt = pack_tokens(self._fresh(PROMPT_TOKENS))
            self._loop.inbox.put(ipc.Submit(self._num_requests, prompt, Sampling(max_tokens=ANSWER_TOKENS), 0))
        clock, wall_s, inside_s, num_steps = LlamaClock(), 0.0, 0.0, 0
        with clock.installed():
            while self._loop.has_work:
                clock.restart()
                began = time.perf_counter()
                self._loop.step()
                ended = time.perf_counter()
                if clock.num_rows == clock.num_samples == STREAMS:
                    wall_s += ended - began
                    inside_s += clock.inside_s
                    num_steps += 1
        if num_steps < MIN_STEPS:
            raise LocalError(f"only {num_steps} steps had {STREAMS} streams: the model ends its answers at once")
        return 1 - inside_s / wall_s

    def tier_restore_share(self) -> float | None:
        """Time to restore the cells of 1,000 tokens from host memory, in units of the time to compute them.

        The prefill is one decode call on cells that no other sequence uses, the fastest way. The restore is the
        engine's own: finding the blobs, checking their hashes, and reading the positions back. It is the median of
        several. None for a model whose cells cannot be saved.
        """
        if not self._llama.can_save:
            return None
        tiers = TierStore(Tier(_TIER_BYTES, 0))
        tokens = self._fresh(RESTORED_TOKENS)
        self._llama.clear_all()
        began = time.perf_counter()
        result, _ = self._llama.decode([BatchRow(0, 0, tokens, True)])
        prefill_s = time.perf_counter() - began
        if result != OK:
            raise LocalError(f"llama.cpp could not decode {RESTORED_TOKENS} tokens ({result})")
        tiers.keep(self._llama, Evicted(0, tokens, 0, Reuse(0.0)))
        restores_s = []
        for _ in range(RESTORES):
            self._llama.clear_all()
            began = time.perf_counter()
            length = tiers.restore(self._llama, 0, tokens, 0, 0.0)
            restores_s.append(time.perf_counter() - began)
            if length != RESTORED_TOKENS:
                raise LocalError(f"only {length} of {RESTORED_TOKENS} tokens could be restored")
        self._llama.clear_all()
        return median(restores_s) / prefill_s

    def _fresh(self, length: int) -> list[int]:
        return [self._rng.randrange(FIRST_PLAIN_TOKEN, self._llama.num_vocab) for _ in range(length)]


async def measure_shares(model: Path, settings: Settings, runs: int, seed: int) -> Shares:
    """Both shares, ``runs`` times, in a child process. Raises LocalError when it fails."""
    arguments = [str(model), str(settings.threads), str(settings.cells), str(settings.slots), str(runs), str(seed)]
    process = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "mycelia.bench.engine.internals", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=child_environment(),
    )
    assert process.stdout is not None and process.stderr is not None
    said = bytearray()

    async def read_reports(stdout: trio.abc.ReceiveStream) -> None:
        frames = pipe.FrameBuffer()
        async for data in stdout:
            frames.feed(data)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_reports, process.stdout)
            async for data in process.stderr:
                said += data
        await process.wait()
    finally:
        with trio.CancelScope(shield=True):
            process.kill()
            await process.wait()
    last = bytes(said).strip().rpartition(b"\n")[2]
    if process.returncode != 0:
        raise LocalError(f"the engine could not be measured from inside: {last.decode('utf-8', 'replace')}")
    return msgspec.json.decode(last, type=Shares)


def _measure(model: str, threads: int, cells: int, slots: int, runs: int, seed: int) -> Shares:
    settings = Settings(threads=threads, cells=cells, slots=slots)
    bench = Bench(Path(model), settings, pipe.Replies(1), seed)
    overheads = [bench.step_overhead_share() for _ in range(runs)]
    # Last, because it clears the cells that the loop uses.
    restores = [bench.tier_restore_share() for _ in range(runs)]
    return Shares(overheads, [share for share in restores if share is not None])


if __name__ == "__main__":
    try:
        shares = _measure(sys.argv[1], *map(int, sys.argv[2:]))
    except LocalError as exc:
        sys.exit(str(exc))
    sys.stderr.write(msgspec.json.encode(shares).decode() + "\n")
