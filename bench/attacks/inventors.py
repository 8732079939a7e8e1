"""Strangers that announce digests of invented owners: what ``make_owners_up`` does to running nodes.

Each stranger has a fresh key and sends signed heads of fresh owners, as repairs without any bytes. A node that believed
them would ask for the bytes, and a node that asked its neighbours would flood them for the strangers.
"""

import time
from collections.abc import Sequence

import trio

from mycelia.node.network.identity import Identity, new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import Network, NetworkError, NetworkSettings
from mycelia.proto import WIRE_VERSION
from mycelia.proto.config import DigestConfig
from mycelia.proto.digests.digest import SAME, OwnDigest
from mycelia.proto.wire.messages import Hello, Repair, Served, Vitals

BURST = 180
"""Repairs that a stranger sends at once: fewer than a node accepts from any peer."""
_IDLE = Vitals(queued_tokens=0, active_requests=0, waiting_requests=0, slots=4)


def made_up(owner: Identity, namespace: bytes) -> Repair:
    """A repair that announces a digest of ``owner``, a block long, and brings nothing of it."""
    own = OwnDigest(owner.peer_id, namespace, int(time.time() * 1000), owner.sign, DigestConfig())
    own.store(1, [int.from_bytes(owner.peer_id[-8:], "big")])
    return Repair(head=own.advance(time.time()).head, mode=SAME, from_seq=0, upserts=b"", removes=b"")


async def make_owners_up(
    addresses: Sequence[str],
    namespace: bytes,
    seconds: float,
    num_strangers: int = 5,
    per_s: float = 15.0,
    says_hello: bool = False,
) -> int:
    """``num_strangers`` connect to the nodes at the full ``addresses``. Each announces BURST owners to each node at
    once, then ``per_s`` a second, for ``seconds``. Returns the number of owners. Raises NetworkError when no stranger
    gets in."""
    told = [0] * num_strangers

    async def one(place: int) -> None:
        settings = NetworkSettings(identity=new_identity(), overlay=False)
        async with open_network(settings) as network, trio.open_nursery() as nursery:
            nursery.start_soon(_read, network)
            peers = [await network.connect(address) for address in addresses]
            if says_hello:
                served = Served(namespace=namespace, model="model", context_tokens=2_048, vitals=_IDLE)
                for peer in peers:
                    await network.send(peer, Hello(wire_version=WIRE_VERSION, agent="", served=(served,)))
            with trio.move_on_after(seconds):
                while True:
                    for peer in peers:
                        await network.send(peer, made_up(new_identity(), namespace))
                    told[place] += len(peers)
                    if told[place] >= BURST * len(peers):
                        await trio.sleep(1 / per_s)
            nursery.cancel_scope.cancel()

    async def stranger(place: int) -> None:
        try:
            await one(place)
        except NetworkError as exc:
            failures.append(exc)  # (it was cut off, or never got in)

    failures: list[NetworkError] = []
    async with trio.open_nursery() as nursery:
        for place in range(num_strangers):
            nursery.start_soon(stranger, place)
    if not sum(told):
        raise failures[0]
    return sum(told)


async def _read(network: Network) -> None:
    async for _ in network.events():
        pass
