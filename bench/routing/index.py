"""``mycelia bench index``: the time to find the longest match of all peers, and the cost of the index.

The population: prompts of ``PROMPT_TOKENS`` random tokens, in families with equal beginnings, as a system prompt, a
tool's description or few-shot examples. Each peer draws prompts with Zipf weights until it holds its share of the
residencies; it holds half of them whole, and half cut somewhere after the family's beginning. A lookup asks for a
prompt drawn in the same way. Without families no prompts share a beginning and a holder has any part of a prompt, so
the set of holders changes at almost every holder: the index's worst case.

Each side gets a prompt in its fastest form: Dynamo a list, ours the array that a node gets from its tokenizer and the
wire. In the row with ``list`` in its name, ours gets the list too. The rows with ``all`` write out every peer's match,
as Dynamo does and a router need not; the ratio compares these.

Updates and memory: a digest of 4,096 blocks from each of 100 peers of such a population. The rows with ``unrelated`` in
their names use blocks that are no prefix, the worst that peers could announce.
"""

import random
import time
import tracemalloc
from array import array
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import median, quantiles

from mycelia.bench.plans import IndexBench
from mycelia.bench.report.report import Progress, Report, report_of, row_of
from mycelia.bench.routing.dynamo import Dynamo, open_dynamo
from mycelia.proto.digests.digest import pack_hashes, unpack_hashes
from mycelia.proto.digests.index import Index, Matches
from mycelia.proto.wire.blocks import STRIDE, block_hashes
from mycelia.proto.wire.errors import LocalError

PROMPT_TOKENS = 8_192
_BLOCKS = PROMPT_TOKENS // STRIDE
_SHARED_BLOCKS = (8, 64)
_LOOKUPS = 1_000
_UPDATE_PEERS, UPDATE_BLOCKS = 100, 4_096
_NAMESPACE = bytes(16)


@dataclass(frozen=True)
class Population:
    """The prompts that each peer holds."""

    prompts: Sequence["array[int]"]
    chains: Sequence["array[int]"]
    """Block hashes of each prompt."""
    weights: Sequence[float]
    """Cumulative chances of the prompts."""
    held: Sequence[dict[int, int]]
    """For each peer: prompt -> number of leading blocks."""

    def draw(self, rng: random.Random) -> int:
        return bisect(self.weights, rng.random() * self.weights[-1])

    def digests(self) -> list[list[int]]:
        """The blocks that each peer holds, in the order of the wire."""
        return [
            sorted({block for prompt, depth in held.items() for block in self.chains[prompt][:depth]})
            for held in self.held
        ]


def make_population(peers: int, residencies: int, zipf: float, families: int, rng: random.Random) -> Population:
    """About ``residencies`` blocks spread over ``peers``, about half as many of them distinct, or more if peers are
    few. families: 0 for prompts that share nothing. Raises LocalError when there are fewer blocks than peers."""
    share = residencies // peers
    if not share:
        raise LocalError(f"{residencies} blocks cannot be spread over {peers} peers")
    count = -(-max(residencies // 2, 4 * share) // _BLOCKS)
    prompts, shared = _make_prompts(count, families, rng)
    chains = [block_hashes(_NAMESPACE, prompt) for prompt in prompts]
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(count)))
    population = Population(prompts, chains, weights, [{} for _ in range(peers)])
    for held in population.held:
        missing, known = share, set[int]()
        while missing > 0:
            # A peer that has most of the popular prompts takes any other, or a skewed draw would never end.
            prompt = population.draw(rng) if len(held) < count / 8 else rng.randrange(count)
            least = 1 if not families else shared[prompt]
            depth = _BLOCKS if families and rng.random() < 0.5 else rng.randint(least, _BLOCKS)
            new = [block for block in chains[prompt][:depth] if block not in known][:missing]
            known.update(new)
            missing -= len(new)
            if new:
                held[prompt] = max(held.get(prompt, 0), chains[prompt].index(new[-1]) + 1)
    return population


