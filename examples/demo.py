"""Three nodes, twelve prompts, three shared prefixes: prompts go where they are already computed.

    python examples/demo.py

Starts three nodes as processes of their own (nodes 2 and 3 know only node 1's address), asks twelve questions through
different entry nodes with ``mycelia ask``, and prints the cost of each.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import httpx
import msgspec
import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mycelia.node.local_swarm.processes import COMMAND, LocalNode, open_local_swarm
from mycelia.node.storage.rundir import RunInfo
from mycelia.node.terminal.tables import short, tokens_per_s
from mycelia.node.views.frames import AnsweredView, FrameView, TextView
from mycelia.proto.cache.radix import common_prefix

NUM_NODES = 3
MAX_TOKENS = 24

SENTIMENT = """\
You sort short customer reviews of a small hotel. Answer with one word, positive, negative or mixed, and then one short
reason in brackets, as in these examples.

Review: The room was spotless, the bed was soft and breakfast had fresh fruit. We slept like stones.
Answer: positive (clean, quiet room and good breakfast)

Review: Nobody was at the desk when we came at nine, and the heating did not work until the second day.
Answer: negative (late check-in without help, cold room)

Review: Lovely garden and a friendly dog, but the walls are thin and the neighbours watched football until two.
Answer: mixed (nice garden, noisy neighbours)

Review: The shower flooded the floor, the towels smelled of smoke, and the bill had somebody else's minibar on it.
Answer: negative (broken shower, dirty towels, wrong bill)

Review: The owner drew us a map of the old town by hand and lent us two bicycles for free. We shall come again.
Answer: positive (kind owner, free bicycles)

Review: Great view over the bay. The stairs are steep, there is no lift, and we carried three suitcases up ourselves.
Answer: mixed (great view, steep stairs and no lift)

Review: The coffee was burnt, the bread was from last week, and the cook shouted at a waiter in front of everyone.
Answer: negative (poor breakfast, rude cook)

Review: """
ARITHMETIC = """\
You are a patient teacher who solves short word problems. Write the calculation first and the answer after it, exactly
in the style of these examples.

Problem: Anna has 12 apples and gives 5 of them to Ben. How many apples does she have left?
Solution: 12 - 5 = 7. Anna has 7 apples left.

Problem: A train has 6 carriages with 48 seats each. How many seats does the train have?
Solution: 6 x 48 = 288. The train has 288 seats.

Problem: A baker puts 144 rolls into bags of 12. How many bags does she fill?
Solution: 144 / 12 = 12. She fills 12 bags.

Problem: A book costs 14 euros and a pen costs 3 euros. How much do one book and two pens cost together?
Solution: 14 + 2 x 3 = 20. Together they cost 20 euros.

Problem: A tank holds 500 litres. It loses 15 litres a day. How much is left after 10 days?
Solution: 500 - 10 x 15 = 350. There are 350 litres left.

Problem: Tom runs 4 kilometres on each of 5 days and 10 kilometres on Sunday. How far does he run in the week?
Solution: 5 x 4 + 10 = 30. He runs 30 kilometres.

Problem: A class of 28 pupils is split into groups of 4. How many groups are there?
Solution: 28 / 4 = 7. There are 7 groups.

Problem: """
PLANTS = """\
You help people who are new to gardening. Say in one sentence when to sow the plant and in one sentence what it needs,
and keep to the form of these examples.

Plant: tomato
Advice: Sow it indoors in March and plant it out after the last frost. It needs full sun, a stake and even watering.

Plant: carrot
Advice: Sow it outdoors from April to June in loose soil. It needs thin rows and must not dry out while it sprouts.

Plant: garlic
Advice: Set the cloves in October, five centimetres deep. It needs a sunny bed and almost no water in its last month.

Plant: lettuce
Advice: Sow it every two weeks from March to August. It needs light shade in summer and regular watering.

Plant: pumpkin
Advice: Sow it indoors in April and give it two square metres outside in May. It needs rich compost and much water.

Plant: radish
Advice: Sow it outdoors from March to September and pick it after four weeks. It needs even moisture and little else.

Plant: broad bean
Advice: Sow it as early as February, since it bears frost well. It needs deep soil and support against the wind.

