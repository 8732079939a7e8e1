"""The readable forms of what a node remembers of requests, days and API keys, for users and programs."""

import msgspec


class RequestRow(msgspec.Struct, frozen=True):
    id: str
    """In hexadecimal, 32 digits."""
    started_at: float
    """Seconds since 1970."""
    model: str
    client: str
    """A peer id, or the id that stands for an API key; empty: this machine."""
    status: str = "running"
    """running, answered, failed, cancelled, or interrupted: the node ended before the answer did."""
    code: str = ""
    """The reason for the end: stop, length, or the code of the failure."""
    served_by: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_ms: int | None = None
    total_ms: int | None = None
    resumed: int = 0


class UsageRow(msgspec.Struct, frozen=True):
    """What an API key used of a model in one day."""

    day: str
    """A day of UTC, such as 2026-01-31."""
    key: str
    """The key's name; ``local``: the programs on this machine."""
    model: str
    """As the client named it, or what an alias means; ``(others)``: further models of this key; empty: refused
    requests."""
    requests: int
    """Without the refused ones. Of a request with several choices each counts, with its prompt."""
    failed: int
    refused: int
    """For the key's limits."""
    prompt_tokens: int
    cached_tokens: int
    """Those of ``prompt_tokens`` that were found computed."""
    completion_tokens: int


class DayRow(msgspec.Struct, frozen=True):
    """What a node gave to others and received from them in one day, by its local clock."""

    day: str
    """Such as 2026-01-31."""
    given_requests: int = 0
    """Prompts of others that were answered here."""
    given_tokens: int = 0
    """Tokens computed for them: of prompts, without cached ones, and of answers."""
    given_s: float = 0.0
    """Time of the engine for them: one answer takes a slot, and several may share the time."""
    received_requests: int = 0
    """Prompts of this machine and its API keys that other nodes answered."""
    received_tokens: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    """Traffic with peers outside the local network, of all kinds."""


class TraceRow(msgspec.Struct, frozen=True):
    """A step of a request, at any node."""

    at_ms: float
    """Time since the request came to the node that was asked for the trace. At other nodes: since the request was sent
    there, plus half of the round trip, because clocks are not compared."""
    node: str
    name: str
    detail: str
    peer: str
    """The other node of this step; empty: none."""


class TraceView(msgspec.Struct, frozen=True):
    """The way of a request through the swarm."""

    id: str
    steps: list[TraceRow]
    silent: list[str]
    """Nodes of this request that sent no steps."""
