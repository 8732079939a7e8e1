"""A node's metrics in Prometheus' text format. ``docs/metrics.md`` has their names and units.

They are made on request from the node's state and the sums of its requests, so that nothing is counted twice.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from mycelia.node.engine.engine import LOADED
from mycelia.node.telemetry.requests import RequestLog
from mycelia.node.telemetry.usage import Table
from mycelia.node.views.state import NodeState, RelayedView, ServedRow

PATHS = ("direct", "punched", "relayed", "LAN")
"""The ways to a peer, see ``network/network.py``."""


def exposition(state: NodeState, requests: RequestLog, usage: Table) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_NodeCollector(state, requests, usage))
    return generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, state: NodeState, requests: RequestLog, usage: Table) -> None:
        self._state = state
        self._requests = requests
        self._usage = usage

    def collect(self) -> Iterator[Metric]:
        state, traffic = self._state, self._state.traffic
        yield _info(state)
        yield _gauge("mycelia_uptime_seconds", "Time since the node's start.", state.uptime_s)
        yield _gauge("mycelia_peers", "Connected nodes.", len(state.peers))
        if state.public is not None:
            yield _gauge("mycelia_public_peers", "Connected nodes of the open network.", len(state.public.peers))
        ways = Counter(peer.path for peer in state.peers)
        yield _gauges(
            "mycelia_paths", "Connected nodes by the way to them.", "path", {path: ways[path] for path in PATHS}
        )
        yield from _of_relay(state.relayed)
        yield _gauge("mycelia_cell_bits", "Depth of the node's cell; 0: the swarm is one cell.", state.cell_bits)
        yield _gauge("mycelia_paused", "1: the node takes no prompts of others now.", int(bool(state.paused)))
        yield _gauge("mycelia_slots", "Requests that the engine runs at once.", state.slots)
        yield _gauge("mycelia_requests_running", "Requests being prefilled or decoded here.", state.active_requests)
        yield _gauge("mycelia_requests_waiting", "Requests in this node's queue.", state.waiting_requests)
        yield _gauge("mycelia_exchanges", "Open streams of requests with peers.", state.exchanges)
        yield _gauge("mycelia_tasks", "Tasks of the node's event loop.", state.tasks)
        yield _gauge("mycelia_kv_cells", "Tokens that the KV cache holds at most.", state.cells)
        yield _gauge("mycelia_kv_cached_tokens", "Tokens of prefixes in the KV cache.", state.cached_tokens)
        yield from _of_models(state.served)
        yield from self._of_requests()
        yield from _of_keys(self._usage)
        yield _counter("mycelia_received_bytes", "Bytes from peers.", "plane", traffic.received_bytes)
        yield _counter("mycelia_received_message_bytes", "Bytes from peers.", "kind", traffic.received_kinds)
        yield _counter("mycelia_digest_sent_bytes", "Bytes to peers.", "kind", traffic.digests_sent_kinds)
        yield _sum("mycelia_digest_deltas_postponed", "Deltas that waited for the budget.", traffic.deltas_postponed)
        yield _sum("mycelia_digest_repairs_dropped", "Repairs and questions over the budget.", traffic.repairs_dropped)
        yield _counter("mycelia_refused", "Things from peers that were not used.", "reason", state.refused)

    def _of_requests(self) -> Iterator[Metric]:
        totals = self._requests.totals
        yield _counter("mycelia_requests", "Requests that entered here.", "outcome", totals.entered)
        yield _counter("mycelia_served_requests", "Requests served here.", "outcome", totals.served)
        yield _counter(
            "mycelia_prompt_tokens",
            "Prompt tokens of requests served here, found in the cache or computed.",
            "source",
            {"cached": totals.cached_tokens, "computed": totals.computed_tokens},
        )
        yield _sum("mycelia_generated_tokens", "Answer tokens of requests served here.", totals.generated_tokens)
        yield _sum("mycelia_request_moves", "Further attempts of requests that entered here.", totals.moves)
        yield _sum("mycelia_kv_evictions", "Prefixes that left the KV cache.", totals.evictions)
        yield _sum("mycelia_estimate_promised_tokens", "Prefix tokens promised by digests.", totals.promised_tokens)
        yield _sum("mycelia_estimate_found_tokens", "Promised tokens that were found.", totals.found_tokens)
        for histogram in (self._requests.ttft, self._requests.duration, self._requests.queue, self._requests.per_token):
            yield from histogram.collect()


def _of_models(rows: Sequence[ServedRow]) -> Iterator[Metric]:
    def gauges(name: str, text: str, value: Callable[[ServedRow], float]) -> Metric:
        return _gauges(f"mycelia_model_{name}", text, "model", {row.model: value(row) for row in rows})

    yield gauges("loaded", "Models served here; 1: in memory.", lambda row: row.state == LOADED)
    yield gauges("requests_running", "Requests of the model.", lambda row: row.active_requests)
    yield gauges("requests_waiting", "Waiting requests of the model.", lambda row: row.waiting_requests)
    yield gauges(
        "memory_bytes", "The most that the model's engine took; 0: not measured.", lambda row: row.memory_bytes
    )
    yield gauges("kept_bytes", "Room for the model's prefixes; 0: not counted.", lambda row: row.kept_bytes)
    yield gauges("load_seconds", "Time of the last load; 0: not measured.", lambda row: row.load_s)


def _of_keys(usage: Table) -> Iterator[Metric]:
    requests = CounterMetricFamily("mycelia_key_requests", "Requests of API keys.", labels=["key", "model", "outcome"])
    tokens = CounterMetricFamily("mycelia_key_tokens", "Tokens of API keys.", labels=["key", "model", "kind"])
    for (key, model), counts in sorted(usage.items()):
        ended = counts.requests - counts.failed
        for outcome, count in (("ended", ended), ("failed", counts.failed), ("refused", counts.refused)):
            requests.add_metric([key, model, outcome], count)
        computed = counts.prompt_tokens - counts.cached_tokens
        for kind, count in (
            ("cached", counts.cached_tokens),
            ("computed", computed),
            ("generated", counts.completion_tokens),
        ):
            tokens.add_metric([key, model, kind], count)
    yield from (requests, tokens)


def _of_relay(relayed: RelayedView) -> Iterator[Metric]:
    yield _gauge("mycelia_relay_circuits", "Connections of others that lead through this node.", relayed.circuits)
    yield _gauge("mycelia_relay_circuits_limit", "Their largest number; 0: no relay.", relayed.max_circuits)
    yield _gauge("mycelia_relay_places", "Nodes that others reach through this one.", relayed.places)
    yield _gauge("mycelia_relay_places_limit", "Their largest number; 0: no relay.", relayed.max_places)
    yield _sum("mycelia_relayed_bytes", "Bytes passed on for others.", relayed.bytes)
    yield _gauge("mycelia_relay_bytes_per_second_limit", "The most that is passed on.", relayed.max_bytes_per_s)


def _info(state: NodeState) -> Metric:
    value = {"version": state.version, "model": state.model, "peer": state.peer}
    return InfoMetricFamily("mycelia_node", "The node.", value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family


def _sum(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value)


def _counter(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, count in sorted(values.items()):
        family.add_metric([value], count)
    return family
