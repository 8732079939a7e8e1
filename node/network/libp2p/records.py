"""Signed peer records, which libp2p puts into every gossip message: this node makes its own once, not for each message.

Records of other peers are not read: a peer's own addresses come with identify, and addresses of others are only hints.
"""

from weakref import WeakKeyDictionary

import trio
from libp2p.abc import IHost
from libp2p.peer.peerstore import env_to_send_in_RPC as make_envelope

OWN_RECORD_S = 5.0
"""Time after which this node looks at its own addresses again."""

_own: WeakKeyDictionary[IHost, tuple[float, bytes]] = WeakKeyDictionary()


def env_to_send_in_rpc(host: IHost) -> tuple[bytes, bool]:
    """This node's record as libp2p makes it, at most OWN_RECORD_S old, and whether it is a new one."""
    now = trio.current_time()
    made_at, record = _own.get(host, (float("-inf"), b""))
    if now < made_at + OWN_RECORD_S:
        return record, False
    record, is_new = make_envelope(host)
    if host.get_network().listeners:  # (before that its addresses are not known)
        _own[host] = (now, record)
    return record, is_new
