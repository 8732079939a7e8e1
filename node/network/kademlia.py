"""Kademlia: libp2p's, with bounds on what it stores for others. What it does not do well enough is beside it: finding
providers, where libp2p's own asks nobody or waits for the slowest, and telling the nearest peers of this node."""

from collections.abc import Sequence

import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.utils import sort_peer_ids_by_distance
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from node.network.host import Host
from node.network.outbound import DIAL_DEADLINE_S, MAX_DIAL_ADDRESSES, MAX_PARALLEL_DIALS
from node.network.peers import PeerTable

PROVIDER_KEY_PREFIX = b"/mycelia/"
PREFIX_KEY_PREFIX = b"/mycelia/prefix/"
"""Of ``discovery.prefix_key``."""
MAX_PROVIDER_KEYS = 8_192
"""Keys whose providers this node stores for others. In a split swarm a node has up to 64 keys of prefixes, and 8 others
store each: 512 at a node, less what nodes have in common. Of prefixes the one that was quiet the longest goes first."""
MAX_PROVIDERS_PER_KEY = 20
"""As in libp2p, which keeps the first ones for two days, though they may be gone: here the newest."""
WALK_WIDTH, WALK_ENOUGH, WALK_HEARD, WALK_MAX_ASKED = 10, 3, 20, 100
"""Kademlia's alpha, beta and k, and a bound on what liars can make a lookup ask."""
PROVIDE_REPLICAS = 8
"""Peers that keep the record of a prefix: enough that some live for half an hour, and cheaper than libp2p's 20."""


def new_dht(host: Host) -> KadDHT:
    """Kademlia, not yet running. Answers others only if this node can be dialled."""
    mode = DHTMode.SERVER if host.settings.listen else DHTMode.CLIENT
    dht = KadDHT(host.raw, mode, enable_values=False, strict_validation=True)
    store = dht.provider_store
    add = store.add_provider

    def bounded_add(key: bytes, provider: PeerInfo) -> None:
        # Keys are whatever a peer likes, in any number, and are kept for two days; so are a key's providers.
        if not key.startswith(PROVIDER_KEY_PREFIX):
            return
        records = store.providers.pop(key, {})
        if len(records) >= MAX_PROVIDERS_PER_KEY and str(provider.peer_id) not in records:
            del records[min(records, key=lambda peer: records[peer].timestamp)]
        store.providers[key] = records
        add(key, provider)
        if len(store.providers) > MAX_PROVIDER_KEYS:
            # Anybody can make up prefixes; without the keys of models newcomers find nobody.
            quiet = (one for one in store.providers if one.startswith(PREFIX_KEY_PREFIX))
            del store.providers[next(quiet, next(iter(store.providers)))]

    store.add_provider = bounded_add  # type: ignore[method-assign]
    return dht


async def find_providers(dht: KadDHT, key: bytes) -> list[PeerInfo]:
    """Providers of ``key``, one entry a peer.

    KadDHT.find_providers asks nobody as soon as the local store knows one provider, such as this node itself.
    """
    found: dict[bytes, dict[bytes, Multiaddr]] = {}

    def note(providers: Sequence[PeerInfo]) -> None:
        for provider in providers:
            known = found.setdefault(provider.peer_id.to_bytes(), {})
            # (as bytes: what a stranger sent as an address need not have a text)
            known.update((address.to_bytes(), address) for address in provider.addrs[:MAX_DIAL_ADDRESSES])

    async def ask(peer: ID) -> None:
        with trio.move_on_after(DIAL_DEADLINE_S):
            providers, _ = await dht.provider_store._get_providers_from_peer_with_closers(peer, key)
            note(providers)

    note(dht.provider_store.get_providers(key))
    closest = await dht.peer_routing.find_closest_peers_network(key)
    async with trio.open_nursery() as nursery:
        for peer in closest[:MAX_PARALLEL_DIALS]:
            nursery.start_soon(ask, peer)
    return [PeerInfo(ID(peer), list(known.values())) for peer, known in found.items()]


async def find_first_providers(dht: KadDHT, table: PeerTable, key: bytes) -> list[PeerInfo]:
    """Providers of ``key`` as the first peer tells that knows any; none when the peers nearest to it know none.

    libp2p finds the nearest twenty before it asks one of them, in rounds that each wait for the slowest: with a
    tenth of the peers gone that takes 17 s, simulated, instead of 2 s.
    """
    providers, _ = await _walk(dht, table, key, stops_at_providers=True)
    return providers


async def provide_near(dht: KadDHT, table: PeerTable, key: bytes) -> int:
    """Tells the PROVIDE_REPLICAS nearest peers that this node provides ``key``; how many took it."""
    _, nearest = await _walk(dht, table, key, stops_at_providers=False)
    num_told = 0

    async def tell(peer: ID) -> None:
        nonlocal num_told
        with trio.move_on_after(DIAL_DEADLINE_S):
            num_told += await dht.provider_store._send_add_provider(peer, key)

    async with trio.open_nursery() as nursery:
        for peer in nearest[:PROVIDE_REPLICAS]:
            nursery.start_soon(tell, peer)
    return num_told


async def _walk(dht: KadDHT, table: PeerTable, key: bytes, stops_at_providers: bool) -> tuple[list[PeerInfo], list[ID]]:
    """Asks ever nearer peers for providers of ``key``, WALK_WIDTH at once, until WALK_ENOUGH have answered that are
    nearer than all that were not asked: (what providers they told of, who answered, nearest first)."""
    me = dht.host.get_id()
    heard = set(dht.routing_table.find_local_closest_peers(key, WALK_HEARD)) - {me}
    heard |= {ID(peer) for peer in table.peers()} if len(heard) < WALK_WIDTH else set()
    asked: set[ID] = set()
    answered: set[ID] = set()
    found: dict[ID, list[Multiaddr]] = {}
    num_under_way = 0
    changed = trio.Event()

    async def ask(peer: ID) -> None:
        nonlocal num_under_way
        with trio.move_on_after(DIAL_DEADLINE_S):
            providers, closer = await dht.provider_store._get_providers_from_peer_with_closers(peer, key)
            if providers or closer or peer.to_bytes() in table:  # (else it could not be reached)
                answered.add(peer)
            heard.update(other for other in closer[:WALK_HEARD] if other != me)
            for provider in providers[:MAX_PROVIDERS_PER_KEY]:
                if provider.peer_id != me:
                    found.setdefault(provider.peer_id, list(provider.addrs[:MAX_DIAL_ADDRESSES]))
        num_under_way -= 1
        changed.set()

    async with trio.open_nursery() as nursery:
        while not (stops_at_providers and found) and len(asked) < WALK_MAX_ASKED:
            ranked = sort_peer_ids_by_distance(key, list(heard))
            enough = [place for place, peer in enumerate(ranked) if peer in answered][:WALK_ENOUGH]
            reach = enough[-1] if len(enough) == WALK_ENOUGH else len(ranked)
            waiting = [peer for peer in ranked[:reach] if peer not in asked]
            if not waiting and (len(enough) == WALK_ENOUGH or not num_under_way):
                break
            for peer in waiting[: WALK_WIDTH - num_under_way]:
                asked.add(peer)
                num_under_way += 1
                nursery.start_soon(ask, peer)
            await changed.wait()
            changed = trio.Event()
        nursery.cancel_scope.cancel()
    nearest = [peer for peer in sort_peer_ids_by_distance(key, list(heard)) if peer in answered]
    return [PeerInfo(peer, addrs) for peer, addrs in found.items()], nearest
