"""The index of NVIDIA's Dynamo, for comparison: its router's ``RadixTree`` from the package ai-dynamo-runtime."""

import json
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from mycelia.bench.report.extra import check_extra
from mycelia.proto.wire.blocks import STRIDE


class Dynamo:
    """An index of the blocks that workers hold, and the longest match of every worker."""

    def __init__(self, module: Any) -> None:
        self._hashes = module.compute_block_hash_for_seq
        self._tree = module.RadixTree()
        self._events = 0

    def store(self, worker: int, tokens: Sequence[int]) -> None:
        """``worker`` holds the whole blocks of ``tokens``."""
        # Dynamo finds a block by the block's own hash, and removes it by the engine's hash of the whole prefix.
        blocks, name = [], 0
        for block in self._hashes(list(tokens), STRIDE):
            name = hash((name, block)) % 2**64
            blocks.append({"block_hash": name, "tokens_hash": block})
        self._events += 1
        event = {"event_id": self._events, "data": {"stored": {"parent_hash": None, "blocks": blocks}}}
        self._tree.apply_event(worker, json.dumps(event).encode())

    def match(self, tokens: list[int]) -> dict[tuple[int, int], int]:
        """Hash ``tokens`` and return (worker, rank) -> number of leading blocks."""
        scores: dict[tuple[int, int], int] = self._tree.find_matches(self._hashes(tokens, STRIDE)).scores
        return scores


def open_dynamo() -> Dynamo:
    """An empty index. Raises LocalError with the command that installs it."""
    check_extra("dynamo", "--against dynamo")
    return Dynamo(import_module("dynamo._core"))
