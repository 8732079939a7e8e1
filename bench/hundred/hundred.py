"""``mycelia bench hundred``: many real nodes on this machine, several to a process, beside the simulator's prediction.

The nodes are those of ``mycelia node`` except for the engine, see ``host.py``. Each starts with the address of one of
them and is asked what it knows of the others until all know all. Then come a window of rest, prompts that enter at
random nodes, and the end of a fifth of all processes at once.

The simulator gets the times at which the nodes were ready, the same prompts and the engine's rates.
"""

import random
import time
from collections.abc import Sequence
from itertools import islice
from statistics import mean

import trio

from mycelia.bench.asking import http_client
from mycelia.bench.hundred.host import CELLS, SLOTS, Place
from mycelia.bench.hundred.hosts import Hosts, open_hosts
from mycelia.bench.plans import HundredBench
from mycelia.bench.report.report import Progress, Report, report_of, rows_of
from mycelia.bench.swarm.mmlu import draw_prompts, made_up_subjects
from mycelia.bench.swarm.prompts import user
from mycelia.bench.swarm.real_swarm import ANSWER_DEADLINE_S, OthersMeter, Outcome, Question, Run, ask_one
from mycelia.bench.swarm.swarm import Pair, bound_of, compare, requests_of
from mycelia.node.engine.fake.engine import FakeEngine
from mycelia.node.engine.fake.worker import DECODE_RATE, PREFILL_RATE
from mycelia.node.plugins import OWN_POLICY
from mycelia.proto.wire.blocks import STRIDE
from mycelia.proto.wire.messages import Conversation
from mycelia.sim.crowd import meet_and_part
from mycelia.sim.machine import EngineSpec
from mycelia.sim.replay import Swarm
from mycelia.sim.scenario import DEGREE
from mycelia.sim.sessions import arrivals

SHARES = (0.5, 0.9, 0.99, 1.0)
RTT_S = 0.001
"""The round trip on loopback that the simulator is told."""
POLL_S, LIMIT_S = 1.0, 300.0
"""How often the nodes are asked what they know, and for how long at most; a quantity that is not reached then has this
value."""
ZIPF, MAX_TOKENS = 1.0, 4
KILLED_SHARE = 0.2
MB = 1e6


