"""The groups of rows that ``mycelia bench attacks`` measures."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from statistics import mean

import httpx
import trio

from mycelia.bench.attacks import honest
from mycelia.bench.attacks.asking import answer_of, ask_for
from mycelia.bench.attacks.honest import Victims, attacked, open_victims
from mycelia.bench.plans import AttacksBench
from mycelia.bench.report.report import Progress, Report, Row, report_of, row_of
from mycelia.node.engine.models import FAKE_MODEL
from mycelia.node.network.identity import new_identity
from mycelia.node.network.libp2p.network import open_network
from mycelia.node.network.network import NetworkSettings
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.messages import Sampling
from mycelia.sim.policies import OWN
from mycelia.sim.scenario import Conduct, Scenario
from mycelia.sim.simulate import simulate

NEWCOMER = ("sockets", "connections", "streams", "kad_streams")
ENGINE = ("cells", "sibyls", "slow_grammars", "refused_grammars")
FLOODS = ("prunes", "provider_records", "digests")
SETTLE_S = 2.0
"""Pause after an attack, before the next measurement."""
FLOOD_S = 20.0
NUM_GETS = 10
LIARS, LIAR_S = (Conduct.COMPUTES, Conduct.GARBAGE, Conduct.STALLS), 60.0
SECRET = "4929173456089015"  # noqa: S105  (the example that is to be guessed)
KEY = "a key of the benchmark alone"


async def bench_attacks(bench: AttacksBench) -> Report:
    """Run the benchmark. Raises LocalError when nodes do not start."""
    measure: dict[str, Callable[[AttacksBench, Progress], Awaitable[list[Row]]]] = {
        "newcomer": _newcomer,
        "http": _http,
        "floods": _floods,
        "bans": _bans,
        "engine": _engine,
        "prefix": _prefix,
        "liar": _liar,
    }
    rows: list[Row] = []
    with Progress(len(bench.groups)) as progress:
        for group in bench.groups:
            progress.step(group)
            rows += await measure[group](bench, progress)
    return report_of("attacks", rows)


async def _newcomer(bench: AttacksBench, progress: Progress) -> list[Row]:
    """Whether newcomers are kept out: the time to join, to find another node and to get an answer of both."""
    async with open_victims([FAKE_MODEL] * 2) as victims:
        return await _in_turns("newcomer", NEWCOMER, bench, progress, victims, partial(honest.newcomer_s, victims))


async def _http(bench: AttacksBench, progress: Progress) -> list[Row]:
    """Whether a key opens the API although others hold all the connections that they can get."""
    async with open_victims([FAKE_MODEL], key=KEY) as victims:
        url = await victims.api_url()

        async def gets_s() -> float:
            return mean([await honest.keyed_get_s(url, KEY) for _ in range(NUM_GETS)])

        return await _in_turns("http", ("half_heads",), bench, progress, victims, gets_s)


async def _in_turns(
    name: str,
    attacks: Sequence[str],
    bench: AttacksBench,
    progress: Progress,
    victims: Victims,
    measure_s: Callable[[], Awaitable[float]],
) -> list[Row]:
    """Rows of seconds when idle, and of the ratio to idle under each attack."""
    idle: list[float] = []
    ratios: dict[str, list[float]] = {attack: [] for attack in attacks}
    for run in range(bench.runs):
        for attack in attacks:
            progress.show(f"{name}, run {run + 1}: {attack}")
            idle.append(await measure_s())
            async with attacked(await victims.plan(attack)):
                took_s = await measure_s()
            ratios[attack].append(took_s / idle[-1])
            await trio.sleep(SETTLE_S)
    rows = [row_of(f"{attack}_{name}_ratio", "of idle", values) for attack, values in ratios.items()]
    return [row_of(f"idle_{name}_s", "s", idle), *rows]


async def _floods(bench: AttacksBench, progress: Progress) -> list[Row]:
    """The memory that stays allocated, and the longest pauses of the event loop."""
    rows: list[Row] = []
    pauses: list[float] = []
    for attack in FLOODS:
        grown: list[float] = []
        attacked_pauses: list[float] = []
        for run in range(bench.runs):
            progress.show(f"floods, run {run + 1}: {attack}")
            async with open_victims([FAKE_MODEL] * 2) as victims:
                url = await victims.api_url()
                pauses.append(1000 * await honest.longest_pause_s(url, FLOOD_S / 2))
                before = victims.resident_mib()
                async with trio.open_nursery() as nursery:

                    async def watch(to: list[float] = attacked_pauses, url: str = url) -> None:
                        to.append(1000 * await honest.longest_pause_s(url, FLOOD_S))

                    nursery.start_soon(watch)
                    async with attacked(await victims.plan(attack)):
                        pass  # (these attacks are complete when in place)
                await trio.sleep(SETTLE_S)
                grown.append(victims.resident_mib() - before)
        rows.append(row_of(f"{attack}_rss_mib", "MiB that stay", grown))
        rows.append(row_of(f"{attack}_pause_ms", "ms without an answer, the longest", attacked_pauses))
    return [*rows, row_of("idle_pause_ms", "ms likewise", pauses)]


async def _bans(bench: AttacksBench, progress: Progress) -> list[Row]:
    """Whether honest nodes put each other in quarantine."""
    rows: list[Row] = []
    for attack, models in (("repairs", [FAKE_MODEL] * 3), ("relayed_asks", [bench.model, FAKE_MODEL])):
        progress.show(f"bans, {bench.minutes:g} minutes: {attack}")
        async with open_victims(models) as victims:
            plan = await victims.plan(attack, FAKE_MODEL if attack == "relayed_asks" else "", attack == "repairs")
            async with attacked(plan):
                await trio.sleep(60 * bench.minutes)
            banned = await honest.num_banned(victims)
        rows.append(row_of(f"{attack}_banned", "quarantines of honest nodes", [banned]))
    return rows


async def _engine(bench: AttacksBench, progress: Progress) -> list[Row]:
    """The speed of a real engine for another client."""
    idle_ttfts: list[float] = []
    ttfts: dict[str, list[float]] = {attack: [] for attack in ENGINE}
    rates: dict[str, list[float]] = {attack: [] for attack in ENGINE}
    async with open_victims([bench.model], _ENGINE_OPTIONS) as victims:
        address = victims.addresses[0]
        await honest.client_answer(address)
        for run in range(bench.runs):
            for attack in ENGINE:
                progress.show(f"engine, run {run + 1}: {attack}")
                idle = await honest.client_answer(address)
                assert idle.ttft_s is not None
                idle_ttfts.append(idle.ttft_s)
                async with attacked(await victims.plan(attack)):
                    await trio.sleep(SETTLE_S)
                    answer = await honest.client_answer(address)
                assert answer.ttft_s is not None
                ttfts[attack].append(answer.ttft_s / idle.ttft_s)
                rates[attack].append((answer.tokens_per_s or 0.0) / (idle.tokens_per_s or 1.0))
                await trio.sleep(SETTLE_S)
    rows = [row_of("idle_ttft_s", "s of a light client", idle_ttfts)]
    for attack in ENGINE:
        rows.append(row_of(f"{attack}_ttft_ratio", "of idle", ttfts[attack]))
        rows.append(row_of(f"{attack}_rate_ratio", "of idle, tokens/s", rates[attack]))
    return rows


_ENGINE_OPTIONS = ("--threads", "1", "--cells", "8192")


async def _prefix(bench: AttacksBench, progress: Progress) -> list[Row]:
    """How much of another client's prompt can be guessed, token by token, from a node's reports of cached tokens."""
    recovered: list[float] = []
    async with open_victims([bench.model], _ENGINE_OPTIONS) as victims:
        url = await victims.api_url()
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=honest.PATIENCE_S) as http:
            for run in range(bench.runs):
                progress.show(f"prefix, run {run + 1}")
                known = f"In run {run} my credit card number is "

                async def tokens_of(text: str) -> list[int]:
                    body = {"messages": [{"role": "user", "content": text}]}
                    return list((await http.post("/api/tokenize", json=body)).raise_for_status().json())

                settings = NetworkSettings(identity=new_identity(), overlay=False)
                async with open_network(settings) as client:
                    peer = await client.connect(victims.addresses[0])
                    told = f"{known}{SECRET}, and nobody else shall know it."
                    await answer_of(client, peer, ask_for(told, Sampling(max_tokens=1)))
                    recovered.append(await _probed(victims.addresses[0], known, tokens_of))
    return [row_of("prefix_recovered", f"characters of {len(SECRET)}", recovered)]


async def _probed(address: str, known: str, tokens_of: Callable[[str], Awaitable[list[int]]]) -> int:
    """The number of characters of the secret that were found."""
    found = ""
    settings = NetworkSettings(identity=new_identity(), overlay=False, dial_host="127.0.0.2")
    async with open_network(settings) as stranger:
        peer = await stranger.connect(address)
        while len(found) < len(SECRET):
            cached: dict[str, int] = {}
            for digit in "0123456789":
                probe = await tokens_of(known + found + digit + "?")
                ask = ask_for("", Sampling(max_tokens=1), tokens=pack_tokens(probe))
                cached[digit] = (await answer_of(stranger, peer, ask)).cached_tokens
            best = max(cached, key=lambda digit: cached[digit])
            if list(cached.values()).count(cached[best]) > 1 or not SECRET.startswith(found + best):
                break
            found += best
    return len(found)


async def _liar(bench: AttacksBench, progress: Progress) -> list[Row]:
    """The share of answers that a liar gives in the second minute after it has joined ten honest nodes, which have
    answered for two minutes: simulated."""
    rows: list[Row] = []
    for conduct in LIARS:
        shares: list[float] = []
        for run in range(bench.runs):
            progress.show(f"liar, run {run + 1}: {conduct}")
            scenario = Scenario(
                num_peers=11,
                liars=1 / 11,
                conduct=conduct,
                liars_after_s=2 * LIAR_S,
                load=0.5,
                warm_s=3 * LIAR_S,
                measured_s=LIAR_S,
            )
            shares.append(simulate(scenario, OWN, run + 1, lambda what: None).liar_share)
            await trio.lowlevel.checkpoint()
        rows.append(row_of(f"liar_{conduct}_share", "of all answers", shares))
    return rows
