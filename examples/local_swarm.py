"""Run a swarm of real nodes on this machine until Ctrl-C.

    python examples/local_swarm.py 4

Every node is a process with its own identity, ports and data directory; all but the first know only the first one's
address. Ask it from another terminal with the commands that it prints.
"""

import sys
import tempfile
from pathlib import Path

import trio

from node.show import short
from node.swarm import open_local_swarm


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory(prefix="mycelia-swarm-") as root:
        async with open_local_swarm(Path(root)) as swarm:
            print(f"starting {count} nodes ...", flush=True)
            for node in await swarm.start_many(count, options=["--threads", "1"]):
                info = await node.wait_ready()
                print(f"  {node.name}  {short(info.peer)}  {info.api_url}  log: {node.data_dir / 'node.log'}")
            first = swarm.nodes[0].data_dir
            print(f'\nask it:    mycelia ask --data-dir {first} --explain "Why is the sky blue?"')
            print(f"look:      mycelia peers --data-dir {first}")
            print("stop it:   Ctrl-C", flush=True)
            await trio.sleep_forever()


if __name__ == "__main__":
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and not (sys.argv[1].isdigit() and 1 <= int(sys.argv[1]) <= 64)):
        sys.exit("usage: local_swarm.py [NUMBER OF NODES, 1 to 64]")
    try:
        trio.run(main, int(sys.argv[1]) if len(sys.argv) == 2 else 4)
    except* KeyboardInterrupt:
        print("stopped")
