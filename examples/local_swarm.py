"""A swarm in one Python program: real nodes as processes on this machine, one of which is killed.

    python examples/local_swarm.py
    python examples/local_swarm.py 5 --model fake

Asks the same question at two nodes, kills the node that answered (like a power cut), and asks again. ``mycelia swarm``
runs a swarm until Ctrl-C.
"""

import argparse
import tempfile
from pathlib import Path

import httpx
import trio

from mycelia.node.local_swarm.processes import LocalNode, open_local_swarm
from mycelia.node.terminal.tables import short

NOTES = "".join(
    f"Day {day}: {8 + day} hours of sun, {2 * day % 7} litres of water, the plant is {10 + 3 * day} cm tall.\n"
    for day in range(1, 25)
)
QUESTION = f"These are the notes of a gardener.\n{NOTES}Did the plant grow well? Answer in one sentence."


async def ask(node: LocalNode, model: str) -> str:
    """The id of the node that answered."""
    api = (await node.wait_ready()).api_url
    # (Without this salt, only node 1's own users could reuse what node 1 computed.)
    turns = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "max_tokens": 24, "messages": turns, "cache_salt": "public"}
    async with httpx.AsyncClient(timeout=120) as http:
        response = await http.post(f"{api}/v1/chat/completions", json=body)
    response.raise_for_status()
    answer = response.json()
    served_by = response.headers["x-mycelia-served-by"]
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    print(f"asked at {node.name}: served by {short(served_by)}, {cached} of {answer['usage']['prompt_tokens']} cached")
    return served_by


async def main(count: int, model: str) -> None:
    with tempfile.TemporaryDirectory(prefix="mycelia-swarm-", ignore_cleanup_errors=True) as root:
        async with open_local_swarm(Path(root)) as swarm:
            print(f"starting {count} nodes ...", flush=True)
            nodes = await swarm.start_many(count, ["--model", model, "--threads", "1"])
            peers = {(await node.wait_ready()).peer: node for node in nodes}
            await ask(nodes[0], model)
            await trio.sleep(2)  # the other nodes need time to get its digest
            served_by = await ask(nodes[1], model)
            victim = peers[served_by]
            victim.kill()
            await victim.process.wait()
            print(f"killed {victim.name}, {short(served_by)}", flush=True)
            for node in nodes:
                if node is not victim:
                    assert await ask(node, model) != served_by
                    await trio.sleep(2)  # as above


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A swarm on this machine, of which one node is killed.")
    parser.add_argument("count", type=int, nargs="?", default=3, choices=range(2, 65), metavar="NODES")
    parser.add_argument("--model", default="smollm2")
    arguments = parser.parse_args()
    try:
        trio.run(main, arguments.count, arguments.model)
    except* KeyboardInterrupt:
        print("stopped")