Plant: """
GROUPS: list[tuple[str, str, list[str]]] = [
    (
        "review",
        SENTIMENT,
        [
            "The pool was closed, but the staff found us tickets for the public one.",
            "We were bitten by insects all night and nobody cared.",
            "Quiet, warm and close to the station; the best week of our year.",
            "Good food, slow service, fair price.",
        ],
    ),
    (
        "problem",
        ARITHMETIC,
        [
            "A farmer has 9 hens and each lays 6 eggs a week. How many eggs are that?",
            "A rope of 60 metres is cut into pieces of 5 metres. How many pieces are there?",
            "Mia had 50 euros and spent 18 and then 7. How much is left?",
            "A cinema sold 120 tickets on Friday and twice as many on Saturday. How many in all?",
        ],
    ),
    ("plant", PLANTS, ["spinach", "runner bean", "beetroot", "strawberry"]),
]


@dataclass(frozen=True)
class Prompt:
    group: str
    text: str
    prefix: str


@dataclass(frozen=True)
class Outcome:
    """The cost of one question, and the tokens that an ideal cache would have saved."""

    prompt: Prompt
    entry: LocalNode
    answered: AnsweredView
    ideal_tokens: int
    """Longest common prefix with any earlier prompt: the hit of one infinite cache."""
    is_cold: bool
    """First of its group at any node."""


def prompts() -> list[Prompt]:
    """The groups in turn, as different people would ask: no two consecutive prompts share a prefix."""
    rounds = zip(
        *([Prompt(name, prefix + question, prefix) for question in qs] for name, prefix, qs in GROUPS), strict=True
    )
    return [prompt for one_round in rounds for prompt in one_round]


async def ask(prompt: Prompt, entry: LocalNode, console: Console) -> AnsweredView:
    """Run ``mycelia ask`` at the entry node and show the answer as it streams."""
    shared = ["--cache-salt", "public"]  # (otherwise the users of different nodes share no prefixes)
    arguments = ["ask", "--json", "--data-dir", str(entry.data_dir), "--max-tokens", str(MAX_TOKENS), *shared, "-"]
    process = await trio.lowlevel.open_process(
        [*COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None and process.stdout is not None
    answered: AnsweredView | None = None
    try:
        async with process.stdin:
            await process.stdin.send_all(prompt.text.encode())
        rest = b""
        async for chunk in process.stdout:
            *lines, rest = (rest + bytes(chunk)).split(b"\n")
            for line in lines:
                frame = msgspec.json.decode(line, type=FrameView)
                if isinstance(frame, TextView):
                    console.print(frame.text.replace("\n", " "), end="", markup=False, soft_wrap=True)
                elif isinstance(frame, AnsweredView):
                    answered = frame
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
            with trio.CancelScope(shield=True):
                await process.wait()
    console.print()
    if answered is None:
        sys.exit(f"demo: 'mycelia ask' failed with exit code {process.returncode}")
    return answered


async def tokenize(info: RunInfo, text: str) -> list[int]:
    """The tokens of ``text`` in the model's chat template."""
    async with httpx.AsyncClient(base_url=info.api_url, trust_env=False) as http:
        response = await http.post("/api/tokenize", json={"messages": [{"role": "user", "content": text}]})
        response.raise_for_status()
        return msgspec.json.decode(response.content, type=list[int])


async def run(root: Path, console: Console) -> None:
    async with open_local_swarm(root) as swarm:
        console.print(f"starting {NUM_NODES} nodes; nodes 2 and 3 know only node 1's address ...")
        nodes = await swarm.start_many(NUM_NODES, options=["--threads", "1"])
        infos = [await node.wait_ready() for node in nodes]
        for node, info in zip(nodes, infos, strict=True):
            console.print(f"  {node.name}  {short(info.peer)}  process {info.pid}")
        seen: list[list[int]] = []
        outcomes: list[Outcome] = []
        for number, prompt in enumerate(prompts()):
            # The entry node shifts by one more each round, so that no group always enters at the same node.
            entry = nodes[(number + number // len(GROUPS)) % len(nodes)]
            tokens = await tokenize(infos[0], prompt.text)
            ideal = max((common_prefix(tokens, earlier) for earlier in seen), default=0)
            is_cold = all(outcome.prompt.group != prompt.group for outcome in outcomes)
            console.print(f"[dim]{number + 1:2} {prompt.group} at {entry.name}:[/dim] ", end="")
            answered = await ask(prompt, entry, console)
            outcomes.append(Outcome(prompt, entry, answered, min(ideal, len(tokens) - 1), is_cold))
            seen.append(tokens)
        names = {info.peer: node.name for node, info in zip(nodes, infos, strict=True)}
        console.print(table(outcomes, names))
        summarise(outcomes, names, console)


def table(outcomes: Sequence[Outcome], names: dict[str, str]) -> Table:
    caption = "* first prompt with its prefix: nobody can have it computed"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=caption, caption_justify="left")
    for name in ("prompt", "entry node", "served by"):
        table.add_column(name, no_wrap=True)
    for name in ("prompt tokens", "cached tokens", "TTFT s", "tokens/s"):
        table.add_column(name, justify="right")
    for number, outcome in enumerate(outcomes, start=1):
        answered = outcome.answered
        table.add_row(
            f"{number:2} {outcome.prompt.group}{'*' if outcome.is_cold else ''}",
            outcome.entry.name,
            names.get(answered.served_by, short(answered.served_by)),
            str(answered.prompt_tokens),
            str(answered.cached_tokens),
            f"{answered.ttft_ms / 1000:.2f}",
            f"{tokens_per_s(answered):.0f}",
        )
    return table


def summarise(outcomes: Sequence[Outcome], names: dict[str, str], console: Console) -> None:
    total = sum(o.answered.prompt_tokens for o in outcomes)
    cached = sum(o.answered.cached_tokens for o in outcomes)
    ideal = sum(o.ideal_tokens for o in outcomes)
    warm = [o for o in outcomes if not o.is_cold]
    cold_s = median(o.answered.ttft_ms / 1000 for o in outcomes if o.is_cold)
    warm_s = median(o.answered.ttft_ms / 1000 for o in warm)
    least = min(o.answered.cached_tokens / o.ideal_tokens for o in warm)
    moved = sum(names.get(o.answered.served_by) != o.entry.name for o in warm)
    console.print(
        f"hit ratio  {cached / total:.3f} of all prompt tokens; one infinite cache would reach {ideal / total:.3f}"
        f" (we reach {cached / ideal:.1%} of it)\n"
        f"warm       {len(warm)} prompts, {moved} of them served by another node than they came in at;"
        f" each found at least {least:.0%} of its shared prefix computed\n"
        f"TTFT       cold {cold_s:.2f} s, warm {warm_s:.2f} s (medians): warm is {warm_s / cold_s:.2f} of cold",
        soft_wrap=True,
    )


def main() -> None:
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="mycelia-demo-", ignore_cleanup_errors=True) as root:
        try:
            trio.run(run, Path(root), console)
        except* KeyboardInterrupt:
            console.print("\ninterrupted; every node has been stopped")
            sys.exit(130)


if __name__ == "__main__":
    main()
