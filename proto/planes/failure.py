"""Why an attempt ended without an answer, and what follows from that.

A *fault* counts against the node that served the attempt. After a *loss*, of a node or of its engine, the request may
rest and begin anew, because the lost one may soon be back.
"""

from enum import Enum

from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.wire.messages import Failed

LEAVING = "leaving"
"""The code of a refusal by a node that takes no new requests, for it is about to leave or paused."""
LEAVING_MESSAGE = "this node is leaving"
PAUSED_MESSAGE = "the node is paused: its owner needs the machine"
ENGINE_LOST = "engine_lost"
"""The code of a failure by the end of the engine."""


class Failure(Enum):
    LOST = "the stream or the connection ended, or the node stopped serving"
    ENGINE_LOST = "the node's engine died"
    ENGINE_LOST_BY_REQUEST = "the node's engine died, and the node says that it would again"
    LEAVING = "the node takes no new requests"
    BUSY = "the node is overloaded"
    BUSY_AFTER_IDLE = "the node is overloaded, and its last word was that it is idle"
    BROKEN = "the node failed for a reason of its own"
    IMPOSSIBLE = "the node says that nobody can answer the request"
    CONTEXT_FULL = "the answer is as long as the node's context allows, and shorter than it may be"
    OVERDUE = "the node did not begin in time"
    TOO_SLOW = "the node began, and its tokens came too slowly"

    @property
    def is_fault(self) -> bool:
        """The node is to blame: it counts as late."""
        return self in _FAULTS

    @property
    def is_loss(self) -> bool:
        """The node or its engine was lost, and may soon be back."""
        return self in _LOSSES

    @property
    def is_engine_loss(self) -> bool:
        """The request may be what ended the engine."""
        return self in _ENGINE_LOSSES

    @property
    def is_busy(self) -> bool:
        """The node may be asked again for the same request later."""
        return self in _BUSY

    @classmethod
    def of(cls, frame: Failed, was_idle: bool) -> "Failure":
        """The failure that a peer reports; was_idle: its last report said that it was idle."""
        if frame.code == OVERLOADED and frame.retryable:
            return cls.BUSY_AFTER_IDLE if was_idle else cls.BUSY
        if frame.code == ENGINE_LOST:
            return cls.ENGINE_LOST if frame.retryable else cls.ENGINE_LOST_BY_REQUEST
        if frame.code == LEAVING:
            return cls.LEAVING
        return cls.BROKEN if frame.retryable else cls.IMPOSSIBLE


_FAULTS = frozenset({Failure.LOST, Failure.ENGINE_LOST, Failure.BUSY_AFTER_IDLE, Failure.BROKEN})
_ENGINE_LOSSES = frozenset({Failure.ENGINE_LOST, Failure.ENGINE_LOST_BY_REQUEST})
_LOSSES = _ENGINE_LOSSES | {Failure.LOST, Failure.LEAVING}
_BUSY = frozenset({Failure.BUSY, Failure.BUSY_AFTER_IDLE})
