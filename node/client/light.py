"""A light client: it joins no swarm, and asks through a peer whose address it knows."""

from collections.abc import Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

import trio
from msgspec.structs import replace

from mycelia.node.client.local import START_HINT
from mycelia.node.network.addresses import is_circuit
from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.network.network import DialError, MessageStream, Network, NetworkError, NetworkSettings
from mycelia.node.network.swarm_access import SwarmAccess
from mycelia.node.peer_id import peer_text
from mycelia.node.requests.entry import ASK
from mycelia.node.requests.rejoin import AnswerSoFar, rejoining
from mycelia.node.views.frames import PUBLIC_SUFFIX, FrameView, frame_view, is_keep_alive
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Ask

CONNECT_DEADLINE_S = 15.0
NEIGHBOURS_S, MAX_NEIGHBOURS = 4.0, 8
"""How long nodes of the local network are looked for, and how many of them are dialled."""

UNREACHED_AGAIN_S = 2.0
"""Pause before a waiting client tries again to reach a node."""


class NoEntryError(LocalError):
    """No node could be reached, and no part of the answer has come. A node that is starting may be there soon."""


@dataclass
class LightClient:
    """A client without a node of its own. An entry node that refused a prompt keeps a place for this client, so a
    repeated prompt has to come from the same client and to the same node."""

    identity: Identity = field(default_factory=new_identity)
    swarm_key: bytes = b""
    """See ``NodeSettings``."""
    access: SwarmAccess | None = None
    """A private swarm that ``identity`` is a member of."""
    mdns: bool = False
    """Whether to look for nodes in the local network, too."""
    entry: bytes | None = None
    """The node at which its last prompt entered."""


async def tell(send: trio.MemorySendChannel[FrameView], frame: FrameView) -> None:
    if not is_keep_alive(frame):
        await send.send(frame)


async def ask_as_light_client(
    so_far: AnswerSoFar,
    bootstrap: Sequence[str],
    due_at: float,
    send: trio.MemorySendChannel[FrameView],
    client: LightClient,
    lost: bytes | None = None,
) -> None:
    """lost: the entry node that began the answer and was lost."""
    from mycelia.node.network.libp2p.network import (
        open_network,  # (imports libp2p, which a running node makes unnecessary)
    )

    settings = NetworkSettings(
        identity=client.identity, overlay=False, swarm_key=client.swarm_key, access=client.access
    )
    async with open_network(settings) as network, AsyncExitStack() as carriers:
        if client.access is not None and any(map(is_circuit, bootstrap)):
            from mycelia.node.network.libp2p.carrier import open_carrier

            plain = NetworkSettings(client.identity, overlay=False)
            await carriers.enter_async_context(open_carrier(network, plain))

        async def enter(ask: Ask, lost: bytes | None) -> MessageStream:
            if lost is None:
                first = _of_peer(bootstrap, client.entry)
            else:
                first = [address for address in bootstrap if address not in _of_peer(bootstrap, lost)]
            try:
                stream = await _open_entry(network, first or bootstrap, client)
            except NetworkError:
                if not first or len(first) == len(bootstrap):
                    raise
                stream = await _open_entry(network, bootstrap, client)
            client.entry = stream.peer
            await stream.send(replace(ask, model=ask.model.removesuffix(PUBLIC_SUFFIX)))
            return stream

        try:
            async with aclosing(rejoining(so_far, enter, due_at, lost)) as frames:
                async for frame in frames:
                    await tell(send, frame_view(frame))
        except NetworkError as exc:
            has_begun = bool(so_far.rest().answered)
            kind = LocalError if has_begun else NoEntryError
            raise kind(f"{exc}; {_hint(client, bootstrap)}") from exc


def _of_peer(addresses: Sequence[str], peer: bytes | None) -> list[str]:
    return [address for address in addresses if peer is not None and address.endswith(peer_text(peer))]


def _hint(client: LightClient, bootstrap: Sequence[str]) -> str:
    if client.access is not None:
        return "a member has to run where this machine can reach it"
    return f"{START_HINT}, or give {'another' if bootstrap else 'the address of one with'} --bootstrap"


async def _open_entry(network: Network, bootstrap: Sequence[str], client: LightClient) -> MessageStream:
    """An entry stream at the node that answers first, of ``bootstrap`` or of the local network. Raises NetworkError
    when none does."""
    opened, failures, neighbours = list[MessageStream](), dict[str, None](), dict[str, None]()
    if not bootstrap:
        failures["no bootstrap peer is known" if client.access is None else "no address of a member is known"] = None

    async def try_one(address: str, others: trio.CancelScope) -> None:
        try:
            peer = await network.connect(address)
            opened.append(await network.open(peer, ASK))
        except DialError as exc:
            failures.update(dict.fromkeys(map(str, exc.failures)))
        except NetworkError as exc:
            failures[str(exc)] = None
        else:
            others.cancel()

    def on_found(peer: bytes, candidates: Sequence[object], sender: str) -> None:
        address = f"{candidates[0]}/p2p/{peer_text(peer)}"
        if address not in neighbours and len(neighbours) < MAX_NEIGHBOURS:
            neighbours[address] = None
            nursery.start_soon(try_one, address, nursery.cancel_scope)

    def note(says: str, fix: str) -> None:
        failures[f"local network: {says}"] = None

    async def look_around() -> None:
        from mycelia.node.network.mdns.service import listen

        with trio.move_on_after(NEIGHBOURS_S):
            await listen(client.access.key if client.access else client.swarm_key, on_found, note)

    with trio.move_on_after(CONNECT_DEADLINE_S):
        async with trio.open_nursery() as nursery:
            for address in bootstrap:
                nursery.start_soon(try_one, address, nursery.cancel_scope)
            if client.mdns:
                nursery.start_soon(look_around)
    for late in opened[1:]:
        await late.reset()
    if opened:
        return opened[0]
    detail = "; ".join([*failures][:3]) or f"no answer within {CONNECT_DEADLINE_S:.0f} s"
    raise NetworkError(f"no node could be reached ({detail})")
