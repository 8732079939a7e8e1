"""Scopes for what must be finished although the task is cancelled, such as telling a peer that it is over."""

import trio


def shielded(seconds: float) -> trio.CancelScope:
    """A scope that outer cancellation does not reach, for at most ``seconds``."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
