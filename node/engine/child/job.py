"""A request inside the engine process, the engine's bounds, and the reasons for a refusal."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mycelia.node.engine.prompts import prompt_over_context
from mycelia.proto.cache.sharing import Owner, paint

REPORT_ROWS = 64
"""Rows that are computed at least where logprobs of a prompt are reported, if it has as many. llama.cpp computes the
attention of fewer rows by a kernel with coarser sums: a logprob would depend on how much of the prompt is cached."""


@dataclass(frozen=True)
class Refusal:
    """The reason why the engine does not accept a request; the fields are those of ``EngineFailed``."""

    code: str
    message: str
    retryable: bool
    retry_after_s: float = 0.0
    """Seconds after which the client may ask again; 0: unknown."""


@dataclass(frozen=True)
class Limits:
    num_cells: int
    context_tokens: int
    """Maximum length of prompt plus answer; at most ``num_cells``."""
    num_vocab: int
    num_sequences: int = 64
    slots: int = 8
    """Requests that run at once. Each may pin one cached leaf, so ``num_sequences`` must exceed twice this."""
    max_waiting: int = 64
    batch_tokens: int = 2048
    """Maximum number of rows of one decode call."""
    reported_tokens: int = 128
    """Maximum number of rows of one decode call whose logits are needed for the logprobs of prompts: each row of logits
    has four bytes for every token of the vocabulary, and takes half a millisecond."""
    reuse: bool = True
    demote_idle: bool = False
    """Evict all idle leaves when a request starts: the second tier keeps them and restores them at little cost."""
    state_grid: int = 0
    """The model keeps states, which are saved and restored at multiples of this length, see
    ``proto/cache/checkpoints.py``. 0: it keeps none, and any prefix of cells can be reused."""
    has_cells: bool = True
    """False: the model keeps nothing but states, so cells only count tokens."""
    control_tokens: frozenset[int] = frozenset()
    """Control tokens of the vocabulary; only used with states."""

    def __post_init__(self) -> None:
        if not 0 < self.context_tokens <= self.num_cells:
            raise ValueError("context_tokens must be between 1 and num_cells")
        if not 0 < 2 * self.slots < self.num_sequences:
            raise ValueError("num_sequences must exceed twice the slots")

    def refusal(self, prompt: Sequence[int], max_tokens: int) -> Refusal | None:
        """The reason why such a request cannot be served; None if it can."""
        if not prompt:
            return Refusal("bad_request", "the prompt has no tokens", False)
        if not 0 <= min(prompt) <= max(prompt) < self.num_vocab:
            return Refusal("bad_request", f"token ids must be below {self.num_vocab}", False)
        if max_tokens < 0:
            return Refusal("bad_request", "max_tokens must be at least 0", False)
        if len(prompt) >= self.context_tokens:
            return Refusal("too_long", prompt_over_context(self.context_tokens, len(prompt)), False)
        return None


@dataclass(eq=False)
class Job:
    """One request. ``tokens``: the prompt and the generated tokens, of which the first ``num_computed`` have cells."""

    key: int
    prompt: tuple[int, ...]
    max_tokens: int
    arrived_s: float
    tokens: list[int] = field(default_factory=list)
    num_computed: int = 0
    cached_tokens: int = 0
    shared_tokens: int = 0
    """Number of its leading tokens whose cells it shares with the tree, through the pinned leaf."""
    expected_cached: int = 0
    """While the job waits: prompt tokens that the tree held at its arrival, or that another job computes for it."""
    seq_id: int | None = None
    pinned: int | None = None
    waited: bool = False
    awaits: "Job | None" = None
    awaited_tokens: int = 0
    """Length of the prefix that ``awaits`` computes and this job waits for."""
    may_share: bool = True
    counted_tokens: int = 0
    """Number of its leading tokens that are already counted as a use of the tree's tokens."""
    due_s: float | None = None
    client: bytes = b""
    subnet: str = ""
    """The client and the subnet whose share the job takes, see ``proto.fair_queue``."""
    owner: Owner = Owner()  # noqa: RUF009  immutable
    """The owner whose prefixes the job may reuse, see ``proto.sharing``."""
    declared_open: int = 0
    """Number of leading tokens that the request declares free of secrets."""
    chain: Sequence[int] = ()
    """The block hashes by which ``Sharing`` identifies the prompt."""
    num_open: int = 0
    """Number of leading tokens that are open in the job's path in the tree; fixed while it holds cells there."""
    noted_tokens: int = 0
    """Number of computed tokens that are already reported to ``Sharing``."""
    charged_tokens: int = 0
    """Number of answer tokens that are charged to the client so far."""
    charged_s: float = 0.0
    """The time up to which the client is charged for the cells that the job holds."""
    num_to_prefill: int = 0
    """Number of leading tokens computed in chunks: the prompt; after a stop also the answer so far."""
    promised: int = 0
    """Cells that the job may use while it runs, shared cells included."""
    state_tokens: int = 0
    """Length of the longest saved state that the job may begin with, set by ``Prefixes.match``."""
    known_tokens: int = 0
    """Number of leading tokens that the cache knew then."""
    num_written: int = 0
    """Number of leading prompt tokens before those that another node generated for this request."""
    stops: dict[int, int] = field(default_factory=dict)
    """Lengths at which the job's state is saved, so a row ends there, and their places; see ``checkpoints.py``."""
    num_starts: int = 0
    """Number of starts: the first one, and one after each stop."""
    to_report: range = range(0)
    """The tokens of the prompt whose logprobs must still be reported. Each needs the logits of the token before it."""
    is_choosing: bool = False
    """The next token depends on a grammar's mask that is not there yet, so the job has no row."""
    admitted_s: float = 0.0
    """Time of the first start; ``started_s`` is the time of the last one."""
    started_s: float = 0.0
    first_token_s: float | None = None

    def path(self, count: int) -> tuple[int, ...]:
        """The path of the first ``count`` tokens in the tree, see ``proto.sharing.paint``."""
        return paint(self.tokens[:count], self.num_open, self.owner.tag, self.owner.swarm)

    @property
    def num_reusable(self) -> int:
        """Most leading tokens whose cells it may reuse instead of computing them. The last token is always computed,
        for its logits."""
        if not self.to_report:
            return len(self.tokens) - 1
        return max(min(self.first_output, len(self.tokens) - REPORT_ROWS), 0)

    @property
    def first_output(self) -> int:
        """With ``to_report``: the first token whose logits are needed."""
        return self.to_report.start - 1

    @property
    def limit_tokens(self) -> int:
        return len(self.prompt) + self.max_tokens

    @property
    def own_cells(self) -> int:
        """Promised cells, without the shared ones."""
        return self.promised - self.shared_tokens

    @property
    def held_cells(self) -> int:
        """Cells that the job holds or has reserved for its whole prompt, without the shared ones."""
        return max(self.num_computed, self.num_to_prefill) - self.shared_tokens

    @property
    def remaining_prefill(self) -> int:
        return max(0, self.num_to_prefill - self.num_computed)

    @property
    def next_stop(self) -> int:
        """Maximum number of tokens of the next row."""
        ahead = [stop - self.num_computed for stop in self.stops if stop > self.num_computed]
        return min(self.remaining_prefill, *ahead) if ahead else self.remaining_prefill

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - len(self.prompt)
