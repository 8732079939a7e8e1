"""The command ``mycelia``. Heavy imports happen inside the commands, so that ``--help`` is quick."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from proto.errors import MyceliaError

if TYPE_CHECKING:
    from rich.console import Console

    from node.rundir import RunInfo
    from proto.messages import Ask

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
MAX_PROMPT_BYTES = 524_288

data_dir_option = click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the node keeps its identity and state.  [default: the user's data directory]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
bootstrap_option = click.option(
    "--bootstrap",
    multiple=True,
    metavar="FILE|MULTIADDR",
    help="Nodes to join through: a multiaddr ending in /p2p/PEER_ID, or a file with one a line. Repeatable."
    "  [default: bootstrap.txt]",
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  mycelia node                                    run a node
  mycelia ask "Why is the sky blue?"              ask the swarm
  mycelia ask --explain - < prompt.txt            ... and see why it went where it went
  mycelia peers                                   who is connected""",
)
@click.version_option(package_name="mycelia")
def cli() -> None:
    """A peer-to-peer swarm that answers LLM prompts where part of them is already computed."""


@cli.command(
    epilog="""\b
Examples:
  mycelia node
  mycelia node --model ./model.gguf --listen /ip4/0.0.0.0/tcp/7117
  mycelia node --data-dir /tmp/second --listen /ip4/127.0.0.1/tcp/0 --api-port 0 \\
      --bootstrap /ip4/127.0.0.1/tcp/7117/p2p/12D3KooW..."""
)
@click.option(
    "--listen", multiple=True, metavar="MULTIADDR", help="Accept peers here. Repeatable.  [default: port 7117]"
)
@bootstrap_option
@data_dir_option
@click.option(
    "--model", default="smollm2", show_default=True, metavar="NAME|PATH", help="Registered name, or a GGUF file."
)
@click.option("--api-port", type=click.IntRange(0, 65_535), help="Local API on loopback; 0: any free.  [default: 7118]")
@click.option("--threads", type=click.IntRange(1, 1024), help="Engine threads.  [default: all usable cores]")
@click.option(
    "--cells", type=click.IntRange(256, 16_777_216), help="KV cells: tokens the cache holds.  [default: 8192]"
)
@click.option("--exit-with-parent", is_flag=True, help="Leave when standard input ends: for programs that run nodes.")
@click.option("--debug", is_flag=True, help="Log everything.")
def node(
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
    data_dir: Path | None,
    model: str,
    api_port: int | None,
    threads: int | None,
    cells: int | None,
    exit_with_parent: bool,
    debug: bool,
) -> None:
    """Run a node: join the swarm and serve a model until Ctrl-C."""
    import logging

    import trio

    from node import log
    from node.settings import (
        DEFAULT_API_PORT,
        DEFAULT_LISTEN,
        NodeSettings,
        check_listen,
        default_data_dir,
        read_bootstrap,
    )

    settings = NodeSettings(
        data_dir=data_dir or default_data_dir(),
        model=model,
        listen=check_listen(listen or (DEFAULT_LISTEN,)),
        bootstrap=read_bootstrap(bootstrap),
        api_port=DEFAULT_API_PORT if api_port is None else api_port,
        threads=threads,
        cells=cells,
        exit_with_parent=exit_with_parent,
        debug=debug,
    )
    log.configure(logging.DEBUG if debug else logging.INFO)
    from node.app import run_node

    trio.run(run_node, settings)


