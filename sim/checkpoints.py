"""How much of the prompts a hybrid model finds in a cache of states and cells. Replays request traces.

    python -m mycelia.sim.checkpoints --trace FILE... [--model qwen3.5-0.8b] [--size 0.05 0.2] [--policy lru value]

Traces of dialogues and few-shot prompts are read as in ``eviction.py``, and the same objects decide as in an engine:
``proto/cache/checkpoints.py`` where states are saved, ``proto/cache/tier.py`` what is evicted. Requests come one after
the other. The size is that of ``eviction.py`` in bytes: the part of the whole trace that fits a cache with the cells of
an attention model of the same depth. A table cell is ``hit/ratio``: the share of prompt tokens found in the cache, and
its ratio to that of the attention model with as many bytes.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mycelia.proto.cache.checkpoints import ANSWER_END, LEAST_TOKENS, lengths, turns_of
from mycelia.proto.cache.edges import RUN_TOKENS, TOKEN_BYTES, Edge, runs
from mycelia.proto.cache.tier import Tier
from mycelia.proto.cache.value import Reuse
from mycelia.proto.wire.blocks import pack_tokens, unpack_tokens
from mycelia.sim.eviction import TURN, Request, read_all, replay, working_set


@dataclass(frozen=True)
class Model:
    """Sizes in bytes, by the models' published shapes."""

    state: int
    """A saved state: its numbers have 16 bits, as those of cells."""
    cell: int
    attention_cell: int
    """A cell of a model whose layers are all like the attention layers of this one."""


MODELS = {
    "qwen3.5-0.8b": Model(10_100_000, 12_288, 49_152),
    "granite-4-h-1b": Model(29_000_000, 8_192, 81_920),
    "lfm2-1.2b": Model(82_000, 12_288, 32_768),
    "mamba": Model(10_100_000, 0, 49_152),
}

POLICIES: dict[str, Callable[[Edge, float], float] | None] = {
    "lru": lambda edge, now: edge.reuse.last_used_s,
    # The nodes' own rule.
    "value": None,
}


class Cache:
    """The cells and states of one model in ``num_bytes``."""

    def __init__(self, model: Model, num_bytes: int, policy: str) -> None:
        self._model = model
        self._tier = Tier(num_bytes, 0, True, POLICIES[policy])
        self._zeros = memoryview(bytes(max(model.state, model.cell * RUN_TOKENS)))

    def serve(self, request: Request) -> int:
        """Answer a request; returns how many tokens of its prompt were found. Mutates."""
        tier, now, num_prompt = self._tier, request.at_s, request.prompt_tokens
        packed = pack_tokens(request.tokens)
        reusable = packed[: (num_prompt - 1) * TOKEN_BYTES]
        reach = tier.reach(reusable, 0) if self._model.cell else num_prompt - 1
        state = tier.state(reusable[: reach * TOKEN_BYTES])
        begin = state.end if state is not None else 0
        if state is not None:
            tier.count(state, now)
        pieces = tier.plan(packed, 0)
        tier.touch((piece.edge for piece in pieces), now)
        stops = lengths(begin, num_prompt, reach if self._model.cell else begin)
        for length, place in (*stops.items(), (len(packed) // TOKEN_BYTES, ANSWER_END)):
            self._save_state(packed[: length * TOKEN_BYTES], place, now)
        if self._model.cell:
            for start, end in runs(pieces[-1].end if pieces else 0, len(request.tokens)):
                blob = self._zeros[: (end - start) * self._model.cell]
                tier.add(packed[: end * TOKEN_BYTES], start, blob, b"", Reuse(now))
                tier.trim(now)
        return begin

    def _save_state(self, packed: bytes, place: int, now: float) -> None:
        held = self._tier.state(packed)
        if len(packed) // TOKEN_BYTES - (held.end if held is not None else 0) >= LEAST_TOKENS:
            turns = turns_of(unpack_tokens(packed), (TURN,))
            self._tier.add_state(packed, self._zeros[: self._model.state], b"", now, place, turns=turns)
            self._tier.trim(now)


def hit_ratio(requests: Sequence[Request], model: Model, num_bytes: int, policy: str) -> float:
    cache = Cache(model, num_bytes, policy)
    return sum(map(cache.serve, requests)) / sum(request.prompt_tokens for request in requests)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", type=Path, nargs="+", required=True, metavar="FILE")
    parser.add_argument("--model", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--size", type=float, nargs="+", default=[0.05, 0.2, 0.5], help="of the cache, in working sets")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--requests", type=int, help="replay only so many requests of a trace")
    options = parser.parse_args()
    for name, requests in read_all(options.trace).items():
        requests = requests[: options.requests]
        total = working_set(requests)
        print(f"{name}: {len(requests)} requests, {total} tokens")
        whole = [replay(requests, "value", round(size * total))[0] for size in options.size]
        print(f"  {'attention':28}" + "".join(f"{hit:>16.4f}" for hit in whole), flush=True)
        for kind in options.model:
            model = MODELS[kind]
            for policy in options.policy:
                sizes = [round(size * total * model.attention_cell) for size in options.size]
                hits = [hit_ratio(requests, model, size, policy) for size in sizes]
                shown = [f"{hit:.4f}/{hit / best:.3f}" for hit, best in zip(hits, whole, strict=True)]
                print(f"  {kind:20}{policy:8}" + "".join(f"{cell:>16}" for cell in shown), flush=True)


if __name__ == "__main__":
    main()
