"""Requests in progress: at their client, and on the way to an engine and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Generate, Tokens
from mycelia.sim.engine import Job


@dataclass
class Record:
    """One request as its client saw it. Times are those of ``World.now``; 0: it never happened."""

    request_id: bytes
    entry: int
    num_prompt: int
    """Tokens."""
    chain: tuple[int, ...]
    """Block hashes of prompt and answer."""
    submitted_s: float
    asked_s: float
    """When the client first asked; ``submitted_s`` unless it came again."""
    first_token_s: float = 0.0
    done_s: float = 0.0
    failure: str = ""
    code: str = ""
    served_by: int = -1
    cached_tokens: int = 0
    """Tokens of the prompt in the cache of the serving node."""
    found_tokens: int = 0
    """The same, of the attempt whose prefill began last."""
    promised_tokens: int = 0
    """Cached tokens for which the serving node was chosen."""
    num_attempts: int = 0
    asked: set[int] = field(default_factory=set)
    resumed: int = 0
    retry_after_s: float = 0.0
    """Retry-After of a retryable failure."""
    is_retryable: bool = False
    came_again: bool = False
    """It failed, and its client asked once more: the prompt's next record counts instead."""
    on_tokens: Callable[[Sequence[int]], None] = lambda tokens: None
    on_over: Callable[["Record"], None] | None = None

    @property
    def is_over(self) -> bool:
        return self.done_s > 0 or bool(self.failure)

    @property
    def is_refused(self) -> bool:
        """Whether all nodes were busy and the client got a retry time."""
        return bool(self.failure) and self.is_retryable and self.retry_after_s > 0


@dataclass
class Attempt:
    """An attempt on the way to an engine or in it."""

    record: Record
    number: int
    server: int
    job: Job
    generate: Generate
    position: int = 0
    """Tokens sent so far."""
    arrives_s: float = 0.0
    """When the last frame arrives."""
    heard_s: float = 0.0
    """When its entry node last received a frame."""
    watched_s: float = 0.0
    """When its entry node next checks whether it was silent for too long."""
    is_over: bool = False

    @property
    def key(self) -> tuple[bytes, int]:
        return self.record.request_id, self.number

    def tokens(self, until: int) -> Tokens | None:
        """The next frame: the answer up to token ``until``, less what was sent before. None: nothing new."""
        first = self.job.num_prompt + self.position
        tokens = self.job.tokens[first : self.job.num_prompt + until]
        if not tokens:
            return None
        frame = Tokens(position=self.position, tokens=pack_tokens(tokens), text=b"")
        self.position = until
        return frame