async def bench_hundred(bench: HundredBench) -> Report:
    """Run the benchmark. Raises LocalError when a measurement fails."""
    progress = Progress(7)
    progress.step(f"starting {bench.num_nodes} nodes")
    async with open_hosts(bench.num_nodes, bench.per_process) as hosts:
        places = hosts.places
        progress.step("nodes meet")
        known_s = await _meet(hosts)
        progress.step("nodes come to rest")
        await hosts.wait_settled()
        progress.step(f"{bench.rest_s:g} s of rest")
        rest = await _rest(hosts, bench.rest_s)
        progress.step(f"{bench.num_requests} prompts")
        questions = _questions(bench)
        run = await _ask(hosts, questions)
        progress.step("a fifth is killed")
        killed = hosts.kill(max(1, round(KILLED_SHARE * len(hosts.hosts))))
        gone_s = await _part(hosts, killed)
    progress.step("the simulator")
    first_at = min(place.ready_at for place in places)
    starts = [place.ready_at - first_at for place in places]
    dead = [places.index(place) for place in killed]
    crowd = await trio.to_thread.run_sync(meet_and_part, starts, dead, SHARES, RTT_S, bench.rest_s, bench.seed)
    prompts = [await FakeEngine().tokenize_chat(Conversation(tuple(one.messages))) for one in questions]
    spec = EngineSpec(PREFILL_RATE, DECODE_RATE, SLOTS, CELLS // STRIDE, grain=1)
    swarm = Swarm([spec] * bench.num_nodes, RTT_S, connections=DEGREE)
    pair = compare(OWN_POLICY, run, requests_of(questions, prompts), swarm, bench.seed)
    rows = [
        *[(f"known_{100 * share:.0f}_s", "s", seconds) for share, seconds in known_s.items()],
        *[(f"sim_known_{100 * share:.0f}_s", "s", seconds) for share, seconds in crowd.known_s.items()],
        *rest,
        ("sim_connections", "per node", crowd.connections),
        ("sim_digest_rx_bytes_per_s", "bytes/s a node", crowd.received_per_s),
        *_hit_rows(pair, bound_of(prompts)),
        ("killed", "nodes", len(killed)),
        *[(f"killed_{what}_s", "s", seconds) for what, seconds in gone_s.items()],
        ("sim_killed_connected_s", "s", crowd.connected_s),
        ("sim_killed_live_s", "s", crowd.live_s),
        ("sim_killed_kept_s", "s", crowd.kept_s),
    ]
    progress.close()
    return report_of("hundred", rows_of(rows))


async def _meet(hosts: Hosts) -> dict[float, float]:
    """Share -> seconds from the last node's start until every node used the digests of that share of the others."""
    places = hosts.places
    peers = [place.peer for place in places]
    last_at = max(place.ready_at for place in places)
    known_s = dict.fromkeys(SHARES, LIMIT_S)
    while time.time() < last_at + LIMIT_S and known_s[SHARES[-1]] == LIMIT_S:
        least = min(look.live for look in await hosts.look(peers))
        for share in SHARES:
            if least >= share * (len(peers) - 1):
                known_s[share] = min(known_s[share], time.time() - last_at)
        await trio.sleep(POLL_S)
    return known_s


async def _rest(hosts: Hosts, seconds: float) -> list[tuple[str, str, float]]:
    meter = OthersMeter(hosts.pids)
    began, before = trio.current_time(), hosts.cpu_s()
    await trio.sleep(seconds)
    took_s, cpu_s = trio.current_time() - began, hosts.cpu_s() - before
    others_cores, pss = meter.others_cores(), hosts.pss_bytes()
    looks = await hosts.look([place.peer for place in hosts.places])
    num_nodes = len(looks)
    return [
        ("cpu_share_rest", "of one core a node", cpu_s / took_s / num_nodes),
        ("pss_per_node", "MB", pss / num_nodes / MB),
        ("others_cores", "cores busy with other things", others_cores),
        ("connections", "per node", mean(look.peers for look in looks)),
        ("digest_rx_bytes_per_s", "bytes/s a node", mean(look.digest_bytes_per_s for look in looks)),
    ]


def _questions(bench: HundredBench) -> list[Question]:
    rng = random.Random(f"prompts {bench.seed}")  # noqa: S311
    count = bench.num_requests
    texts = draw_prompts(made_up_subjects(count, bench.seed), count, ZIPF, rng)
    times = islice(arrivals(bench.rate, rng), count)
    return [
        Question(at_s, rng.randrange(bench.num_nodes), [user(text)], MAX_TOKENS)
        for at_s, text in zip(times, texts, strict=True)
    ]


async def _ask(hosts: Hosts, questions: Sequence[Question]) -> Run:
    """Asks every question at its time, without waiting for earlier answers."""
    places = hosts.places
    numbers = {place.peer: number for number, place in enumerate(places)}
    outcomes: dict[int, Outcome] = {}
    meter = OthersMeter(hosts.pids)
    async with http_client(ANSWER_DEADLINE_S) as http, trio.open_nursery() as nursery:

        async def one(number: int, question: Question) -> None:
            outcomes[number] = await ask_one(http, places[question.entry].api_url, question, numbers)

        began = trio.current_time()
        for number, question in enumerate(questions):
            await trio.sleep_until(began + question.at_s)
            nursery.start_soon(one, number, question)
    return Run([outcomes[number] for number in range(len(questions))], [], meter.others_cores())


def _hit_rows(pair: Pair, bound: float) -> list[tuple[str, str, float]]:
    real, simulated = pair.real, pair.simulated
    return [
        ("hit_bound", "of the prompt tokens", bound),
        ("cached_over_bound", "ratio", real.hit_ratio / bound),
        ("sim_cached_over_bound", "ratio", simulated.hit_ratio / bound),
        ("sim_error_hit", "of the measured", pair.hit_error),
        ("ttft_p50_s", "s", real.ttft_s("p50")),
        ("sim_ttft_p50_s", "s", simulated.ttft_s("p50")),
        ("failed", "requests", real.num_failed),
        ("others_cores_asked", "cores busy with other things", pair.run.others_cores),
    ]


async def _part(hosts: Hosts, killed: Sequence[Place]) -> dict[str, float]:
    """Seconds until no node is connected with a killed one, uses the digest of one, keeps the digest of one."""
    began = trio.current_time()
    gone_s: dict[str, float] = {}
    while len(gone_s) < 3 and trio.current_time() < began + LIMIT_S:
        looks = await hosts.look([place.peer for place in killed])
        sums = {
            "connected": sum(look.connected for look in looks),
            "live": sum(look.live for look in looks),
            "kept": sum(look.kept for look in looks),
        }
        for what, count in sums.items():
            if not count:
                gone_s.setdefault(what, trio.current_time() - began)
        await trio.sleep(POLL_S / 2)
    return {what: gone_s.get(what, LIMIT_S) for what in ("connected", "live", "kept")}