def _make_prompts(count: int, families: int, rng: random.Random) -> tuple[list["array[int]"], list[int]]:
    """Prompts, and the number of blocks that each shares with its family."""

    def tokens(number: int) -> "array[int]":
        return array("I", (rng.randrange(50_000) for _ in range(number)))

    beginnings = [tokens(STRIDE * rng.randint(*_SHARED_BLOCKS)) for _ in range(families)] or [array("I")]
    chosen = [rng.choice(beginnings) for _ in range(count)]
    prompts = [beginning + tokens(PROMPT_TOKENS - len(beginning)) for beginning in chosen]
    return prompts, [len(beginning) // STRIDE for beginning in chosen]


def bench_index(bench: IndexBench) -> Report:
    """Run the benchmark. Raises LocalError when a measurement fails."""
    dynamo = open_dynamo() if bench.against else None
    runs, zipf, families = bench.runs, bench.zipf, bench.families
    progress = Progress(3 + runs)
    rng = random.Random(bench.seed)  # noqa: S311  no secret
    progress.step("making the population")
    population = make_population(bench.peers, bench.residencies, zipf, families, rng)
    index = Index()
    for number, held in enumerate(population.held):
        for prompt, depth in held.items():
            index.add(_peer(number), population.chains[prompt][:depth])
            if dynamo is not None:
                dynamo.store(number, population.prompts[prompt][: depth * STRIDE])
    values: dict[str, list[float]] = {}
    for run in range(runs):
        progress.step(f"run {run + 1} of {runs}")
        for name, value in _lookups(index, population, dynamo, rng).items():
            values.setdefault(name, []).append(value)
    progress.step("updates")
    digests = make_population(_UPDATE_PEERS, _UPDATE_PEERS * UPDATE_BLOCKS, zipf, families, rng).digests()
    unrelated = _random_digests(rng)
    values["update_blocks_per_s"] = [_update_rate(digests) for _ in range(runs)]
    values["update_unrelated_blocks_per_s"] = [_update_rate(unrelated) for _ in range(runs)]
    progress.step("memory")
    values["bytes_per_residency"] = [_bytes_per_residency(digests)]
    values["bytes_per_unrelated_residency"] = [_bytes_per_residency(unrelated)]
    progress.close()
    units = {"dynamo_ratio": "ours/theirs"}
    units |= dict.fromkeys(("update_blocks_per_s", "update_unrelated_blocks_per_s"), "1/s")
    units |= dict.fromkeys(("bytes_per_residency", "bytes_per_unrelated_residency"), "bytes")
    return report_of("index", [row_of(name, units.get(name, "us"), each) for name, each in values.items()])


def _lookups(index: Index, population: Population, dynamo: Dynamo | None, rng: random.Random) -> dict[str, float]:
    """Times of one run, in microseconds. All sides get the same prompts, one side after the other, so that each finds
    the processor's caches as its own lookups left them."""
    drawn = [population.draw(rng) for _ in range(_LOOKUPS)]
    prompts = [population.prompts[number] for number in drawn]
    plain = [_timed(index.matches, population.chains[number]) for number in drawn]
    # Copied right before, because a tokenizer has just written a prompt when it is looked up.
    hashed = [_timed(_hash_and_match, index, prompt[:]) for prompt in prompts]
    written = [_timed(_hash_and_write_out, index, prompt[:]) for prompt in prompts]
    listed = [_timed(_hash_and_write_out, index, prompt.tolist()) for prompt in prompts]
    theirs = [_timed(dynamo.match, prompt.tolist()) for prompt in prompts] if dynamo is not None else []
    result = {
        "lookup_us_p50": median(plain),
        "lookup_us_p99": quantiles(plain, n=100)[98],
        "lookup_hash_us_p50": median(hashed),
        "lookup_hash_all_us_p50": median(written),
        "lookup_hash_all_list_us_p50": median(listed),
    }
    if theirs:
        result["lookup_hash_us_p50_dynamo"] = median(theirs)
        result["dynamo_ratio"] = median(written) / median(theirs)
    return result


def _hash_and_match(index: Index, prompt: Sequence[int]) -> Matches:
    return index.matches(block_hashes(_NAMESPACE, prompt))


def _hash_and_write_out(index: Index, prompt: Sequence[int]) -> dict[bytes, int]:
    return _hash_and_match(index, prompt).to_dict()


def _timed(call: Callable[..., object], *args: object) -> float:
    """Microseconds of one call."""
    began = time.perf_counter()
    call(*args)
    return (time.perf_counter() - began) * 1e6


def _update_rate(digests: Sequence[list[int]]) -> float:
    """Blocks per second, half of them added and half removed, a whole digest at a time."""
    index = Index()
    began = time.perf_counter()
    for number, hashes in enumerate(digests):
        index.add(_peer(number), hashes)
    for number, hashes in enumerate(digests):
        index.discard(_peer(number), hashes)
    return 2 * sum(map(len, digests)) / (time.perf_counter() - began)


def _bytes_per_residency(digests: Sequence[list[int]]) -> float:
    """Memory of an index filled from the bytes of the wire, so that its keys count too."""
    packed = [pack_hashes(hashes) for hashes in digests]
    tracemalloc.start()
    index = Index()
    for number, data in enumerate(packed):
        index.add(_peer(number), unpack_hashes(data))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / sum(map(len, digests))


def _random_digests(rng: random.Random) -> list[list[int]]:
    """Blocks that are no prefixes, each at two peers on average: almost no two of them have equal holders."""
    pool = [rng.getrandbits(64) for _ in range(_UPDATE_PEERS * UPDATE_BLOCKS // 2)]
    return [sorted(rng.sample(pool, UPDATE_BLOCKS)) for _ in range(_UPDATE_PEERS)]


def _peer(number: int) -> bytes:
    return number.to_bytes(32, "big")
