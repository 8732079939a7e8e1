"""``mycelia bench index``: how fast the longest match of all peers is found, and what the index costs.

The population: prompts of ``PROMPT_TOKENS`` random tokens; each peer holds prefixes, of random length, of prompts that
it draws with Zipf weights, until it holds its share of the residencies. A lookup asks for a prompt drawn likewise. So
popular prompts are held by many peers, each to another depth, which is the index's worst case.
"""

import random
import time
import tracemalloc
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

    prompts: Sequence[Sequence[int]]
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
    prompts = [[rng.randrange(50_000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]
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
    values["update_blocks_per_s"] = [_update_rate(rng) for _ in range(runs)]
    progress.step("memory")
    values["bytes_per_residency"] = [_bytes_per_residency(rng)]
    progress.close()
    units = {"update_blocks_per_s": "1/s", "bytes_per_residency": "bytes", "dynamo_ratio": "ours/theirs"}
    return report_of("index", [row_of(name, units.get(name, "us"), each) for name, each in values.items()])


def _lookups(index: Index, population: Population, dynamo: Dynamo | None, rng: random.Random) -> dict[str, float]:
    """Times of one run, in microseconds; both sides are asked for the same prompts, in turns."""
    plain, hashed, theirs = list[float](), list[float](), list[float]()
    for _ in range(_LOOKUPS):
        number = population.draw(rng)
        prompt, chain = population.prompts[number], population.chains[number]
        plain.append(_timed(index.matches, chain))
        hashed.append(_timed(_hash_and_match, index, prompt))
        if dynamo is not None:
            theirs.append(_timed(dynamo.match, prompt))
    result = {
        "lookup_us_p50": median(plain),
        "lookup_us_p99": quantiles(plain, n=100)[98],
        "lookup_hash_us_p50": median(hashed),
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


def _update_rate(rng: random.Random) -> float:
    """Blocks a second, half of them added and half removed."""
    digests = _digests(rng)
    index = Index()
    began = time.perf_counter()
    for number, hashes in enumerate(digests):
        index.add(_peer(number), hashes)
    for number, hashes in enumerate(digests):
        index.discard(_peer(number), hashes)
    return 2 * _UPDATE_PEERS * _UPDATE_BLOCKS / (time.perf_counter() - began)


def _bytes_per_residency(rng: random.Random) -> float:
    """Memory of an index filled from bytes, as they come from the wire: so its keys count too."""
    packed = [pack_hashes(hashes) for hashes in _digests(rng)]
    tracemalloc.start()
    index = Index()
    for number, data in enumerate(packed):
        index.add(_peer(number), unpack_hashes(data))
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return used / (_UPDATE_PEERS * _UPDATE_BLOCKS)


def _digests(rng: random.Random) -> list[list[int]]:
    """One digest a peer; each block is held by two peers on average."""
    pool = [rng.getrandbits(64) for _ in range(_UPDATE_PEERS * _UPDATE_BLOCKS // 2)]
    return [rng.sample(pool, _UPDATE_BLOCKS) for _ in range(_UPDATE_PEERS)]


def _peer(number: int) -> bytes:
    return number.to_bytes(32, "big")
