"""A node in a process of its own, as an app would run it: SIGINT and SIGTERM cancel the nursery.

Arguments: bootstrap addresses. Prints its own address, then a line for each event.
"""

import logging
import signal
import sys

import structlog
import trio

from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import Network, NetworkSettings


async def report(network: Network) -> None:
    async for event in network.events():
        sys.stdout.write(f"{type(event).__name__}\n")
        sys.stdout.flush()


async def main() -> None:
    settings = NetworkSettings(new_identity(), listen=("/ip4/127.0.0.1/tcp/0",), bootstrap=tuple(sys.argv[1:]))
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                async with open_network(settings) as network:
                    sys.stdout.write(f"{network.addresses()[0]}\n")
                    sys.stdout.flush()
                    await network.join(b"namespace-------")
                    await report(network)

            nursery.start_soon(run)
            async for _ in signals:
                nursery.cancel_scope.cancel()


structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
trio.run(main)
