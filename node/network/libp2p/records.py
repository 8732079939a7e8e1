"""Signed peer records, which libp2p puts into every gossip message: this node's own is made once, not each time.

Those of others are not read: what a peer tells of itself, identify tells, and what it tells of others is only a hint.
"""

from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IHost
from libp2p.peer.peerstore import env_to_send_in_RPC as make_envelope

OWN_RECORD_S = 5.0
"""Until this node looks at its own addresses again."""

_own: WeakKeyDictionary[IHost, tuple[float, bytes]] = WeakKeyDictionary()


def env_to_send_in_rpc(host: IHost) -> tuple[bytes, bool]:
    """libp2p's, at most OWN_RECORD_S old. The second value says whether the record is a new one."""
    now = trio.current_time()
    made_at, record = _own.get(host, (float("-inf"), b""))
    if now < made_at + OWN_RECORD_S:
        return record, False
    record, is_new = make_envelope(host)
    if host.get_network().listeners:  # (else its addresses are not known yet)
        _own[host] = (now, record)
    return record, is_new
