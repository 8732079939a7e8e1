"""A node's reports about itself: its last requests, traces over nodes, links, metrics, and the events of its page."""

import json
import random
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from mycelia.node.network.network import NetworkError
from mycelia.node.peer_id import peer_text
from mycelia.node.queries.inspection import INSPECT
from mycelia.node.serve.gateway import serve_gateway
from mycelia.node.serve.http.server import bind_api
from mycelia.node.serve.local.observe import MAX_STREAMS
from mycelia.node.swarms import Swarms
from mycelia.node.telemetry.client_rows import is_peer
from mycelia.node.telemetry.metrics import exposition
from mycelia.node.telemetry.requests import MAX_REQUESTS, RequestLog
from mycelia.node.telemetry.usage import Counts
from mycelia.node.views.history import TraceView
from mycelia.node.views.state import PublicPart
from mycelia.proto.wire.errors import RemoteError
from mycelia.proto.wire.messages import (
    MAX_TRACE_STEPS,
    Answered,
    Ask,
    Begun,
    Failed,
    Generate,
    Reach,
    ReachQuery,
    Sampling,
    Text,
    Usage,
)
from tests.node.members import LONG, Member, an_ask, frames_of, open_members

DEADLINE_S = 30.0
USAGE = Usage(prompt_tokens=100, cached_tokens=60, completion_tokens=5, queue_ms=0, prefill_ms=0, decode_ms=0)
ANSWERED = Answered(served_by=b"p" * 38, reason="stop", usage=USAGE, ttft_ms=250, resumed=1)


