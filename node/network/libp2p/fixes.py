"""Changes to libp2p's modules, and the list of its private names that this package uses.

Each workaround, here and in the other files, says in one line what goes wrong without it. Because they use private
names, the version of libp2p is pinned, and ``check_private_names`` refuses to start on a version that lacks one of
them. A new private name has to be added to the list here. ``yamux.py``, ``noise.py``, ``negotiation.py`` and
``records.py`` replace whole parts of libp2p.
"""

import logging
from importlib import import_module
from typing import Any

from libp2p.exceptions import ParseError
from libp2p.io.abc import Reader
from libp2p.io.exceptions import MessageTooLarge
from libp2p.io.trio import TrioTCPStream
from libp2p.network import swarm as swarm_module
from libp2p.network.connection import swarm_connection
from libp2p.protocol_muxer import multiselect_communicator
from libp2p.stream_muxer import muxer_multistream
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from mycelia.node.network.libp2p import records
from mycelia.node.network.libp2p.yamux import YamuxConnection
from mycelia.proto.wire.errors import LocalError

MAX_NEGOTIATION_BYTES = 1_024
"""Longest line of multistream-select, which is the name of one protocol."""

_RECORD_WRITERS = ("libp2p.pubsub.pubsub", "libp2p.pubsub.gossipsub")
PRIVATE_NAMES: dict[str, tuple[str, ...]] = {
    "libp2p.network.swarm": ("_HAPPY_EYEBALLS_DELAY", "Swarm._handle_inbound_connection", "Swarm.add_conn"),
    "libp2p.network.auto_connector": ("AutoConnector.maybe_connect",),
    "libp2p.network.connection.swarm_connection": ("logging",),
    "libp2p.host.basic_host": ("BasicHost._identify_peer",),
    "libp2p.protocol_muxer.multiselect_communicator": ("read_delim",),
    "libp2p.stream_muxer.muxer_multistream": ("Yamux",),
    "libp2p.pubsub.pubsub": (
        "env_to_send_in_RPC",
        "Pubsub.push_msg",
        "Pubsub.continuously_read_stream",
        "Pubsub._handle_new_peer",
    ),
    "libp2p.pubsub.gossipsub": (
        "env_to_send_in_RPC",
        "GossipSub._check_equivocation",
        "GossipSub._cleanup_security_state",
        "GossipSub._periodic_security_cleanup",
    ),
    "libp2p.pubsub.mcache": ("MessageCache.put", "MessageCache.window"),
    "libp2p.tools.anyio_service.trio_manager": ("TrioManager._find_parent_task",),
    "libp2p.transport.tcp.tcp": ("TCP._dial_resolved",),
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "libp2p.network.swarm.Swarm": ("retry_config",),
    "libp2p.io.trio.TrioTCPStream": ("_cached_remote_address",),
    "libp2p.security.secure_session.SecureSession": ("conn", "_reset_internal_buffer"),
    "libp2p.security.noise.io.BaseNoiseMsgReadWriter": ("read_writer", "noise_state"),
    "libp2p.io.msgio.BaseMsgReadWriter": ("read_write_closer",),
    "libp2p.pubsub.pubsub.Pubsub": ("counter", "seen_messages"),
    "libp2p.pubsub.gossipsub.GossipSub": ("mcache", "scorer", "back_off", "recent_message_deliveries"),
    "libp2p.pubsub.mcache.MessageCache": ("msgs", "history"),
}
"""Attributes that each class's ``__init__`` has to set. An assignment to one that libp2p no longer reads would silently
change nothing."""


def check_private_names() -> None:
    """Raises a LocalError that lists the missing private names of libp2p, if any."""
    missing = []
    for class_path, attributes in ATTRIBUTES.items():
        module_name, _, class_name = class_path.rpartition(".")
        kind: Any = getattr(import_module(module_name), class_name, None)
        known = kind.__init__.__code__.co_names if kind else ()
        missing += [f"{class_path}.{attribute}" for attribute in attributes if attribute not in known]
    for module_name, names in PRIVATE_NAMES.items():
        module = import_module(module_name)
        for name in names:
            holder: Any = module
            for part in name.split("."):
                holder = getattr(holder, part, None)
            if holder is None:
                missing.append(f"{module_name}.{name}")
    if missing:
        raise LocalError(
            f"this libp2p lacks {', '.join(missing)}; install the version that mycelia was built for: libp2p==0.8.1"
        )


def apply_module_fixes(debug: bool) -> None:
    """Makes the changes that belong to libp2p's modules rather than to objects. Idempotent."""
    # Every new dial waits this long even after it succeeded.
    swarm_module._HAPPY_EYEBALLS_DELAY = 0.0
    # This module logs through the root logger, and the first warning adds a handler that writes on the terminal.
    swarm_connection.logging = logging.getLogger("libp2p.swarm_connection")  # type: ignore[attr-defined, assignment]
    # This module ignores muxer_opt and makes libp2p's own Yamux. yamux.py gives the reason for replacing it.
    muxer_multistream.Yamux = YamuxConnection  # type: ignore[attr-defined, assignment]
    # Every message carries a signed record, which libp2p makes anew each time: see records.py.
    for module in _RECORD_WRITERS:
        import_module(module).env_to_send_in_RPC = records.env_to_send_in_rpc  # type: ignore[attr-defined]
    # libp2p's own knows no IPv6 address: all IPv6 peers would be one subnet, and no node could learn from others
    # whether it can be reached.
    TrioTCPStream.get_remote_address = _remote_address  # type: ignore[method-assign, assignment]
    # libp2p's own reads as many bytes as a stranger claims, before and after the handshake, where only a protocol's
    # name is expected.
    multiselect_communicator.read_delim = _read_short_delim  # type: ignore[attr-defined]
    # Without a handler Python prints warnings to the terminal, and libp2p warns about every peer that goes away.
    logger = logging.getLogger("libp2p")
    logger.propagate = debug
    logger.setLevel(logging.WARNING if debug else logging.CRITICAL)
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())


def _remote_address(stream: TrioTCPStream) -> tuple[str, int] | None:
    if stream._cached_remote_address is None:
        try:
            host, port, *_ = stream.stream.socket.getpeername()
        except OSError:
            return None
        stream._cached_remote_address = (host.partition("%")[0].removeprefix("::ffff:"), port)
    return stream._cached_remote_address


async def _read_short_delim(reader: Reader) -> bytes:
    try:
        line = await read_varint_prefixed_bytes_limited(reader, MAX_NEGOTIATION_BYTES)
    except MessageTooLarge as exc:
        raise ParseError(str(exc)) from exc
    if not line.endswith(b"\n"):
        raise ParseError("a line of the negotiation does not end")
    return line[:-1]
