"""One request in the log: its row, if it entered here, and its steps with their times."""

from dataclasses import dataclass, field

import msgspec

from mycelia.node.views.history import RequestRow
from mycelia.proto.wire.messages import TraceStep

MAX_AT_MS = 2**31 - 1


@dataclass
class Record:
    started_at: float
    """Seconds of the monotonic clock."""
    made: RequestRow | None = None
    """The row without ``changes``; only for a request that entered here."""
    made_steps: list[TraceStep] = field(default_factory=list)
    """The steps without ``noted``."""
    noted: list[tuple[float, str, str, bytes]] = field(default_factory=list)
    """Time, name, detail and peer of further ones: steps are seldom looked at, too."""
    matched_tokens: dict[bytes, int] = field(default_factory=dict)
    """Peer -> the cached tokens its digest promised when it was chosen."""
    is_told: bool = True
    """Whether it reaches the journal and the log."""
    changes: dict[str, object] = field(default_factory=dict)
    """What has changed since the row was made: rows are seldom looked at before their request has ended."""

    @property
    def row(self) -> RequestRow | None:
        """Only for a request that entered here."""
        if self.changes and self.made is not None:
            self.made = msgspec.structs.replace(self.made, **self.changes)
            self.changes.clear()
        return self.made

    @property
    def steps(self) -> list[TraceStep]:
        for at, name, detail, peer in self.noted:
            self.made_steps.append(TraceStep(at_ms=ms_of(at - self.started_at), name=name, detail=detail, peer=peer))
        self.noted.clear()
        return self.made_steps


def ms_of(seconds: float) -> int:
    return min(round(1000 * seconds), MAX_AT_MS)
