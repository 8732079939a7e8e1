"""Commands about the node that runs on this machine.

``mycelia status``, ``stats``, ``trace`` and ``up`` show what it does; ``peers``, ``models``, ``tree`` and ``id`` show
its peers, the models of the swarm, its cache and its identity.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.node import node
from mycelia.node.commands.options import data_dir_option, json_option, seconds
from mycelia.node.commands.running import console, print_view, run, running

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


MAX_DAYS = 400
"""The same as in ``telemetry/days.py``, which takes longer to import."""


@click.command(
    epilog="""\b
Examples:
  mycelia status
  mycelia status --json | jq .peers"""
)
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """Show the present state of the local node: model, load, cache, peers and traffic."""

    async def show() -> None:
        from mycelia.node.client.local import fetch_state
        from mycelia.node.terminal.state import show_status

        print_view(await fetch_state(running(data_dir)), as_json, show_status)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia stats
  mycelia stats --since 30d          what this machine gave to others and received, for each day
  mycelia stats --json | jq .ttft_ms_p50"""
)
@click.option(
    "--since",
    "since_s",
    callback=seconds,
    metavar="TIME",
    help="What was given to others and received in this time, for each day, such as 7d.",
)
@data_dir_option
@json_option
def stats(since_s: int | None, data_dir: Path | None, as_json: bool) -> None:
    """Show statistics of the local node since its start: requests, hit ratio, time to first token.

    With --since also what is on disk, so the node need not run.
    """

    async def show_since(num_days: int) -> None:
        from mycelia.node.client.local import fetch_days
        from mycelia.node.storage.data_dir import default_data_dir
        from mycelia.node.storage.rundir import find_running
        from mycelia.node.telemetry.days import read_days
        from mycelia.node.terminal.days import show_days

        where = data_dir or default_data_dir()
        info = find_running(where)
        print_view(await fetch_days(info, num_days) if info else read_days(where, num_days), as_json, show_days)

    if since_s is not None:
        # (the first day is shown as a whole)
        num_days = min(since_s // 86_400 + 1, MAX_DAYS)
        run(lambda: show_since(num_days))
        return

    async def show() -> None:
        from mycelia.node.client.local import fetch_state
        from mycelia.node.terminal.state import show_stats

        print_view((await fetch_state(running(data_dir))).stats, as_json, show_stats)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia trace                 list the last requests, with their ids
  mycelia trace 3f2a9c          show every step of one request, at all nodes
  curl -si .../v1/chat/completions ... | grep x-request-id"""
)
@click.argument("request_id", default="")
@data_dir_option
@json_option
def trace(request_id: str, data_dir: Path | None, as_json: bool) -> None:
    """Show every step of the request REQUEST_ID at all nodes it touched.

    Without REQUEST_ID, list the last requests that entered at the local node.
    """
    if request_id and (not 6 <= len(request_id) <= 32 or set(request_id.lower()) - set("0123456789abcdef")):
        raise click.UsageError("REQUEST_ID must be the first 6 or more of a request id's 32 hexadecimal digits")

    async def show() -> None:
        from mycelia.node.client.local import fetch_requests, fetch_trace
        from mycelia.node.terminal.state import show_requests, show_trace

        info = running(data_dir)
        if not request_id:
            print_view(await fetch_requests(info), as_json, show_requests)
        else:
            print_view(await fetch_trace(info, request_id.lower()), as_json, show_trace)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia peers
  mycelia peers --json | jq -r '.[].address'"""
)
@data_dir_option
@json_option
def peers(data_dir: Path | None, as_json: bool) -> None:
    """List the nodes that the local node is connected to."""

    async def show() -> None:
        from mycelia.node.client.local import fetch_state
        from mycelia.node.terminal.tables import show_all_peers, show_peers

        state = await fetch_state(running(data_dir))
        if as_json:
            print_view([*state.peers, *(state.public.peers if state.public else [])], as_json, show_peers)
        else:
            show_all_peers(console(), state)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia models
  mycelia models --json | jq -r '.[].model'"""
)
@data_dir_option
@json_option
def models(data_dir: Path | None, as_json: bool) -> None:
    """List what the swarm serves, as far as the local node and its peers know (model files: 'mycelia model').

    The column 'nodes' is the least number of nodes that serve the model; 'connected' is how many of them the local node
    is connected to. Any model in the list can be asked for.
    """

    async def show() -> None:
        from mycelia.node.client.local import fetch_models
        from mycelia.node.terminal.tables import show_models

        print_view(await fetch_models(running(data_dir)), as_json, show_models)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia tree
  mycelia tree --json | jq 'map(.tokens) | add'        count the tokens in the cache"""
)
@data_dir_option
@json_option
def tree(data_dir: Path | None, as_json: bool) -> None:
    """Show the radix tree of the local node: the prefixes in its cache."""

    async def show() -> None:
        from mycelia.node.client.local import fetch_tree
        from mycelia.node.terminal.tables import show_tree

        print_view(await fetch_tree(running(data_dir)), as_json, show_tree)

    run(show)


@click.command(
    "id",
    epilog="""\b
Examples:
  mycelia id
  mycelia node --bootstrap "$(mycelia id --data-dir /tmp/first | sed -n 2p)"        join that node""",
)
@data_dir_option
@json_option
def identity(data_dir: Path | None, as_json: bool) -> None:
    """Show the peer id of the local node (created on first use), and its addresses while it runs."""

    async def show() -> None:
        import msgspec

        from mycelia.node.client.local import fetch_state
        from mycelia.node.peer_id import peer_text
        from mycelia.node.storage.data_dir import default_data_dir, prepare_data_dir
        from mycelia.node.storage.identity_file import load_or_create_identity
        from mycelia.node.storage.rundir import find_running

        where = prepare_data_dir(data_dir or default_data_dir())
        peer = peer_text(load_or_create_identity(where).peer_id)
        found = find_running(where)
        addresses = (await fetch_state(found)).addresses if found else []
        if as_json:
            click.echo(msgspec.json.encode({"peer": peer, "addresses": addresses}))
        else:
            click.echo("\n".join([peer, *addresses]))

    run(show)


class _TakesNodesOptions(click.Command):
    """A command for which shells also complete the options of ``mycelia node``."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> "list[CompletionItem]":
        return [*super().shell_complete(ctx, incomplete), *node.shell_complete(ctx, incomplete)]


@click.command(
    cls=_TakesNodesOptions,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  mycelia up
  mycelia up --model ./model.gguf --threads 8
  mycelia up > /dev/null 2> node.log       without a terminal: log lines, as of 'mycelia node'""",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF 'mycelia node']")
@click.pass_context
def up(context: click.Context, options: tuple[str, ...]) -> None:
    """Run a node and watch its peers, requests, load, hit ratio and traffic until Ctrl-C.

    All options of 'mycelia node' are accepted.
    """
    import sys

    from mycelia.node.terminal.panel import watch_node

    root = context.find_root()
    isolated, file = root.params["isolated"], root.params["config"]
    before = ["--isolated"] if isolated else ["--config", str(file)] if file else []
    if sys.stdout is None or not sys.stdout.isatty():
        root.command.main([*before, "node", *options], prog_name="mycelia", standalone_mode=False)
    else:
        run(lambda: watch_node([*before, "node", "--exit-with-parent", *options]))
