"""Tables and panels of a node's state, for ``status``, ``stats``, ``trace`` and ``up``."""

import time
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from mycelia.node.terminal.tables import WIDE, printable, short
from mycelia.node.views.history import RequestRow, TraceView
from mycelia.node.views.state import NodeState, ServedRow, StatsView, TreeRowView

SHORT_REQUEST = 8
_MAX_ROWS = 40


def show_status(console: Console, state: NodeState) -> None:
    console.print(status_table(state))


def status_table(state: NodeState, is_cut: bool = False) -> Table:
    """is_cut: what is wider than the terminal is cut, except addresses, which users copy; otherwise it is wrapped."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def add(label: str, text: str | Text) -> None:
        table.add_row(label, _line(text) if is_cut and isinstance(text, str) else text)

    load = f"{state.active_requests} of {state.slots} slots, {state.waiting_requests} waiting"
    full = f" ({state.cached_tokens / state.cells:.0%} of {state.cells})" if state.cells else ""
    own = {state.model, *(row.model for row in state.served)}
    models = sorted({model for peer in state.peers for model in peer.models} - own)
    rates = state.traffic.received_bytes_per_s
    add("node", state.peer)
    add("version", f"{state.version}, up {duration(state.uptime_s)}")
    swarm = f"{printable(state.swarm)}, private" if state.swarm else "the open network"
    add("swarm", f"{swarm}, and the open network" if state.public else swarm)
    add("listens", _addresses(state.addresses))
    kind = state.served[0].kind if state.served else ""
    does = _DOES.get(kind) or _REUSE.get(state.reuse, "")
    add("model", f"{state.model}, {state.context_tokens} tokens of context, {does}")
    for row in state.served[1:]:
        does = _DOES.get(row.kind) or _REUSE.get(row.reuse, "")
        add("", f"{printable(row.model)}, {row.context_tokens} tokens of context, {does}")
    if len(state.served) > 1:
        add("in memory", "\n".join(map(_residence, state.served)))
    if state.auto:
        add("auto", printable(state.auto))
    if models:
        add("other models", printable(", ".join(models)))
    add("load", load)
    if state.paused:
        add("paused", f"takes no prompts of others: {state.paused}")
    add("cache", f"{state.cached_tokens} tokens{full}")
    add("peers", f"{len(state.peers)}" + (f" in a cell of depth {state.cell_bits}" if state.cell_bits else ""))
    if state.attempts:
        add("found nobody", printable("\n".join(map(str, state.attempts))))
    if state.public is not None:
        add("in public", f"{len(state.public.peers)} peers, as {state.public.peer}")
        add("", _addresses(state.public.addresses))
        if state.public.attempts:
            add("", printable("found nobody: " + "\n".join(map(str, state.public.attempts))))
    add("requests", f"{hits(state.stats)}; {ttft(state.stats)}")
    news = ", ".join(f"{_PLANES.get(plane, plane)} {size(rate)}/s" for plane, rate in rates.items())
    add("receives", news)
    if state.refused:
        add("refused", ", ".join(f"{reason} {count}" for reason, count in state.refused.items()))
    return table


def _addresses(addresses: Sequence[str]) -> Text:
    return Text("\n".join(addresses) or "-", overflow="fold", no_wrap=False)


def _residence(row: ServedRow) -> str:
    """Such as ``smollm2 loaded, 412.0 MB, 1.9 s to load; 1500.0 MB for prefixes``."""
    took = f", {size(row.memory_bytes)}" if row.memory_bytes else ""
    load = f", {row.load_s:.1f} s to load" if row.load_s else ""
    kept = f"; {size(row.kept_bytes)} for prefixes" if row.kept_bytes else ""
    return f"{printable(row.model)} {row.state}{took}{load}{kept}"


_REUSE = {
    "prefix": "reuses what prompts begin with",
    "checkpoints": "reuses saved states of what prompts begin with",
    "none": "computes each prompt anew",
}
_DOES = {"embedding": "makes embeddings", "rerank": "ranks documents"}
_PLANES = {"digests": "cache news", "vitals": "load news"}


def show_stats(console: Console, stats: StatsView) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("entered here", _counts(stats.entered))
    table.add_row("served here", _counts(stats.served))
    table.add_row("hits", hits(stats))
    table.add_row("latency", ttft(stats))
    table.add_row("generated", f"{stats.generated_tokens} tokens")
    table.add_row("cache news", _share(stats.found_tokens, stats.promised_tokens, "of the promised tokens were found"))
    table.add_row("retried", f"{stats.moves} times at another node")
    table.add_row("evictions", f"{stats.evictions} prefixes left the KV cache, some to memory or disk")
    console.print(table)


def show_requests(console: Console, rows: Sequence[RequestRow]) -> None:
    if not rows:
        console.print("no request has entered here; ask one with 'mycelia ask'")
        return
    console.print(requests_table(rows[-_MAX_ROWS:], console.width))


def requests_table(rows: Sequence[RequestRow], width: int) -> Table:
    """The newest request last. width: columns of the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # (otherwise the reasons would take the room of the other columns)
    for name, least in (("request", SHORT_REQUEST), ("at", 8), ("status", 13), ("served by", 9)):
        table.add_column(name, min_width=least, no_wrap=True)
    for name, least in (("prompt", 6), ("cached", 6), ("TTFT ms", 7), ("tokens", 6)):
        table.add_column(name, min_width=least, justify="right", no_wrap=True)
    is_wide = width >= WIDE
    if is_wide:
        table.add_column("why there", overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(
            row.id[:SHORT_REQUEST],
            time.strftime("%H:%M:%S", time.localtime(row.started_at)),
            row.status if row.status != "failed" else printable(row.code),
            short(row.served_by) if row.served_by else "",
            str(row.prompt_tokens),
            str(row.cached_tokens),
            "" if row.ttft_ms is None else str(row.ttft_ms),
            str(row.completion_tokens),
            *([printable(row.reason)] if is_wide else []),
        )
    return table


def show_trace(console: Console, trace: TraceView) -> None:
    table = Table(title=f"request {trace.id}", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("ms", justify="right", no_wrap=True)
    for name in ("node", "step"):
        table.add_column(name, no_wrap=True)
    table.add_column("")
    for row in trace.steps:
        peer = f"{short(row.peer)} " if row.peer and row.peer != row.node else ""
        table.add_row(f"{row.at_ms:.0f}", short(row.node), printable(row.name), peer + printable(row.detail))
    console.print(table)
    for node in trace.silent:
        console.print(f"{short(node)} sent no steps")


def panel(
    state: NodeState,
    rows: Sequence[RequestRow],
    tree: Sequence[TreeRowView],
    log_lines: Sequence[str],
    api_url: str,
    width: int,
) -> RenderableType:
    """The panel of ``mycelia up``, the newest lines at the bottom. width: columns of the terminal."""
    peers = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    # (otherwise the models would take the room of the other columns)
    for name, least in (("peer", 9), ("path", 7), ("models", 6), ("digest", 7)):
        most = max(width - _MAX_OTHERS, least) if name == "models" else None
        peers.add_column(name, min_width=least, max_width=most, no_wrap=True)
    for name, least in (("blocks", 6), ("reqs", 4), ("tokens/s", 8), ("RTT ms", 6)):
        peers.add_column(name, min_width=least, justify="right", no_wrap=True)
    for peer in state.peers[:_MAX_PEERS]:
        peers.add_row(
            short(peer.peer),
            peer.path,
            printable(", ".join(peer.models))[:40],
            peer.digest,
            str(peer.digest_blocks),
            str(peer.active_requests + peer.waiting_requests),
            str(peer.prefill_rate or "-"),
            "-" if peer.round_trip_ms is None else f"{peer.round_trip_ms:.1f}",
        )
    left_out = len(state.peers) - _MAX_PEERS
    return Group(
        _line(f"mycelia · chat and dashboard {api_url}/ · Ctrl-C stops the node", "bold"),
        status_table(state, is_cut=True),
        *([peers] if state.peers else [Text("no peers yet", style="dim")]),
        *([Text(f"... and {left_out} more", style="dim")] if left_out > 0 else []),
        *([requests_table(rows[-_MAX_REQUESTS:], width)] if rows else []),
        *map(_line, _largest(tree)),
        *(_line(printable(line), "dim") for line in log_lines),
    )


def _line(text: str, style: str = "") -> Text:
    """A text that is cut at the end of the line."""
    return Text(text, style=style, overflow="ellipsis", no_wrap=True)


_MAX_PEERS, _MAX_REQUESTS, _MAX_BRANCHES = 8, 6, 3
_MAX_OTHERS = 62
"""Columns of the terminal that the table of peers takes without the models."""


def _largest(tree: Sequence[TreeRowView]) -> list[str]:
    """The largest branches at the root of the radix tree, with their sizes: the prefixes that prompts share here."""
    branches: list[tuple[int, int, str]] = []
    for row in tree:
        if row.level == 0:
            branches.append((0, 0, row.text))
        tokens, leaves, text = branches[-1]
        branches[-1] = (tokens + row.tokens, leaves + row.is_leaf, text)
    most = sorted(branches, reverse=True)[:_MAX_BRANCHES]
    return [f"{tokens:>7} tokens in {leaves} cached sequences  {text!r}" for tokens, leaves, text in most]


def hits(stats: StatsView) -> str:
    return _share(stats.entered_cached_tokens, stats.entered_prompt_tokens, "of prompt tokens were cached")


def ttft(stats: StatsView) -> str:
    if stats.ttft_ms_p50 is None:
        return "no first token yet"
    return f"first token after {stats.ttft_ms_p50} ms (median), {stats.ttft_ms_p99} ms (p99)"


def duration(seconds: float) -> str:
    """Two units at most."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {int(seconds % 60)} s"


def size(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} kB"


def _share(part: int, whole: int, of: str) -> str:
    return f"{part / whole:.1%} {of}" if whole else "nothing yet"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {printable(name)}" for name, count in sorted(counts.items())) or "nothing yet"
