"""``mycelia status``, ``stats``, ``trace`` and ``up``: what a node does."""

from pathlib import Path

import click

from node.commands.options import data_dir_option, json_option


@click.command(
    epilog="""\b
Examples:
  mycelia status
  mycelia status --json | jq .peers"""
)
@data_dir_option
@json_option
def status(data_dir: Path | None, as_json: bool) -> None:
    """The node running here: its model, load, cache, peers and traffic, now."""
    from node.cli import print_view, run, running

    async def show() -> None:
        from node.client import fetch_state
        from node.show_state import show_status

        print_view(await fetch_state(running(data_dir)), as_json, show_status)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia stats
  mycelia stats --json | jq .ttft_ms_p50"""
)
@data_dir_option
@json_option
def stats(data_dir: Path | None, as_json: bool) -> None:
    """What the node running here did since its start: requests, hit ratio, times to first token."""
    from node.cli import print_view, run, running

    async def show() -> None:
        from node.client import fetch_state
        from node.show_state import show_stats

        print_view((await fetch_state(running(data_dir))).stats, as_json, show_stats)

    run(show)


@click.command(
    epilog="""\b
Examples:
  mycelia trace                 the last requests, with their ids
  mycelia trace 3f2a9c          the way of one of them over all nodes
  curl -si .../v1/chat/completions ... | grep x-request-id"""
)
@click.argument("request_id", default="")
@data_dir_option
@json_option
def trace(request_id: str, data_dir: Path | None, as_json: bool) -> None:
    """The way of the request REQUEST_ID over all nodes it touched; without one, the last requests that entered here."""
    if request_id and (not 6 <= len(request_id) <= 32 or set(request_id.lower()) - set("0123456789abcdef")):
        raise click.UsageError("a request's id has 32 hexadecimal digits; its first 6 or more are enough")
    from node.cli import print_view, run, running

    async def show() -> None:
        from node.client import fetch_requests, fetch_trace
        from node.show_state import show_requests, show_trace

        info = running(data_dir)
        if not request_id:
            print_view(await fetch_requests(info), as_json, show_requests)
        else:
            print_view(await fetch_trace(info, request_id.lower()), as_json, show_trace)

    run(show)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  mycelia up
  mycelia up --model ./model.gguf --threads 8
  mycelia up > /dev/null 2> node.log       no terminal: the log's lines, as of 'mycelia node'""",
)
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF 'mycelia node']")
@click.pass_context
def up(context: click.Context, options: tuple[str, ...]) -> None:
    """Run a node and watch it: peers, requests, load, hit ratio and traffic, until Ctrl-C.

    Takes the options of 'mycelia node'.
    """
    import sys

    from node.cli import cli, run
    from node.up import watch_node

    root = context.find_root().params
    before = ["--isolated"] if root["isolated"] else ["--config", str(root["config"])] if root["config"] else []
    if sys.stdout is None or not sys.stdout.isatty():
        cli.main([*before, "node", *options], prog_name="mycelia", standalone_mode=False)
    else:
        run(lambda: watch_node([*before, "node", "--exit-with-parent", *options]))
