"""``mycelia bench index``: how fast the longest match of all peers is found, and what the index costs.

The population: prompts of ``PROMPT_TOKENS`` random tokens; each peer holds prefixes, of random length, of prompts that
it draws with Zipf weights, until it holds its share of the residencies. A lookup asks for a prompt drawn likewise. So
popular prompts are held by many peers, each to another depth, which is the index's worst case.

Each side gets a prompt as it takes it fastest: Dynamo a list, ours the array that a node has from its tokenizer and the
wire. The row with ``list`` in its name gives ours the list too.

Updates and memory: a digest of 4,096 blocks from each of 100 peers, of the same kind of population; the rows with
``unrelated`` in their names instead of blocks that are nobody's prefix, the worst that peers could tell.
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

from node.bench.dynamo import Dynamo, open_dynamo
from node.bench.report import Progress, Report, report_of, row_of
from proto.blocks import STRIDE, block_hashes
from proto.digest import pack_hashes, unpack_hashes
from proto.errors import LocalError
from proto.index import Index

PROMPT_TOKENS = 8_192
_BLOCKS = PROMPT_TOKENS // STRIDE
_LOOKUPS = 1_000
_UPDATE_PEERS, _UPDATE_BLOCKS = 100, 4_096
_NAMESPACE = bytes(16)


@dataclass(frozen=True)
class Population:
    """Who holds what."""

    prompts: Sequence["array[int]"]
    """Tokens."""
    chains: Sequence[Sequence[int]]
    """Block hashes of each prompt."""
    weights: Sequence[float]
    """Cumulative chances of the prompts."""
    held: Sequence[dict[int, int]]
    """For each peer: prompt -> number of leading blocks."""

    def draw(self, rng: random.Random) -> int:
        """A prompt, by its chance."""
        return bisect(self.weights, rng.random() * self.weights[-1])

    @property
    def residencies(self) -> int:
        return sum(sum(held.values()) for held in self.held)


def make_population(peers: int, residencies: int, zipf: float, rng: random.Random) -> Population:
    """``residencies`` blocks spread over ``peers``, out of half as many distinct ones, or more where peers are few.

    Raises LocalError when there are fewer blocks than peers.
    """
    share = residencies // peers
    if not share:
        raise LocalError(f"{residencies} blocks cannot be spread over {peers} peers")
    count = -(-max(residencies // 2, 4 * share) // _BLOCKS)
    prompts = [array("I", (rng.randrange(50_000) for _ in range(PROMPT_TOKENS))) for _ in range(count)]
    chains = [block_hashes(_NAMESPACE, prompt) for prompt in prompts]
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(count)))
    population = Population(prompts, chains, weights, [{} for _ in range(peers)])
    for held in population.held:
        missing = share
        while missing:
            # A peer that has most of the popular prompts takes any other, or a skewed draw would never end.
            prompt = population.draw(rng) if len(held) < count / 8 else rng.randrange(count)
            before = held.get(prompt, 0)
            depth = min(rng.randint(1, _BLOCKS), before + missing)
            if depth > before:
                held[prompt] = depth
                missing -= depth - before
    return population


def bench_index(peers: int, residencies: int, zipf: float, runs: int, against: str | None, seed: int) -> Report:
    """Measure. ``against``: ``dynamo`` or None. Raises LocalError when something could not be measured."""
    dynamo = open_dynamo() if against else None
    progress = Progress(3 + runs)
    rng = random.Random(seed)  # noqa: S311  no secret
    progress.step("making the population")
    population = make_population(peers, residencies, zipf, rng)
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
    digests = _digests(make_population(_UPDATE_PEERS, _UPDATE_PEERS * _UPDATE_BLOCKS, zipf, rng))
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
    """Times of one run, in microseconds. All sides are asked for the same prompts, one side after the other, so that
    each finds the processor's caches as its own lookups left them."""
    drawn = [population.draw(rng) for _ in range(_LOOKUPS)]
    prompts = [population.prompts[number] for number in drawn]
    plain = [_timed(index.matches, population.chains[number]) for number in drawn]
    # Copied right before, for a tokenizer has just written a prompt that is asked for.
    hashed = [_timed(_hash_and_match, index, prompt[:]) for prompt in prompts]
    listed = [_timed(_hash_and_match, index, prompt.tolist()) for prompt in prompts]
    theirs = [_timed(dynamo.match, prompt.tolist()) for prompt in prompts] if dynamo is not None else []
    result = {
        "lookup_us_p50": median(plain),
        "lookup_us_p99": quantiles(plain, n=100)[98],
        "lookup_hash_us_p50": median(hashed),
        "lookup_hash_list_us_p50": median(listed),
    }
    if theirs:
        result["lookup_hash_us_p50_dynamo"] = median(theirs)
        result["dynamo_ratio"] = median(hashed) / median(theirs)
    return result


def _hash_and_match(index: Index, prompt: Sequence[int]) -> dict[bytes, int]:
    return index.matches(block_hashes(_NAMESPACE, prompt))


def _timed(call: Callable[..., object], *args: object) -> float:
    """Microseconds of one call."""
    began = time.perf_counter()
    call(*args)
    return (time.perf_counter() - began) * 1e6


def _update_rate(digests: Sequence[list[int]]) -> float:
    """Blocks a second, half of them added and half removed, a whole digest at a time."""
    index = Index()
    began = time.perf_counter()
    for number, hashes in enumerate(digests):
        index.add(_peer(number), hashes)
    for number, hashes in enumerate(digests):
        index.discard(_peer(number), hashes)
    return 2 * sum(map(len, digests)) / (time.perf_counter() - began)


def _bytes_per_residency(digests: Sequence[list[int]]) -> float:
    """Memory of an index filled from bytes, as they come from the wire: so its keys count too."""
    packed = [pack_hashes(hashes) for hashes in digests]
    tracemalloc.start()
    index = Index()
    for number, data in enumerate(packed):
        index.add(_peer(number), unpack_hashes(data))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / sum(map(len, digests))


def _digests(population: Population) -> list[list[int]]:
    """What each peer tells of what it holds, in the order of the wire."""
    return [
        sorted({block for prompt, depth in held.items() for block in population.chains[prompt][:depth]})
        for held in population.held
    ]


def _random_digests(rng: random.Random) -> list[list[int]]:
    """Blocks that are no prefixes, each at two peers on average: hardly two of them have equal holders."""
    pool = [rng.getrandbits(64) for _ in range(_UPDATE_PEERS * _UPDATE_BLOCKS // 2)]
    return [sorted(rng.sample(pool, _UPDATE_BLOCKS)) for _ in range(_UPDATE_PEERS)]


def _peer(number: int) -> bytes:
    return number.to_bytes(32, "big")