def request_id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def sums(member: Member) -> dict[tuple[str, tuple[str, ...]], float]:
    """(Name of the sample, values of its labels) -> value."""
    families = text_string_to_metric_families(Swarms(member.node).metrics().decode())
    return {
        (sample.name, tuple(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


# --- the log --------------------------------------------------------------------------------------------------------


def test_what_is_kept_of_requests_is_bounded() -> None:
    log = RequestLog(clock=lambda: 0.0)
    for number in range(MAX_REQUESTS + 10):
        log.entered(request_id(number), "m", b"")
    assert len(log.rows()) == MAX_REQUESTS and not log.steps(request_id(9)) and log.steps(request_id(10))
    for _ in range(2 * MAX_TRACE_STEPS):
        log.emitted(request_id(20), "bounced", b"p" * 38, "x" * 10_000)
    assert len(log.steps(request_id(20))) == MAX_TRACE_STEPS
    assert all(len(step.detail) <= 256 for step in log.steps(request_id(20)))


def surplus(clients: Sequence[str]) -> int:
    """The rule of ``client_rows.py`` in short: the index of the row to remove from rows of these clients, the oldest
    first."""
    groups = ["peers" if is_peer(client) else client for client in clients]
    ((largest, _),) = Counter(groups).most_common(1)
    if largest != "peers":
        return groups.index(largest)
    peers = Counter(client for client, group in zip(clients, groups, strict=True) if group == "peers")
    return clients.index(max(peers, key=lambda client: peers[client]))


def test_the_rows_that_go_are_those_that_the_rule_names() -> None:
    chance = random.Random(7)
    clients = ["", "k" * 32, "p" * 40, "q" * 40, "r" * 40]
    log = RequestLog(clock=lambda: 0.0)
    expected: list[tuple[str, bytes]] = []
    for number in range(3 * MAX_REQUESTS):
        client = chance.choices(clients, (4, 2, 3, 2, 1 + number % 5))[0].encode()
        known = chance.choice(expected)[1] if expected and chance.random() < 0.02 else request_id(number)
        expected = [(one, other) for one, other in expected if other != known]
        log.entered(known, "m", client)
        expected.append((log.rows()[-1].client, known))
        if len(expected) > MAX_REQUESTS:
            del expected[surplus([one for one, _ in expected])]
        assert len(log.rows()) == len(expected)
    assert [bytes.fromhex(row.id) for row in log.rows()] == [known for _, known in expected]


async def test_all_who_follow_the_rows_hear_of_a_change_also_after_one_left(
    autojump_clock: trio.testing.MockClock,
) -> None:
    log, heard = RequestLog(), list[int]()

    async def follow() -> None:
        heard.append(await log.changed(0))

    with trio.move_on_after(1):
        await log.changed(0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        log.entered(request_id(1), "m", b"")
    assert heard == [1, 1, 1]
    with trio.move_on_after(1):
        await log.changed(1)
    log.tokenized(request_id(1), 5)
    assert await log.changed(1) == 2


def test_a_request_that_was_forgotten_while_it_ran_is_still_counted() -> None:
    log = RequestLog(clock=lambda: 0.0)
    log.entered(request_id(0), "m", b"")
    for number in range(1, MAX_REQUESTS + 10):
        log.entered(request_id(number), "m", b"")
    log.relayed_frame(request_id(0), Begun(served_by=b"p" * 38, cached_tokens=3))
    log.answered(request_id(0), ANSWERED)
    assert log.totals.entered == {"answered": 1} and log.stats().ttft_ms_p50 == 250


def test_strangers_words_make_no_new_counters_and_push_nothing_out() -> None:
    log = RequestLog(clock=lambda: 0.0)
    log.entered(request_id(0), "m", b"")
    for number in range(1, 100):
        log.entered(request_id(number), "m", b"")
        log.failed(request_id(number), f"invented-{number}", "")
    assert log.totals.entered == {"other": 99}
    generate = Generate(
        request_id=bytes(16), namespace=bytes(16), prompt=bytes(4), sampling=Sampling(max_tokens=1), promised_tokens=0
    )
    for number in range(1_000, 1_000 + 2 * MAX_REQUESTS):
        with log.serving(msgspec.structs.replace(generate, request_id=request_id(number)), b"p" * 38):
            pass
    assert len(log.rows()) == 100 and not log.steps(request_id(1_000)), "the served ones are bounded by themselves"
    with log.serving(msgspec.structs.replace(generate, request_id=request_id(0)), b""):
        pass
    assert [step.name for step in log.steps(request_id(0))] == ["entered", "serving", "served"]


def test_requests_of_strangers_push_no_rows_of_others_out() -> None:
    log = RequestLog(clock=lambda: 0.0)
    clients = [b"", b"k" * 16, b"h" * 38, b"", b"k" * 16, b"h" * 38]
    for number, client in enumerate(clients):
        log.entered(request_id(number), "m", client)
    for number in range(100, 100 + 2 * MAX_REQUESTS):
        log.entered(request_id(number), "m", b"liar".ljust(38))
        log.failed(request_id(number), "unknown_model", "")
    assert len(log.rows()) == MAX_REQUESTS
    assert [int(row.id, 16) for row in log.rows()[:7]] == [0, 1, 2, 3, 4, 5, 100 + MAX_REQUESTS + 6]
    for number in range(5_000, 5_000 + 2 * MAX_REQUESTS):
        log.entered(request_id(number), "m", number.to_bytes(38, "big"))
    assert [int(row.id, 16) for row in log.rows()[:4]] == [0, 1, 3, 4], "with a key for each row"
    for number in range(9_000, 9_000 + MAX_REQUESTS):
        log.entered(request_id(number), "m", b"")
    peers = [row for row in log.rows() if len(row.client) > 32]
    assert len(log.rows()) == MAX_REQUESTS and len(peers) >= MAX_REQUESTS // 2 - 2, "nor does the owner all of theirs"


def test_the_end_of_a_request_that_was_forgotten_leaves_no_row() -> None:
    log = RequestLog(clock=lambda: 0.0)
    for number in range(2 * MAX_REQUESTS):
        log.entered(request_id(number), "m", b"h" * 38)
    for number in range(MAX_REQUESTS):
        log.first_token(request_id(number))
        log.answered(request_id(number), ANSWERED)
        assert not log.steps(request_id(number))
    assert len(log.rows()) == MAX_REQUESTS and log.totals.entered == {"answered": MAX_REQUESTS}


def test_a_clients_own_id_is_taken_once() -> None:
    log = RequestLog()
    assert log.new_id(request_id(7)) == request_id(7)
    log.entered(request_id(7), "m", b"")
    assert log.new_id(request_id(7)) != request_id(7)
    assert log.new_id(bytes(16)) != bytes(16)


def test_rows_and_sums_tell_how_requests_ended() -> None:
    now = 0.0
    log = RequestLog(clock=lambda: now, wall=lambda: 1_800_000_000.0)
    for number in range(3):
        log.entered(request_id(number), "m", b"key-of-16-bytes!")
    now = 2.0
    log.answered(request_id(0), ANSWERED)
    log.failed(request_id(1), "overloaded", "all nodes are busy")
    log.cancelled(request_id(2))
    answered, failed, cancelled = log.rows()
    assert answered.total_ms == 2_000 and answered.ttft_ms == 250 and answered.cached_tokens == 60
    assert (failed.status, failed.code, cancelled.status) == ("failed", "overloaded", "cancelled")
    assert answered.client == b"key-of-16-bytes!".hex() and answered.started_at == 1_800_000_000.0
    stats = log.stats()
    assert stats.entered == {"answered": 1, "overloaded": 1, "cancelled": 1}
    assert (stats.entered_cached_tokens, stats.entered_prompt_tokens) == (60, 100)


async def test_the_row_of_an_answer_that_was_given_up_counts_what_had_come(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(2, models=("one", "two"), decode_rate=10.0) as (_, (one, _two)):
        for model in ("one", "two"):
            num_tokens = 0
            async with one.node.ask(an_ask("hello", max_tokens=200, model=model)) as frames:
                async for frame in frames:
                    num_tokens += len(frame.tokens) // 4 if isinstance(frame, Text) else 0
                    if num_tokens >= 3:
                        break
            row = one.node.recent_requests()[-1]
            assert (row.model, row.status, row.completion_tokens) == (model, "cancelled", num_tokens)
        async with one.node.ask(an_ask("hello", max_tokens=200), deadline_s=3.0) as frames:
            num_tokens = sum([len(frame.tokens) // 4 async for frame in frames if isinstance(frame, Text)])
        late = one.node.recent_requests()[-1]
        assert (late.status, late.code, late.completion_tokens) == ("failed", "deadline", num_tokens) and num_tokens


# --- over nodes -----------------------------------------------------------------------------------------------------


async def test_a_trace_tells_the_steps_at_every_node(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3) as (_, members):
        await frames_of(members[0], an_ask(LONG + "one"))
        await trio.sleep(3)
        frames = await frames_of(members[1], an_ask(LONG + "two"))
        assert isinstance(frames[-1], Answered) and frames[-1].served_by == members[0].peer
        row = members[1].node.recent_requests()[-1]
        assert row.status == "answered" and row.served_by == peer_text(members[0].peer) and row.cached_tokens > 0
        trace = await members[1].node.trace(row.id[:8])
        assert await members[1].node.trace("0123456") is None
    assert isinstance(trace, TraceView) and trace.id == row.id and not trace.silent
    entry, server = peer_text(members[1].peer), peer_text(members[0].peer)
    steps = [(step.node, step.name) for step in trace.steps]
    wanted = [(entry, "entered"), (entry, "routed"), (server, "serving"), (server, "prefilling"), (server, "decoding")]
    assert [step for step in steps if step in wanted] == wanted
    assert steps.index((entry, "first_token")) > steps.index((server, "decoding"))
    assert {(entry, "answered"), (server, "served")} <= set(steps)
    assert [step.at_ms for step in trace.steps] == sorted(step.at_ms for step in trace.steps)


async def test_a_trace_follows_a_prompt_for_another_model_to_its_entry(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2, models=("one", "two")) as (_, (one, two)):
        frames = await frames_of(one, an_ask("hello", model="two"))
        assert isinstance(frames[-1], Answered)
        (row,) = one.node.recent_requests()
        assert row.status == "answered" and row.model == "two" and row.served_by == peer_text(two.peer)
        trace = await one.node.trace(row.id)
        assert trace is not None
        names = {(step.node, step.name) for step in trace.steps}
        assert {(peer_text(one.peer), "relayed"), (peer_text(two.peer), "entered")} <= names
        async with one.node.ask(an_ask("hello", max_tokens=200, model="two")) as left:
            await anext(aiter(left))
        assert one.node.recent_requests()[-1].status == "cancelled"


async def test_a_node_that_is_gone_is_told_as_silent(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        await frames_of(one, an_ask(LONG + "one"))
        await trio.sleep(3)
        await frames_of(two, an_ask(LONG + "two"))
        row = two.node.recent_requests()[-1]
        await two.network.disconnect(one.peer)
        trace = await two.node.trace(row.id)
    assert trace is not None and trace.silent == [peer_text(one.peer)]


async def test_links_are_those_of_the_peers(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(3) as (_, members):
        told = {row.peer: {link.peer for link in row.links} for row in await members[0].node.links()}
        everybody = {peer_text(member.peer) for member in members}
        me = peer_text(members[0].peer)
        assert told == {peer: everybody - {peer} for peer in everybody - {me}}
        assert await members[0].node.links() is await members[0].node.links()  # (kept for some seconds)


async def reach_told(one: Member, two: Member, port: int) -> Reach:
    """The reply of ``two`` to ``one``."""
    stream = await one.network.open(two.peer, INSPECT)
    await stream.send(ReachQuery(port=port))
    answer = await stream.receive()
    assert isinstance(answer, Reach)
    return answer


async def test_a_peer_tells_whether_a_port_is_open_and_is_not_asked_too_often() -> None:
    listener = bind_api("127.0.0.1", 0)
    open_port = listener.getsockname()[1]
    with listener, trio.fail_after(DEADLINE_S):
        async with open_members(2) as (_, (one, two)):
            seen = await reach_told(one, two, open_port)
            assert seen.outcome == "open" and seen.address.startswith("/ip4/127.0.0.1/")
            listener.close()
            outcomes = [(await reach_told(one, two, open_port)).outcome for _ in range(8)]
    assert outcomes[:3] == ["closed"] * 3 and outcomes[-1] == "untried"


async def test_who_asks_too_often_takes_nobody_elses_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_members(3) as (_, (one, two, three)):
        hosts = {one.peer: "127.0.0.1", three.peer: "127.0.0.2"}
        monkeypatch.setattr(two.network, "remote_address", lambda peer: f"/ip4/{hosts[peer]}/tcp/1")
        with trio.fail_after(DEADLINE_S):
            greedy = [await reach_told(one, two, port=1) for _ in range(20)]
            modest = await reach_told(three, two, port=1)
    assert greedy[-1].outcome == "untried" and modest.outcome == "closed"


async def test_nobody_is_connected_to_for_who_came_through_a_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The address of the peer's connection is the relay's."""
    listener = bind_api("127.0.0.1", 0)
    port = listener.getsockname()[1]
    circuit = f"/ip4/127.0.0.1/tcp/{port}/p2p/12D3KooW/p2p-circuit"
    with listener, trio.fail_after(DEADLINE_S):
        async with open_members(2) as (_, (one, two)):
            monkeypatch.setattr(two.network, "remote_address", lambda peer: circuit)
            answer = await reach_told(one, two, port)
            assert (answer.outcome, answer.address) == ("untried", "")


async def test_other_questions_are_no_questions(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        stream = await one.network.open(two.peer, INSPECT)
        await stream.send(an_ask("hello"))
        with pytest.raises((NetworkError, RemoteError)):
            await stream.receive()
        assert {row.peer for row in await one.node.links()} == {peer_text(two.peer)}


# --- metrics --------------------------------------------------------------------------------------------------------


async def test_metrics_count_what_happened(autojump_clock: trio.testing.MockClock) -> None:
    async with open_members(2) as (_, (one, two)):
        await frames_of(one, an_ask(LONG + "one"))
        await trio.sleep(3)
        await frames_of(two, an_ask(LONG + "two"))
        failed = (await frames_of(two, an_ask(LONG * 1000)))[-1]
        assert isinstance(failed, Failed)
        at_entry, at_server = sums(two), sums(one)
    assert at_entry["mycelia_requests_total", ("answered",)] == 1
    assert at_entry["mycelia_requests_total", (failed.code,)] == 1
    assert at_entry["mycelia_ttft_seconds_count", ()] == 1
    assert at_entry["mycelia_peers", ()] == at_entry["mycelia_paths", ("LAN",)] == 1
    promised = at_entry["mycelia_estimate_promised_tokens_total", ()]
    assert 0 < promised == at_entry["mycelia_estimate_found_tokens_total", ()]
    assert at_server["mycelia_served_requests_total", ("answered",)] == 2
    assert at_server["mycelia_prompt_tokens_total", ("cached",)] >= promised
    assert at_server["mycelia_prompt_tokens_total", ("computed",)] > 0
    assert at_server["mycelia_queue_wait_seconds_count", ()] == 2
    assert at_entry["mycelia_received_bytes_total", ("digests",)] > 0
    assert at_entry["mycelia_received_message_bytes_total", ("Delta",)] > 0


# --- over HTTP ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def served(member: Member) -> AsyncIterator[httpx.AsyncClient]:
    listener = bind_api("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_gateway, Swarms(member.node), listener)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
            yield http
        nursery.cancel_scope.cancel()


async def test_events_tell_the_state_and_every_change_of_a_request() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_members(1) as (_, (one,)), served(one) as http:
            stream = await trio.open_tcp_stream(http.base_url.host, http.base_url.port or 0)
            await stream.send_all(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            async with stream, aclosing(told(stream)) as events:
                kind, state = await anext(events)
                assert kind == "state" and state["peer"] == peer_text(one.peer)
                frames = await frames_of(one, an_ask("hello"))
                assert isinstance(frames[-1], Answered)
                async for kind, row in events:
                    if kind == "request" and row["status"] != "running":
                        break
                assert row["status"] == "answered"
                assert row["completion_tokens"] == frames[-1].usage.completion_tokens


async def told(stream: trio.SocketStream) -> AsyncGenerator[tuple[str, Any], None]:
    """Server-sent events: their kinds and data. (httpx leaves generators behind when its reader stops early.)"""
    rest = b""
    async for chunk in stream:
        *lines, rest = (rest + bytes(chunk)).split(b"\n")
        for line in lines:
            if line.startswith(b"event: "):
                kind = line.removeprefix(b"event: ").decode()
            elif line.startswith(b"data: "):
                yield kind, json.loads(line.removeprefix(b"data: "))


async def test_followers_of_events_are_bounded_and_leave_their_place() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_members(1) as (_, (one,)), served(one) as http, trio.open_nursery() as nursery:
            for _ in range(MAX_STREAMS):
                await nursery.start(_follow, http)
            refused = await http.get("/api/events")
            assert refused.status_code == 503 and "16" in refused.json()["message"]
            nursery.cancel_scope.cancel()
        async with open_members(1) as (_, (one,)), served(one) as http:
            for _ in range(2 * MAX_STREAMS):
                async with http.stream("GET", "/api/events") as response:
                    assert response.status_code == 200


async def _follow(http: httpx.AsyncClient, task_status: trio.TaskStatus[None]) -> None:
    async with http.stream("GET", "/api/events") as response:
        assert response.status_code == 200
        task_status.started()
        await trio.sleep_forever()


async def test_a_request_has_one_id_from_the_client_to_the_trace() -> None:
    with trio.fail_after(DEADLINE_S):
        async with open_members(1) as (_, (one,)), served(one) as http:
            said = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
            answer = await http.post("/v1/chat/completions", json={"model": "", **said})
            openai_id = answer.headers["x-request-id"]
            assert answer.json()["id"] == f"chatcmpl-{openai_id}"
            local_id = (await http.post("/api/ask", json=said)).headers["x-request-id"]
            mine = "ab" * 16
            assert (await http.post("/api/ask", json={"request_id": mine, **said})).headers["x-request-id"] == mine
            assert [row["id"] for row in (await http.get("/api/requests")).json()] == [openai_id, local_id, mine]
            trace = (await http.get(f"/api/trace/{mine[:6]}")).json()
            assert trace["id"] == mine and trace["steps"][0]["name"] == "entered"
            for wrong in ("abc", "ffffffff", "nonsense", "a" * 1_000):
                assert (await http.get(f"/api/trace/{wrong}")).status_code == 404
            assert (await http.get("/metrics")).headers["content-type"].startswith("text/plain; version=0.0.4")
            assert (await http.get("/api/links")).json() == []


async def test_a_clients_id_reaches_the_node_it_asks(autojump_clock: trio.testing.MockClock) -> None:
    ask = an_ask("hello")
    chosen = Ask(request_id=b"c" * 16, model="", messages=ask.messages, sampling=ask.sampling)
    async with open_members(1) as (_, (one,)):
        await frames_of(one, chosen)
        await frames_of(one, chosen)  # (a second request with that id gets another one)
        first, second = one.node.recent_requests()
    assert first.id == (b"c" * 16).hex() != second.id


# --- what is written about it ---------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[3]


async def test_every_metric_is_documented_and_the_dashboard_uses_only_real_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with open_members(2) as (_, (one, _two)):
        await frames_of(one, an_ask(LONG))
        state = msgspec.structs.replace(one.node.state(), public=PublicPart("", [], [], []))
        families = list(
            text_string_to_metric_families(
                exposition(state, one.node.requests, {("alice", "fake"): Counts(2)}).decode()
            )
        )
    full = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    names = {"mycelia_node_info" if name == "mycelia_node" else name for name in full}
    told = set(re.findall(r"`(mycelia_[a-z_]+)`", (ROOT / "docs" / "metrics.md").read_text("utf-8")))
    assert told == {name for name in names if not name.endswith("_created")}
    used = set(re.findall(r"mycelia_[a-z_]+", (ROOT / "examples" / "grafana.json").read_text("utf-8")))
    assert {name.removesuffix("_bucket") for name in used} <= told


def test_the_dashboard_is_one_that_can_be_imported() -> None:
    dashboard = json.loads((ROOT / "examples" / "grafana.json").read_text("utf-8"))
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    for one, other in combinations([panel["gridPos"] for panel in dashboard["panels"]], 2):
        apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
