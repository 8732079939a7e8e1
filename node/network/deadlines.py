"""Scopes for work that must be finished although its task is cancelled, such as the message that ends an exchange."""

import trio


def shielded(seconds: float) -> trio.CancelScope:
    """A scope that outer cancellation does not reach, for at most ``seconds``."""
    return trio.CancelScope(shield=True, deadline=trio.current_time() + seconds)
