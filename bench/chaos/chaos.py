"""``mycelia bench chaos``: real nodes are killed, frozen or lose their engines, and every answer is compared.

Clients are like ``mycelia ask`` on a machine without a node: each joins through the node that answers first, so a fault
hits entry nodes as well as serving ones. First one undisturbed node answers every prompt greedily; then the swarm
answers them under faults. In exact mode (``mycelia node --exact``) a token depends neither on cached prefixes nor on
other answers, so every difference is a fault of the protocol. Without exact mode, the first difference of an answer may
be a tie: if the two likeliest tokens there are about equal, it is counted separately.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import trio

from mycelia.bench.chaos.faults import FaultInjector, open_nodes
from mycelia.bench.plans import FAULTS, ChaosBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, rows_of
from mycelia.node.client.ask import ask_swarm
from mycelia.node.client.light import UNREACHED_AGAIN_S, LightClient, NoEntryError
from mycelia.node.requests.salts import PUBLIC_SALT
from mycelia.node.views.frames import AnsweredView, FailedView, TextView
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask, ChatMessage, Sampling
from mycelia.sim.outcome import percentile

ANSWER_DEADLINE_S = 600.0
TIE_GAP = 1e-3
"""Difference between the natural logarithms of two probabilities below which rounding decides."""
REFERENCE_AT_ONCE = 4

_TOPICS = ("a lighthouse", "two rivers", "the old mill", "a night train", "an island of goats", "the glass maker")
_PREFACE = (
    "You are a patient teller of stories for a small radio station by the sea. Every story begins in the middle of"
    " things, names one person, one animal and one kind of weather, and never explains its own ending. Keep to plain"
    " words and short sentences, as if the listener were falling asleep. Here is what the listener asked for: "
)


@dataclass
class Stream:
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    gap_s: float = 0.0
    resumed: int = 0
    computed_s: float = 0.0
    """Time that the last node took before its first token: waiting for a slot, and computing what was not cached."""
    failure: str = ""
    num_retries: int = 0
    """Retries after a refusal before the first token."""


@dataclass(frozen=True)
class Difference:
    """The differences between an answer and the undisturbed one."""

    num_lost: int = 0
    num_repeated: int = 0
    num_wrong: int = 0
    first: int | None = None
    """Place of the first one; None: there is none."""


def compare(expected: Sequence[int], got: Sequence[int]) -> Difference:
    """Counts missing, surplus and different tokens."""
    lost = repeated = wrong = 0
    first = None
    for kind, a, b, c, d in SequenceMatcher(None, expected, got, autojunk=False).get_opcodes():
        if kind != "equal":
            first = min(a, c) if first is None else first
            wrong += min(b - a, d - c)
            lost += max(b - a - (d - c), 0)
            repeated += max(d - c - (b - a), 0)
    return Difference(lost, repeated, wrong, first)


async def bench_chaos(bench: ChaosBench) -> Report:
    """Run the benchmark. Raises LocalError when a swarm does not start, or no fault happened."""
    faults = FAULTS if "all" in bench.faults else bench.faults
    bench = replace(bench, faults=faults, num_prompts=min(bench.num_prompts, bench.num_streams))
    asks = [_ask_of(bench, number) for number in range(bench.num_prompts)]
    progress = Progress(bench.num_prompts + bench.num_streams)
    began = trio.current_time()
    with TemporaryDirectory(prefix="mycelia-chaos-", ignore_cleanup_errors=True) as root:
        expected = await _undisturbed(bench, asks, Path(root) / "calm", progress)
        order = [number % bench.num_prompts for number in range(bench.num_streams)]
        random.Random(f"order {bench.seed}").shuffle(order)  # noqa: S311
        opened = open_nodes(bench.num_nodes, bench.options, Path(root) / "faults", bench.faults, bench.other_version)
        async with opened as nodes:
            injector = FaultInjector(nodes, bench.faults, bench.every_s, random.Random(f"faults {bench.seed}"))  # noqa: S311
            async with trio.open_nursery() as nursery:
                nursery.start_soon(injector.run)
                addresses = nodes.addresses
                streams = await _ask_all([asks[number] for number in order], addresses, bench.at_once, progress)
                nursery.cancel_scope.cancel()
        if not injector.num_faults:
            raise LocalError("all answers were there before the first fault: more --streams, or --every less")
        for failure in sorted({stream.failure for stream in streams if stream.failure}):
            progress.show(f"failed: {failure}")
        wanted = [expected[number] for number in order]
        differences = [compare(one.tokens, stream.tokens) for one, stream in zip(wanted, streams, strict=True)]
        ties = await _ties(bench, asks, order, wanted, differences, streams, Path(root) / "calm")
    progress.close()
    return report_of("chaos", _rows(streams, differences, ties, injector.num_faults, trio.current_time() - began))


def _rows(
    streams: Sequence[Stream], differences: Sequence[Difference], ties: set[int], num_faults: int, wall_s: float
) -> list[Row]:
    finished = [place for place, stream in enumerate(streams) if not stream.failure]
    counted = [differences[place] for place in finished if place not in ties]
    gaps_s = sorted(stream.gap_s for stream in streams if stream.resumed) or [0.0]
    # (if an answer moved once, the gap includes what its last node computed first)
    over_s = sorted(max(one.gap_s - one.computed_s, 0.0) for one in streams if one.resumed == 1) or [0.0]
    rows = [
        ("finished", "streams", len(finished)),
        ("failed", "streams", len(streams) - len(finished)),
        ("lost_tokens", "tokens", sum(one.num_lost for one in counted)),
        ("repeated_tokens", "tokens", sum(one.num_repeated for one in counted)),
        ("wrong_tokens", "tokens", sum(one.num_wrong for one in counted)),
        ("ties", "streams", len(ties)),
        ("gap_s_p50", "s", percentile(gaps_s, 0.5)),
        ("gap_s_p99", "s", percentile(gaps_s, 0.99)),
        ("gap_over_prefill_s_p50", "s", percentile(over_s, 0.5)),
        ("gap_over_prefill_s_p99", "s", percentile(over_s, 0.99)),
        ("resumed", "streams", sum(1 for stream in streams if stream.resumed)),
        ("retried", "streams", sum(1 for stream in streams if stream.num_retries)),
        ("faults", "faults", num_faults),
        ("wall_s", "s", wall_s),
    ]
    return rows_of(rows)


def _ask_of(bench: ChaosBench, number: int) -> Ask:
    text = f"{_PREFACE}story number {number + 1}, about {_TOPICS[number % len(_TOPICS)]}."
    return Ask(
        request_id=bytes(16),
        model="",
        messages=(ChatMessage(role="user", content=text),),
        sampling=Sampling(max_tokens=bench.max_tokens, temperature=0.0),
        cache_salt=PUBLIC_SALT,
    )


# --- asking ---------------------------------------------------------------------------------------------------------


async def _ask_all(asks: Sequence[Ask], addresses: Sequence[str], at_once: int, progress: Progress) -> list[Stream]:
    streams: dict[int, Stream] = {}
    places = iter(range(len(asks)))

    async def client() -> None:
        for place in places:
            streams[place] = await ask_once(asks[place], addresses)
            progress.step(f"{sum(1 for one in streams.values() if one.resumed)} answers went on elsewhere")

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(client)
    return [streams[place] for place in range(len(asks))]


async def ask_once(ask: Ask, addresses: Sequence[str]) -> Stream:
    """Asks like ``mycelia ask --wait`` on a machine without a node."""
    due_at = trio.current_time() + ANSWER_DEADLINE_S
    num_retries = 0
    client = LightClient()
    while True:
        stream = Stream(num_retries=num_retries)
        failed = await _follow(ask, addresses, due_at - trio.current_time(), stream, client)
        if failed is None or stream.tokens or not failed.retry_after_s or trio.current_time() >= due_at:
            stream.failure = failed.message if failed is not None else ""
            return stream
        num_retries += 1
        await trio.sleep(max(failed.retry_after_s, 0.5))


async def _follow(
    ask: Ask, addresses: Sequence[str], left_s: float, stream: Stream, client: LightClient
) -> FailedView | None:
    """None: answered."""
    last_s: float | None = None
    nowhere = Path("/nonexistent")  # (so that no node of this user is found)
    try:
        async with ask_swarm(ask, nowhere, addresses, left_s, client) as frames:
            async for frame in frames:
                match frame:
                    case TextView():
                        now = trio.current_time()
                        stream.gap_s = max(stream.gap_s, now - (last_s or now))
                        last_s = now
                        stream.tokens += frame.tokens
                        stream.text += frame.text
                    case AnsweredView():
                        stream.resumed = frame.resumed
                        stream.computed_s = (frame.queue_ms + frame.prefill_ms) / 1000
                        return None
                    case FailedView():
                        return frame
                    case _:
                        pass
    except NoEntryError as exc:
        return FailedView("no_peer", str(exc), True, UNREACHED_AGAIN_S)
    except LocalError as exc:
        return FailedView("no_peer", str(exc), True)
    return FailedView("no_peer", "the answer ended before it was finished", True)


async def _undisturbed(bench: ChaosBench, asks: Sequence[Ask], root: Path, progress: Progress) -> list[Stream]:
    async with open_nodes(1, bench.options, root) as nodes:
        expected = await _ask_all(asks, nodes.addresses, REFERENCE_AT_ONCE, progress)
    for stream in expected:
        if stream.failure:
            raise LocalError(f"an undisturbed node could not answer: {stream.failure}")
    return expected


async def _ties(
    bench: ChaosBench,
    asks: Sequence[Ask],
    order: Sequence[int],
    wanted: Sequence[Stream],
    differences: Sequence[Difference],
    streams: Sequence[Stream],
    root: Path,
) -> set[int]:
    """Places of the streams whose first difference is a tie of the two likeliest tokens."""
    differing = [place for place, one in enumerate(differences) if one.first is not None and not streams[place].failure]
    if not differing:
        return set()
    ties = set()
    async with open_nodes(1, bench.options, root) as nodes:
        for place in differing:
            first = differences[place].first or 0
            ask = asks[order[place]]
            sampling = msgspec.structs.replace(ask.sampling, max_tokens=first + 1, logprobs=2)
            common = pack_tokens(wanted[place].tokens[:first])
            one = msgspec.structs.replace(ask, sampling=sampling, answered=common)
            async with ask_swarm(one, Path("/nonexistent"), nodes.addresses) as frames:
                entries = [entry async for frame in frames if isinstance(frame, TextView) for entry in frame.logprobs]
            if entries and abs(entries[0].top[0].logprob - entries[0].top[1].logprob) < TIE_GAP:
                ties.add(place)
    return ties
