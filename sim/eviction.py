"""Which leaf should leave a full prefix cache? Replays request traces through the real prefix tree.

    python -m mycelia.sim.eviction --trace FILE... [--mix] [--size 0.05 0.2] [--policy lru value]

A trace is a file of JSON lines, gzipped or not, of one of these kinds:

  - blocks: ``timestamp`` (ms), ``input_length`` (tokens) and ``hash_ids``, as Mooncake publishes them. A block is one
    token of the replay. The trace does not say which blocks an answer becomes, so answers are left out.
  - dialogues: ``turns`` (or ``history``) of ``user`` and ``assistant`` (or ``bot``), as in MT-Bench-101. Words are the
    tokens. Dialogues begin as a Poisson process, turns follow each other after about a minute.
  - few-shot: ``question`` and ``answer``, with ``choices`` and ``subject`` if present, as in MMLU and GSM8K. Each
    question comes after the same examples of its subject; subjects are drawn by Zipf's law, one prompt a second.

Requests come one after the other. A cache of size 0.05 holds a twentieth of all tokens of the trace, each shared prefix
counted once. A table cell is ``hit/saved``: the share of prompt tokens found in the cache, and of the prefill time that
this saves if a token at a depth of 16,000 tokens costs twice as much as the first one.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mycelia.proto.cache.radix import RadixTree

TWICE_AT_TOKENS = 16_000
"""Depth at which attention costs as much as the rest: about 4,000 for a 135M model, 30,000 for an 8B model."""
DIALOGUE_EVERY_S, THINK_S = 7.2, 60.0
TURN = 0
"""The token after each message of a dialogue."""
FEW_SHOT_REQUESTS, NUM_EXAMPLES = 3_000, 8


@dataclass(frozen=True)
class Request:
    """``tokens`` are the prompt and then the answer; each stands for ``weight`` real tokens."""

    at_s: float
    tokens: tuple[int, ...]
    prompt_tokens: int
    weight: int = 1


# --- traces -----------------------------------------------------------------------------------------------------------

Row = dict[str, Any]
Words = Callable[[str], list[int]]


def read(path: Path, words: Words, rng: random.Random) -> list[Request]:
    """The requests of one file, in order of arrival. Raises KeyError for a file of no known kind."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows: list[Row] = [json.loads(line) for line in data.splitlines()]
    requests: Iterator[Request]
    if "hash_ids" in rows[0]:
        requests = (blocks(row) for row in rows)
    elif "turns" in rows[0] or "history" in rows[0]:
        requests = dialogues(rows, words, rng)
    else:
        requests = few_shot(rows, words, rng)
    return sorted(requests, key=lambda request: request.at_s)


def read_all(paths: Sequence[Path]) -> dict[str, list[Request]]:
    """The requests of each file, with one dictionary of words."""
    ids: dict[str, int] = {}

    def words(text: str) -> list[int]:
        return [ids.setdefault(word, len(ids) + 1) for word in re.findall(r"\w+|[^\w\s]", text)]

    return {path.name: read(path, words, random.Random(0)) for path in paths}


