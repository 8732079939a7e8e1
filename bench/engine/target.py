"""The interface of compared engines: each completes a token prompt and reports the time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

FIRST_PLAIN_TOKEN = 1_000
"""The control tokens of common vocabularies are below it."""


@dataclass(frozen=True)
class Settings:
    """Settings that are equal for all engines compared in one run."""

    threads: int
    cells: int = 8192
    slots: int = 8
    batch_tokens: ClassVar[int] = 2048
    micro_batch_tokens: ClassVar[int] = 512


@dataclass(frozen=True)
class Timing:
    """One completion, as its client sees it."""

    ttft_s: float
    total_s: float
    cached_tokens: int
    """Prompt tokens that were not computed, as the engine reports."""
    completion_tokens: int


class Target(Protocol):
    async def complete(self, prompt: Sequence[int], max_tokens: int) -> Timing:
        """Greedy completion of token ids. Raises LocalError on failure, so that nothing is measured."""
        ...
