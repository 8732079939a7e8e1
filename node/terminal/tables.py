"""The tables and lines that commands print for people. Programs use ``--json`` instead."""

import math
import unicodedata
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from mycelia.node.views.frames import AnsweredView, FailedView, RouteView
from mycelia.node.views.state import ModelRow, NodeState, PeerRow, TreeRowView
from mycelia.proto.admission.overload import OVERLOADED

SHORT_ID = 8
"""Ed25519 peer ids have the same beginning; their last characters differ."""
WIDE = 120
"""Columns of a terminal that has room for addresses and reasons."""


def printable(text: str) -> str:
    """``text`` without control characters, which could come from other people's nodes and control the terminal."""
    return "".join(char for char in text if char in "\n\t" or unicodedata.category(char) != "Cc")


def short(peer: str) -> str:
    """The end of a peer id, enough to recognise it in a swarm."""
    return f"…{peer[-SHORT_ID:]}"


def path_text(row: PeerRow) -> str:
    """The way to a peer in a few characters."""
    return f"via\n{short(row.relay)}" if row.relay else row.path


def show_route(console: Console, route: RouteView) -> None:
    """The table of ``--explain``: the terms of each candidate, the chosen one first. The cost is (2 round trips + queue
    + prefill) x load + late + again, in seconds. Prefill is the time for the tokens not matched, corrected by how often
    matches there came true. "Again" is the cost for others of computing tokens again."""
    title = f"{route.prompt_tokens} prompt tokens: {printable(route.reason)}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0)
    table.add_column("node", no_wrap=True)
    # (two lines: eleven columns must fit a terminal of 80)
    for name in (
        "matched\ntokens",
        "came\ntrue",
        "RTT\nms",
        "queue\nms",
        "prefill\nms",
        "late\nms",
        "\nreqs",
        "\nload",
        "again\nms",
        "\ncost",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    for candidate in route.candidates:
        is_chosen = candidate.peer == route.chosen
        table.add_row(
            f"{'→' if is_chosen else ' '} {short(candidate.peer)}",
            str(candidate.matched_tokens),
            f"{candidate.precision:.0%}",
            str(candidate.round_trip_ms),
            str(candidate.queue_ms),
            str(candidate.prefill_ms),
            str(candidate.lateness_ms),
            str(candidate.queued_requests),
            f"{candidate.load_factor:.2f}",
            str(candidate.recompute_ms),
            f"{candidate.cost:.3f}",
            style="bold" if is_chosen else None,
        )
    console.print(table)
    console.print(
        Text(
            "matched: cached there; came true: share of earlier matches that were found; late: later than expected,"
            " lately; reqs: running or waiting there; cost: expected seconds, weighed by load; the lowest is chosen",
            style="dim",
        )
    )


def show_answered(console: Console, answered: AnsweredView, trace: str = "") -> None:
    """One line under an answer, and with ``trace``, a command, a second one about its steps."""
    parts = [
        f"served by {short(answered.served_by)}",
        f"{answered.cached_tokens} of {answered.prompt_tokens} prompt tokens cached",
        f"first token after {answered.ttft_ms / 1000:.2f} s",
        f"{tokens_per_s(answered):.1f} tokens/s",
    ]
    if answered.resumed:
        parts.append(f"resumed {answered.resumed} x")
    if answered.finish_reason == "length":
        parts.append("cut at --max-tokens")
    console.print(Text(" · ".join(parts), style="dim"))
    if trace:
        console.print(Text(f"its steps: {trace}", style="dim"), soft_wrap=True)


def failure_text(failed: FailedView) -> str:
    """Why there is no answer, and what to do, in one line."""
    if failed.code == OVERLOADED and failed.retry_after_s:
        return f"all nodes are busy; try again in about {math.ceil(failed.retry_after_s)} s, or let --wait do so"
    return f"{failed.message}; ask again" if failed.retryable else failed.message


def tokens_per_s(answered: AnsweredView) -> float:
    """Decode rate at the serving node; the first token belongs to the prefill."""
    return max(answered.completion_tokens - 1, 0) / max(answered.decode_ms / 1000, 1e-3)


def show_all_peers(console: Console, state: NodeState) -> None:
    """The peers of a node, by swarm if it is in two."""
    if state.public is None:
        show_peers(console, state.peers)
    else:
        show_peers(console, state.peers, f"in the private swarm {printable(state.swarm)}")
        show_peers(console, state.public.peers, "in the open network")


def show_peers(console: Console, peers: Sequence[PeerRow], title: str | None = None) -> None:
    if not peers:
        console.print(f"no peers {title}" if title else "no peers; 'mycelia status' says what was tried to find some")
        return
    table = Table(title=title, title_justify="left")
    for name in ("node", "path", "models", "digest,\nblocks"):
        table.add_column(name, overflow="fold")
    # (two lines: with a short model's name it fits a terminal of 80)
    for name in ("reqs", "prefill\ntok/s", "RTT\nms", "age\ns"):
        table.add_column(name, justify="right")
    is_wide = console.width >= WIDE
    if is_wide:
        table.add_column("address", overflow="fold")
    for row in peers:
        table.add_row(
            short(row.peer),
            path_text(row),
            printable(", ".join(row.models)),
            f"{row.digest} {row.digest_blocks}",
            str(row.active_requests + row.waiting_requests),
            str(row.prefill_rate or "-"),
            "-" if row.round_trip_ms is None else f"{row.round_trip_ms:.1f}",
            f"{row.connected_s:.0f}",
            *([row.address] if is_wide else []),
        )
    console.print(table)


def show_models(console: Console, models: Sequence[ModelRow]) -> None:
    table = Table()
    table.add_column("model", overflow="fold")
    for name in ("nodes", "connected", "context tokens"):
        table.add_column(name, justify="right")
    has_kinds = any(row.kind not in ("", "text") for row in models)
    if has_kinds:
        table.add_column("kind")
    for row in models:
        kind = [row.kind or "-"] if has_kinds else []
        table.add_row(printable(row.model), str(row.nodes), str(row.connected), str(row.context_tokens), *kind)
    console.print(table)


def show_tree(console: Console, rows: Sequence[TreeRowView]) -> None:
    """The radix tree. Each line is an edge: its tokens, the tokens from the root, the beginning of its text."""
    total = sum(row.tokens for row in rows)
    root = Tree(f"{total} tokens in {sum(row.is_leaf for row in rows)} cached sequences")
    branches = [root]
    for row in rows:
        del branches[row.level + 1 :]
        label = Text.assemble(
            (f"{row.tokens} tokens", "bold"),
            (f" (to {row.depth_tokens})" if row.level else "", "dim"),
            f"  {row.text!r}",
        )
        branches.append(branches[-1].add(label))
    console.print(root)