def blocks(row: Row) -> Request:
    ids = row["hash_ids"]
    return Request(row["timestamp"] / 1000, tuple(ids), len(ids), -(-row["input_length"] // len(ids)))


def dialogues(rows: list[Row], words: Words, rng: random.Random) -> Iterator[Request]:
    begins_s = 0.0
    for row in rng.sample(rows, len(rows)):
        begins_s += rng.expovariate(1 / DIALOGUE_EVERY_S)
        at_s, tokens = begins_s, list[int]()
        for turn in row.get("turns") or row["history"]:
            tokens += [*words(turn["user"]), TURN]
            prompt_tokens = len(tokens)
            tokens += [*words(turn.get("assistant") or turn["bot"]), TURN]
            yield Request(at_s, tuple(tokens), prompt_tokens)
            at_s += rng.lognormvariate(0, 1) * THINK_S


def few_shot(rows: list[Row], words: Words, rng: random.Random) -> Iterator[Request]:
    subjects: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.get("split") == "test"):  # (examples first)
        subjects.setdefault(row.get("subject", ""), []).append(row)
    ranked = rng.sample(sorted(subjects), len(subjects))
    at_s = 0.0
    for subject in rng.choices(ranked, [1 / (rank + 1) for rank in range(len(ranked))], k=FEW_SHOT_REQUESTS):
        at_s += rng.expovariate(1.0)
        examples = [row for row in subjects[subject] if row.get("split") == "dev"] or subjects[subject][:NUM_EXAMPLES]
        row = rng.choice(subjects[subject][len(examples) :])
        prompt = words("\n".join([subject, *(question(row) + row["answer"] for row in examples), question(row)]))
        yield Request(at_s, (*prompt, 0, *words(row["answer"])), len(prompt) + 1)


def question(row: Row) -> str:
    return " ".join([row["question"], *row.get("choices", []), "Answer: "])


def mixed(traces: Sequence[list[Request]]) -> list[Request]:
    """All traces at once, each stretched to the time of the longest one."""
    span_s = max(trace[-1].at_s for trace in traces)
    stretched = (replace(request, at_s=request.at_s * span_s / trace[-1].at_s) for trace in traces for request in trace)
    return sorted(stretched, key=lambda request: request.at_s)


# --- policies ---------------------------------------------------------------------------------------------------------


def least(tree: RadixTree, worth: Callable[[int], float]) -> int | None:
    return min((seq_id for seq_id in tree.seq_ids() if not tree.pins(seq_id)), key=worth, default=None)


def lru(tree: RadixTree, now: float, named_s: dict[int, float]) -> int | None:
    """The leaf that was not added, or found by a lookup, for the longest time."""
    return least(tree, named_s.__getitem__)


Policy = Callable[[RadixTree, float, dict[int, float]], int | None]
POLICIES: dict[str, Policy] = {
    "lru": lru,
    # LRU by the tree's own records, in which a request makes only what it shares more recent.
    "recency": lambda tree, now, named_s: least(tree, lambda seq_id: tree.reuse(seq_id).last_used_s),
    # The nodes' own rule.
    "value": lambda tree, now, named_s: tree.least_valuable(),
}


# --- replay -----------------------------------------------------------------------------------------------------------


def working_set(requests: Sequence[Request]) -> int:
    """Tokens of the whole trace, each shared prefix counted once."""
    tree = RadixTree()
    for seq_id, request in enumerate(requests):
        tree.insert(request.tokens, seq_id, request.at_s)
    return tree.num_tokens


def replay(requests: Sequence[Request], policy: str, num_tokens: int) -> tuple[float, float]:
    """hit and saved with a cache of ``num_tokens``; see the module's text."""
    tree, named_s = RadixTree(), dict[int, float]()
    found = asked = saved = needed = 0.0
    for seq_id, request in enumerate(requests):
        # A prompt's last token is always computed, for its logits.
        length, leaf = tree.match(request.tokens[: request.prompt_tokens - 1])
        found, asked = found + length * request.weight, asked + request.prompt_tokens * request.weight
        saved += prefill_cost(length * request.weight)
        needed += prefill_cost(request.prompt_tokens * request.weight)
        if leaf is not None:
            named_s[leaf] = request.at_s
        if len(request.tokens) > num_tokens:
            continue
        named_s[seq_id] = request.at_s
        tree.insert(request.tokens, seq_id, request.at_s)
        _, added = tree.match(request.tokens)
        assert added is not None
        tree.pin(added)
        while tree.num_tokens > num_tokens and (victim := POLICIES[policy](tree, request.at_s, named_s)) is not None:
            tree.remove(victim)
        tree.unpin(added)
    return found / asked, saved / needed


def prefill_cost(num_tokens: int) -> float:
    return num_tokens * (1 + num_tokens / 2 / TWICE_AT_TOKENS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--mix", action="store_true", help="replay all traces at once, as one")
    parser.add_argument("--size", type=float, nargs="+", default=[0.05, 0.2, 0.5], help="of the cache, in working sets")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    options = parser.parse_args()
    traces = read_all(options.trace)
    if options.mix:
        traces = {"mix": mixed(list(traces.values()))}
    for name, requests in traces.items():
        total = working_set(requests)
        print(f"{name}: {len(requests)} requests, working set {total} tokens of the replay")
        print(" " * 14 + "".join(f"{size:>14}" for size in options.size))
        for policy in options.policy:
            cells = (replay(requests, policy, round(size * total)) for size in options.size)
            shown = "".join(f"{f'{hit:.4f}/{saved:.3f}':>14}" for hit, saved in cells)
            print(f"  {policy:12}{shown}", flush=True)


if __name__ == "__main__":
    main()
