"""Sums over all requests of a node since its start."""

from collections import Counter
from dataclasses import dataclass, field

import msgspec

from mycelia.node.views.history import DayRow
from mycelia.proto.wire.messages import Usage


@dataclass
class Totals:
    """Sums since the start. Requests are counted by outcome: answered, cancelled, or the code of the failure."""

    entered: Counter[str] = field(default_factory=Counter)
    served: Counter[str] = field(default_factory=Counter)
    computed_tokens: int = 0
    """Prompt tokens computed here; with ``cached_tokens`` all prompt tokens of requests served here."""
    cached_tokens: int = 0
    generated_tokens: int = 0
    promised_tokens: int = 0
    """Cached tokens that digests promised for prompts that entered here; ``found_tokens`` of them were found."""
    found_tokens: int = 0
    moves: int = 0
    evictions: int = 0
    entered_prompt_tokens: int = 0
    entered_cached_tokens: int = 0
    shared: DayRow = DayRow("")  # noqa: RUF009  immutable
    """What was given to others and received from them, without the traffic."""

    def add_usage(self, usage: Usage) -> None:
        """A request that was served here has ended."""
        self.cached_tokens += usage.cached_tokens
        self.computed_tokens += usage.prompt_tokens - usage.cached_tokens
        self.generated_tokens += usage.completion_tokens

    def add_shared(self, **added: float) -> None:
        """added: to fields of ``shared``."""
        sums = {name: getattr(self.shared, name) + value for name, value in added.items()}
        self.shared = msgspec.structs.replace(self.shared, **sums)
