"""A request on its way through the engine, the bounds it has to keep, and why it may be refused."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mycelia.proto.cache.sharing import Owner, paint


@dataclass(frozen=True)
class Refusal:
    """Why a request cannot be taken; the fields are those of ``EngineFailed``."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """When the client may come again; 0: unknown."""


@dataclass(frozen=True)
class Limits:
    """The bounds that the scheduler decides within."""

    num_cells: int
    context_tokens: int
    """Longest prompt plus answer; at most ``num_cells``."""
    num_vocab: int
    num_sequences: int = 64
    slots: int = 8
    """Requests that run at once. Each may pin one cached leaf, so ``num_sequences`` must exceed twice this."""
    max_waiting: int = 64
    batch_tokens: int = 2048
    """Rows of one decode call."""
    reuse: bool = True
    demote_idle: bool = False
    """Idle leaves leave when a request starts, because a second tier takes them and gives them back at little cost."""

    def __post_init__(self) -> None:
        if not 0 < self.context_tokens <= self.num_cells:
            raise ValueError("context_tokens must be between 1 and num_cells")
        if not 0 < 2 * self.slots < self.num_sequences:
            raise ValueError("num_sequences must exceed twice the slots")

    def refusal(self, prompt: Sequence[int], max_tokens: int) -> Refusal | None:
        """Why such a request cannot be served; None if it can."""
        if not prompt:
            return Refusal("bad_request", "the prompt has no tokens", False)
        if not 0 <= min(prompt) <= max(prompt) < self.num_vocab:
            return Refusal("bad_request", f"token ids must be below {self.num_vocab}", False)
        if max_tokens < 1:
            return Refusal("bad_request", "max_tokens must be at least 1", False)
        if len(prompt) >= self.context_tokens:
            text = f"the prompt has {len(prompt)} tokens, the context holds {self.context_tokens} with the answer"
            return Refusal("too_long", text, False)
        return None


@dataclass(eq=False)
class Job:
    """One request on its way. ``tokens`` is the prompt plus what was generated; cells exist for ``num_computed``."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    arrived_s: float
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    cached_tokens: int = 0
    shared_tokens: int = 0
    """How many of its tokens the tree holds and counts, by way of the pinned leaf."""
    expected_cached: int = 0
    """While it waits: how much of its prompt the tree held when it came, or that it waits for."""
    seq_id: int | None = None
    pinned: int | None = None
    waited: bool = False
    awaits: "Job | None" = None
    awaited_tokens: int = 0
    """The prefix it waits for ``awaits`` to compute."""
    may_share: bool = True
    counted_tokens: int = 0
    """How much of it was counted as a use of what the tree held."""
    due_s: float | None = None
    """When it must be answered; None: whenever."""
    client: bytes = b""
    subnet: str = ""
    """Whose share it takes, see ``proto.fair_queue``."""
    owner: Owner = Owner()  # noqa: RUF009  immutable
    """Whose prefixes it may reuse, see ``proto.sharing``."""
    declared_open: int = 0
    """Of its leading tokens, as many as hold no secrets."""
    chain: Sequence[int] = ()
    """What ``Sharing`` knows its prompt by."""
    num_open: int = 0
    """Of its leading tokens, as many as its place in the tree has for everybody; fixed while it holds cells there."""
    noted_tokens: int = 0
    """Of them, as many as ``Sharing`` was told of."""
    charged_tokens: int = 0
    """Of its answer, charged to its client so far."""
    charged_s: float = 0.0
    """Until when it was charged for the cells that it holds."""
    num_to_prefill: int = 0
    """Its first tokens that are computed in chunks: the prompt, and once it was stopped what there is of the answer."""
    promised: int = 0
    """Cells that it may use, shared ones included, while it runs."""
    num_starts: int = 0
    """More than one: it was stopped and went on."""
    is_choosing: bool = False
    """Its next token depends on a grammar that has not answered yet, so it has no row."""
    admitted_s: float = 0.0
    """When it started first, and last."""
    started_s: float = 0.0
    first_token_s: float | None = None

    def path(self, count: int) -> tuple[int, ...]:
        """The place of its first ``count`` tokens in the tree."""
        return paint(self.tokens[:count], self.num_open, self.owner.tag)

    @property
    def limit_tokens(self) -> int:
        return len(self.prompt) + self.max_tokens

    @property
    def own_cells(self) -> int:
        """Cells that it was promised beyond those it shares."""
        return self.promised - self.shared_tokens

    @property
    def held_cells(self) -> int:
        """Cells it holds beyond those it shares, those of its whole prompt included."""
        return max(self.num_computed, self.num_to_prefill) - self.shared_tokens

    @property
    def remaining_prefill(self) -> int:
        return max(0, self.num_to_prefill - self.num_computed)

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.prompt)