@cli.command(
    epilog="""\b
Examples:
  mycelia ask "Why is the sky blue?"
  cat notes.txt | mycelia ask - --system "Summarise in three lines." --max-tokens 200
  mycelia ask "Hello" --json
  mycelia ask "Hello" --bootstrap /ip4/198.51.100.7/tcp/7117/p2p/12D3KooW..."""
)
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1, 131_072), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--system", default="", help="System message.")
@click.option("--model", default="", help="Ask for this model.  [default: what the entry node serves]")
@click.option("--explain", is_flag=True, help="Show the candidates, their match and cost, and why one was chosen.")
@bootstrap_option
@data_dir_option
@json_option
def ask(
    prompt: str,
    max_tokens: int,
    temperature: float,
    seed: int,
    system: str,
    model: str,
    explain: bool,
    bootstrap: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask PROMPT (- reads standard input) and print the answer as it comes.

    Uses the node that runs here, if there is one, else joins as a light client through the bootstrap peers. The node
    that serves a prompt sees it.
    """
    from node.settings import default_data_dir, read_bootstrap
    from proto.messages import Ask, ChatMessage, Sampling

    text = _read_prompt(prompt)
    turns = [ChatMessage(role="system", content=system)] if system else []
    turns.append(ChatMessage(role="user", content=text))
    request = Ask(
        request_id=bytes(16),
        model=model,
        messages=tuple(turns),
        sampling=Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed),
    )
    peers = read_bootstrap(bootstrap)
    where = data_dir or default_data_dir()
    _run(lambda: _ask(request, where, peers, explain=explain, as_json=as_json))


@cli.command()
@data_dir_option
@json_option
def peers(data_dir: Path | None, as_json: bool) -> None:
    """The nodes that the node running here is connected to."""

    async def show() -> None:
        import msgspec

        from node.client import fetch_state
        from node.show import show_peers

        state = await fetch_state(_running(data_dir))
        if as_json:
            click.echo(msgspec.json.encode(state.peers))
        else:
            show_peers(_console(), state.peers)

    _run(show)


@cli.command()
@data_dir_option
@json_option
def tree(data_dir: Path | None, as_json: bool) -> None:
    """The radix tree of the node running here: what it holds computed."""

    async def show() -> None:
        import msgspec

        from node.client import fetch_tree
        from node.show import show_tree

        rows = await fetch_tree(_running(data_dir))
        if as_json:
            click.echo(msgspec.json.encode(rows))
        else:
            show_tree(_console(), rows)

    _run(show)


@cli.command("id")
@data_dir_option
@json_option
def identity(data_dir: Path | None, as_json: bool) -> None:
    """The peer id of this node (made on first use), and its addresses while it runs."""

    async def show() -> None:
        import msgspec

        from node.client import fetch_state
        from node.network.identity import load_or_create_identity
        from node.peer_id import peer_text
        from node.rundir import find_running
        from node.settings import default_data_dir, prepare_data_dir

        where = prepare_data_dir(data_dir or default_data_dir())
        peer = peer_text(load_or_create_identity(where).peer_id)
        running = find_running(where)
        addresses = (await fetch_state(running)).addresses if running else []
        if as_json:
            click.echo(msgspec.json.encode({"peer": peer, "addresses": addresses}))
        else:
            click.echo("\n".join([peer, *addresses]))

    _run(show)


def _read_prompt(prompt: str) -> str:
    if prompt == "-":
        data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
        if len(data) > MAX_PROMPT_BYTES:
            raise click.UsageError(f"the prompt is over {MAX_PROMPT_BYTES} bytes")
        try:
            prompt = data.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"the prompt on standard input is not UTF-8: {exc}") from exc
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


async def _ask(request: "Ask", data_dir: Path, bootstrap: tuple[str, ...], *, explain: bool, as_json: bool) -> None:
    import msgspec

    from node.client import ask_swarm
    from node.show import show_answered, show_route
    from node.views import AnsweredView, FailedView, RouteView, TextView
    from proto.errors import LocalError

    console = _console(stderr=True)
    wrote_text = False
    async with ask_swarm(request, data_dir, bootstrap) as frames:
        async for frame in frames:
            if as_json:
                click.echo(msgspec.json.encode(frame))
            if isinstance(frame, FailedView):
                if wrote_text:
                    click.echo()
                raise LocalError(frame.message)
            if as_json:
                continue
            if isinstance(frame, TextView):
                click.echo(frame.text, nl=False)
                wrote_text = True
            elif isinstance(frame, RouteView) and explain:
                show_route(console, frame)
            elif isinstance(frame, AnsweredView):
                click.echo()
                if explain or sys.stderr.isatty():
                    show_answered(console, frame)
            sys.stdout.flush()
            if isinstance(frame, AnsweredView):
                return
    if not as_json:
        raise LocalError("the answer ended before it was finished; ask again")


def _running(data_dir: Path | None) -> "RunInfo":
    from node.client import running_node
    from node.settings import default_data_dir

    return running_node(data_dir or default_data_dir())


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def _run(main: Callable[[], Awaitable[None]]) -> None:
    """Run a command under trio; Ctrl-C cancels it, which cancels at the serving node too, and exits with 130."""
    import logging
    import signal

    import trio

    from node import log

    log.configure(logging.WARNING)

    async def supervised() -> bool:
        interrupted = False

        async def watch(scope: trio.CancelScope) -> None:
            nonlocal interrupted
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    interrupted = True
                    scope.cancel()
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            await main()
            nursery.cancel_scope.cancel()
        return interrupted

    if trio.run(supervised):
        raise KeyboardInterrupt


def _fail(message: str, code: int) -> None:
    click.echo(f"mycelia: {message}", err=True)
    sys.exit(code)


def _first_error(exc: BaseException) -> BaseException:
    """The one that matters of a group: a clear error of ours before anything else."""
    if not isinstance(exc, BaseExceptionGroup):
        return exc
    ours = exc.subgroup(MyceliaError)
    group = ours if ours is not None else exc
    return _first_error(group.exceptions[0])


def main() -> None:
    """Entry point: every expected error is one line on stderr; 2 for a wrong command line, 1 for the rest."""
    try:
        cli.main(standalone_mode=False)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "mycelia"
        _fail(f"{exc.format_message()} (try '{command} --help')", EXIT_USAGE)
    except click.ClickException as exc:
        _fail(exc.format_message(), EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)
    except (MyceliaError, BaseExceptionGroup) as exc:
        from node.settings import UsageError

        cause = _first_error(exc)
        if isinstance(cause, MyceliaError):
            _fail(str(cause), EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)
        if isinstance(cause, KeyboardInterrupt):
            sys.exit(EXIT_INTERRUPTED)
        raise
