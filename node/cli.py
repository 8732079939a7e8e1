"""The command ``mycelia``. Heavy imports happen inside the commands, so that ``--help`` is quick."""

import errno
import math
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from node.bench.command import bench
from node.bench.simulate_command import simulate
from node.commands.configure import completion, config
from node.commands.leave import leave
from node.commands.observe import stats, status, trace, up
from node.commands.options import data_dir_option, json_option
from node.doctor import doctor
from node.errors import first_error, one_line
from proto.errors import MyceliaError

if TYPE_CHECKING:
    from rich.console import Console

    from node.chat import Chat
    from node.client import LightClient
    from node.rundir import RunInfo
    from proto.messages import Ask

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130
MAX_MODEL_CHARS = 128
_T = TypeVar("_T")

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
  mycelia up                                      run a node and watch it
  mycelia node                                    run a node
  mycelia ask "Why is the sky blue?"              ask the swarm
  mycelia ask --explain - < prompt.txt            ... and see why it went where it went
  mycelia chat                                    talk with it
  mycelia peers                                   who is connected
  mycelia swarm 4                                 a whole swarm on this machine
  mycelia doctor                                  what a node has to work with here""",
)
@click.version_option(package_name="mycelia")
@click.option(
    "--config",
    envvar="MYCELIA_CONFIG",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Configuration, see 'mycelia config --help'.  [default: config.toml in the user's configuration directory]",
)
@click.option("--isolated", is_flag=True, help="Heed no configuration and no MYCELIA_* variables: for programs.")
@click.pass_context
def cli(context: click.Context, config: Path | None, isolated: bool) -> None:
    """A peer-to-peer swarm that answers LLM prompts where part of them is already computed."""
    if isolated or context.invoked_subcommand in ("config", "completion"):
        return  # (what is wrong in a file must not keep it from being looked at or replaced)
    from node.config import Schema

    schema = Schema(cli)
    settings = schema.read(config, os.environ)
    context.default_map = schema.default_map(settings)


@cli.command(
    epilog="""\b
Examples:
  mycelia node
  mycelia node --model ./model.gguf --listen /ip4/0.0.0.0/tcp/7117
  mycelia node --announce /ip4/203.0.113.7/tcp/7117         behind a router that forwards this port
  mycelia node --model ./model.gguf --gpu-layers 20         20 layers on the GPU, the rest on the processor
  mycelia node --data-dir /tmp/second --listen /ip4/127.0.0.1/tcp/0 --api-port 0 \\
      --bootstrap /ip4/127.0.0.1/tcp/7117/p2p/12D3KooW..."""
)
@click.option(
    "--listen", multiple=True, metavar="MULTIADDR", help="Accept peers here. Repeatable.  [default: port 7117]"
)
@click.option(
    "--announce",
    multiple=True,
    metavar="MULTIADDR",
    help="Tell peers to dial this instead of the addresses listened on: behind a forwarded port. Repeatable.",
)
@bootstrap_option
@data_dir_option
@click.option(
    "--model",
    default="smollm2",
    show_default=True,
    metavar="NAME|PATH",
    help="Registered name, or a GGUF file; 'fake' is no model but letters, to try a swarm.",
)
@click.option("--api-port", type=click.IntRange(0, 65_535), help="Of the HTTP API; 0: any free.  [default: 7118]")
@click.option(
    "--api-host", metavar="ADDRESS", help="Serve the API there; others than loopback need a key.  [default: 127.0.0.1]"
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Keys that open the API, one a line. With any, all requests need one; also MYCELIA_API_KEY.",
)
@click.option("--cors", multiple=True, metavar="ORIGIN", help="Let scripts of these web pages use the API. Repeatable.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Engine threads.  [default: all usable cores]")
@click.option("--slots", type=click.IntRange(1, 127), help="Requests that run at once.  [default: 8]")
@click.option(
    "--cells",
    type=click.IntRange(256, 4_194_304),
    help="KV cells: tokens the cache holds.  [default: 8192, what fits when memory is short or on a GPU]",
)
@click.option(
    "--gpu-layers",
    type=click.IntRange(0, 10_000),
    help="Layers on GPUs; 0: none.  [default: all, if llama.cpp is built for GPUs and sees one]",
)
@click.option(
    "--tensor-split", default="", metavar="A,B,...", help="Shares of the GPUs, as 3,1.  [default: by free memory]"
)
@click.option("--main-gpu", type=click.IntRange(0, 15), help="Use this GPU alone.  [default: all of them]")
@click.option(
    "--ram-tier",
    type=click.IntRange(0),
    metavar="MIB",
    help="Host memory for prefixes that left the KV cache.  [default: 1/4 of what is free, at most 4096]",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep such prefixes on disk too, so that a restarted node begins warm. Holds prompts.  [default: nothing]",
)
@click.option("--disk-tier", type=click.FloatRange(0), metavar="GIB", help="Size of --cache-dir.  [default: 8]")
@click.option(
    "--exact",
    is_flag=True,
    help="Logits that are the same bits with and without reuse: for tests. CPU only; prefill takes 1.15 times as long,"
    " decoding 4 times for one answer, no longer for 8 at once. Shares prefixes with exact nodes only.",
)
@click.option(
    "--policy",
    default="mycelia",
    show_default=True,
    metavar="NAME",
    help="Who answers prompts that enter here: for comparisons, see 'mycelia simulate --help'.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Told to leave (Ctrl-C, SIGTERM, 'mycelia leave'), finish what is being answered for so long; the rest goes on"
    " at other nodes. A second Ctrl-C leaves at once.",
)
@click.option(
    "--relay/--no-relay",
    default=True,
    show_default=True,
    help="Pass on connections of nodes that nobody can dial (32 nodes, 2 MiB/s in all), and be reached through a peer"
    " that does where nobody can dial this one, as behind a router.",
)
@click.option(
    "--no-journal",
    is_flag=True,
    help="Do not write down which requests entered here: no prompts and no answers, but when, whose and served where.",
)
@click.option("--exit-with-parent", is_flag=True, help="Leave when standard input ends: for programs that run nodes.")
@click.option("--debug", is_flag=True, help="Log everything, and check the engine when idle.")
@click.pass_context
def node(
    context: click.Context,
    listen: tuple[str, ...],
    announce: tuple[str, ...],
    bootstrap: tuple[str, ...],
    data_dir: Path | None,
    model: str,
    api_port: int | None,
    api_host: str | None,
    api_key_file: Path | None,
    cors: tuple[str, ...],
    threads: int | None,
    slots: int | None,
    cells: int | None,
    gpu_layers: int | None,
    tensor_split: str,
    main_gpu: int | None,
    ram_tier: int | None,
    cache_dir: Path | None,
    disk_tier: float | None,
    exact: bool,
    policy: str,
    drain_s: float,
    relay: bool,
    no_journal: bool,
    exit_with_parent: bool,
    debug: bool,
) -> None:
    """Run a node: join the swarm and serve a model until Ctrl-C."""
    import logging

    import trio

    from node import log
    from node.settings import (
        DEFAULT_API_HOST,
        DEFAULT_API_PORT,
        DEFAULT_LISTEN,
        NodeSettings,
        check_announce,
        check_cors,
        check_listen,
        check_policy,
        default_data_dir,
        read_api_keys,
        read_bootstrap,
        read_tensor_split,
    )

    if tensor_split and main_gpu is not None:
        raise click.UsageError("give --tensor-split (shares of several GPUs) or --main-gpu (one alone), not both")
    host = api_host or DEFAULT_API_HOST
    key = "" if context.find_root().params["isolated"] else os.environ.get("MYCELIA_API_KEY", "")
    settings = NodeSettings(
        data_dir=data_dir or default_data_dir(),
        model=model,
        listen=check_listen(listen or (DEFAULT_LISTEN,)),
        announce=check_announce(announce),
        bootstrap=read_bootstrap(bootstrap),
        api_port=DEFAULT_API_PORT if api_port is None else api_port,
        api_host=host,
        api_keys=read_api_keys(host, api_key_file, key),
        cors_origins=check_cors(cors),
        threads=threads,
        slots=slots,
        cells=cells,
        gpu_layers=gpu_layers,
        tensor_split=read_tensor_split(tensor_split),
        main_gpu=main_gpu,
        ram_tier_mib=ram_tier,
        cache_dir=cache_dir,
        disk_tier_gib=disk_tier,
        exact=exact,
        policy=check_policy(policy),
        drain_s=drain_s,
        relay=relay,
        journal=not no_journal,
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
  mycelia ask "Name a fish." --temperature 0.8 --seed 7 --stop "." --json-schema fish.json
  mycelia ask "Hello" --bootstrap /ip4/198.51.100.7/tcp/7117/p2p/12D3KooW..."""
)
@click.argument("prompt")
@click.option("--max-tokens", type=click.IntRange(1, 131_072), default=256, show_default=True)
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--top-k", type=click.IntRange(0), default=40, show_default=True, help="0 keeps all.")
@click.option("--top-p", type=click.FloatRange(0, 1), default=0.95, show_default=True, help="1 keeps all.")
@click.option("--min-p", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="0 keeps all.")
@click.option("--repeat-penalty", type=click.FloatRange(0.1, 10), default=1.0, show_default=True, help="1 is off.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. Repeatable.")
@click.option("--logprobs", type=click.IntRange(0, 20), default=0, help="Alternatives a token, with --json.")
@click.option("--grammar", type=click.File(), metavar="FILE", help="Answer in this GBNF grammar.")
@click.option("--json-schema", type=click.File(), metavar="FILE", help="Answer in JSON that fits this schema.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up, and cancel, when the answer takes longer.")
@click.option(
    "--wait",
    is_flag=True,
    help="While all nodes are busy, ask again when they say, and while none can be reached, until --timeout.",
)
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
    top_k: int,
    top_p: float,
    min_p: float,
    repeat_penalty: float,
    stop: tuple[str, ...],
    logprobs: int,
    grammar: TextIO | None,
    json_schema: TextIO | None,
    timeout: float | None,
    wait: bool,
    system: str,
    model: str,
    explain: bool,
    bootstrap: tuple[str, ...],
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Ask PROMPT (- reads standard input) and print the answer as it comes.

    Uses the node that runs here, if there is one, else joins as a light client through the bootstrap peers. The node
    that serves a prompt sees it. When the node here dies meanwhile, the answer goes on at a bootstrap peer or a node
    that it knew, which then sees prompt and answer, also where only the node here had seen them.
    """
    import secrets

    from node.settings import default_data_dir, read_bootstrap
    from node.views import MAX_TIMEOUT_S
    from proto.codec import check_sampling
    from proto.errors import LocalError
    from proto.messages import Ask, ChatMessage, Sampling

    if grammar is not None and json_schema is not None:
        raise click.UsageError("give --grammar or --json-schema, not both")
    if timeout is not None and not 0 < timeout <= MAX_TIMEOUT_S:  # (not a FloatRange: that takes NaN)
        raise click.UsageError(f"--timeout must be more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds")
    if len(model) > MAX_MODEL_CHARS:
        raise click.UsageError(f"--model is over {MAX_MODEL_CHARS} characters")
    for name, value in (("--model", model), ("--system", system), ("the prompt", prompt), ("--stop", "".join(stop))):
        _check_unicode(name, value)
    text = _read_prompt(prompt)
    turns = [ChatMessage(role="system", content=system)] if system else []
    turns.append(ChatMessage(role="user", content=text))
    request = Ask(
        request_id=secrets.token_bytes(16),
        model=model,
        messages=tuple(turns),
        sampling=Sampling(
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            stop=stop,
            logprobs=logprobs,
            grammar=_read_rules(grammar or json_schema),
            grammar_kind="json_schema" if json_schema else "gbnf",
        ),
    )
    try:
        check_sampling(request.sampling)
    except LocalError as exc:
        field, _, problem = str(exc).partition(":")
        raise click.UsageError(f"--{field.replace('_', '-')}:{problem}") from exc
    peers = read_bootstrap(bootstrap)
    where = data_dir or default_data_dir()
    run(lambda: _ask(request, where, peers, timeout, wait=wait, explain=explain, as_json=as_json))


@cli.command(
    epilog="""\b
Examples:
  mycelia chat
  mycelia chat --system "You are a pirate." --temperature 0.7
  printf 'My name is Ada.\\nWhat is my name?\\n' | mycelia chat"""
)
@click.option("--max-tokens", type=click.IntRange(1, 131_072), default=512, show_default=True, help="Of an answer.")
@click.option("--temperature", type=click.FloatRange(0, 100), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True)
@click.option("--system", default="", help="System message.")
@click.option("--model", default="", help="Ask this model.  [default: what the entry node serves]")
@bootstrap_option
@data_dir_option
def chat(
    max_tokens: int,
    temperature: float,
    seed: int,
    system: str,
    model: str,
    bootstrap: tuple[str, ...],
    data_dir: Path | None,
) -> None:
    """A conversation: line by line from the terminal or from standard input.

    Ctrl-C breaks an answer off, and between answers ends the chat, as Ctrl-D does. /help tells what else there is.
    """
    from node.chat import Chat
    from node.client import ask_swarm
    from node.settings import default_data_dir, read_bootstrap
    from proto.messages import Sampling

    _check_unicode("--system", system)
    _check_unicode("--model", model)
    if len(model) > MAX_MODEL_CHARS:
        raise click.UsageError(f"--model is over {MAX_MODEL_CHARS} characters")
    peers = read_bootstrap(bootstrap)
    where = data_dir or default_data_dir()
    sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=seed)
    talk = Chat(lambda ask: ask_swarm(ask, where, peers), console(stderr=True), sampling, model, system)
    _chat(talk)


@cli.command(
    epilog="""\b
Examples:
  mycelia swarm
  mycelia swarm 6 --delay-ms 80
  mycelia swarm 3 --model fake --dir ./swarm"""
)
@click.argument("count", type=click.IntRange(1, 64), default=4, metavar="[N]")
@click.option("--delay-ms", type=click.FloatRange(0, 2_000), default=0.0, help="Round trip between all nodes.")
@click.option("--model", default="smollm2", show_default=True, metavar="NAME|PATH", help="See 'mycelia node --help'.")
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of each engine.")
@click.option("--dir", "root", type=click.Path(path_type=Path, file_okay=False), help="Keep nodes and logs here.")
def swarm(count: int, delay_ms: float, model: str, threads: int, root: Path | None) -> None:
    """A swarm of N nodes on this machine until Ctrl-C: 4 unless told otherwise. Their logs are collected."""
    from node.swarm_command import run_swarm

    run(lambda: run_swarm(count, delay_ms / 1000, ("--model", model, "--threads", str(threads)), root, console()))


@cli.command(
    epilog="""\b
Examples:
  mycelia peers
  mycelia peers --json | jq -r '.[].address'"""
)
@data_dir_option
@json_option
def peers(data_dir: Path | None, as_json: bool) -> None:
    """The nodes that the node running here is connected to."""

    async def show() -> None:
        from node.client import fetch_state
        from node.show import show_peers

        print_view((await fetch_state(running(data_dir))).peers, as_json, show_peers)

    run(show)


@cli.command(
    epilog="""\b
Examples:
  mycelia models
  mycelia models --json | jq -r '.[].model'"""
)
@data_dir_option
@json_option
def models(data_dir: Path | None, as_json: bool) -> None:
    """The models of the swarm, as the node running here and its peers know them: 'nodes' serve each, or more, and
    with so many of them it is connected. Any of them can be asked for."""

    async def show() -> None:
        from node.client import fetch_models
        from node.show import show_models

        print_view(await fetch_models(running(data_dir)), as_json, show_models)

    run(show)


@cli.command(
    epilog="""\b
Examples:
  mycelia tree
  mycelia tree --json | jq 'map(.tokens) | add'        tokens that are held"""
)
@data_dir_option
@json_option
def tree(data_dir: Path | None, as_json: bool) -> None:
    """The radix tree of the node running here: what it holds computed."""

    async def show() -> None:
        from node.client import fetch_tree
        from node.show import show_tree

        print_view(await fetch_tree(running(data_dir)), as_json, show_tree)

    run(show)


@cli.command(
    "id",
    epilog="""\b
Examples:
  mycelia id
  mycelia node --bootstrap "$(mycelia id --data-dir /tmp/first | sed -n 2p)"        join the node that runs there""",
)
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
        found = find_running(where)
        addresses = (await fetch_state(found)).addresses if found else []
        if as_json:
            click.echo(msgspec.json.encode({"peer": peer, "addresses": addresses}))
        else:
            click.echo("\n".join([peer, *addresses]))

    run(show)


cli.add_command(bench)
cli.add_command(simulate)
for command in (doctor, status, stats, trace, up, leave, config, completion):
    cli.add_command(command)


def _read_prompt(prompt: str) -> str:
    from proto.messages import MAX_CHAT_BYTES

    if prompt == "-":
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(MAX_CHAT_BYTES + 1)
        if len(data) > MAX_CHAT_BYTES:
            raise click.UsageError(f"the prompt is over {MAX_CHAT_BYTES} bytes; shorten it")
        try:
            prompt = data.decode()
        except UnicodeDecodeError as exc:
            raise click.UsageError(f"the prompt on standard input is not UTF-8: {exc}") from exc
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def _read_rules(file: TextIO | None) -> str:
    """A grammar or schema file. Longer than any that is allowed is enough to refuse it."""
    from proto.messages import MAX_GRAMMAR_CHARS

    try:
        return file.read(MAX_GRAMMAR_CHARS + 1) if file is not None else ""
    except UnicodeDecodeError as exc:
        raise click.UsageError(f"the grammar is not UTF-8: {exc}") from exc


def _check_unicode(name: str, value: str) -> None:
    """Python turns arguments that are no UTF-8 into lone surrogates, which nothing further on can encode."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise click.UsageError(f"{name} is not UTF-8") from exc


def _chat(talk: "Chat") -> None:
    """Until the end of the input. A turn at a time, so that Ctrl-C means that turn."""
    is_terminal = sys.stdin is not None and sys.stdin.isatty()
    if is_terminal:
        with suppress(ImportError):
            import readline  # noqa: F401  (gives input() its history and its keys)
    while True:
        line = _next_line(is_terminal)
        if line is None:
            return
        try:
            if not run(partial(talk.take, line)):
                return
        except KeyboardInterrupt:
            click.echo()
            if not is_terminal:
                raise


def _next_line(is_terminal: bool) -> str | None:
    """None: there is no more."""
    try:
        if is_terminal:
            return input("> ")
        line = sys.stdin.readline(_MAX_LINE_CHARS) if sys.stdin is not None else ""
    except EOFError:
        click.echo()
        return None
    except UnicodeDecodeError as exc:
        raise click.UsageError("standard input is not UTF-8") from exc
    return line or None


_MAX_LINE_CHARS = 524_288
_LEAST_AGAIN_S = 0.2
"""Between two tries of ``--wait``: no node's word makes this program knock more often."""


async def _ask(
    request: "Ask",
    data_dir: Path,
    bootstrap: tuple[str, ...],
    timeout_s: float | None,
    *,
    wait: bool,
    explain: bool,
    as_json: bool,
) -> None:
    """wait: ask again for as long as all nodes are busy or none can be reached, and ``timeout_s`` is not over."""
    import trio

    from node.client import UNREACHED_AGAIN_S, LightClient, NoEntryError

    client = LightClient()
    due_at = math.inf if timeout_s is None else trio.current_time() + timeout_s
    is_told = False
    while True:
        left_s = None if timeout_s is None else max(due_at - trio.current_time(), 0.001)
        try:
            again_s = await _ask_once(
                request, data_dir, bootstrap, left_s, client, wait=wait, explain=explain, as_json=as_json
            )
        except NoEntryError as exc:
            if not wait or trio.current_time() + UNREACHED_AGAIN_S >= due_at:
                raise
            if not is_told:
                click.echo(f"mycelia: {exc}; trying again, Ctrl-C ends it", err=True)
            is_told, again_s = True, UNREACHED_AGAIN_S
        if again_s is None:
            return
        await trio.sleep(max(again_s, _LEAST_AGAIN_S))


async def _ask_once(
    request: "Ask",
    data_dir: Path,
    bootstrap: tuple[str, ...],
    timeout_s: float | None,
    client: "LightClient",
    *,
    wait: bool,
    explain: bool,
    as_json: bool,
) -> float | None:
    """None: it was answered. Else, if ``wait``, the seconds after which to ask again. Raises LocalError."""
    import msgspec

    from node.client import ask_swarm
    from node.show import failure_text, printable, show_answered, show_route
    from node.views import AnsweredView, FailedView, RouteView, TextView
    from proto.errors import LocalError

    errors = console(stderr=True)
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    wrote_text = False
    async with ask_swarm(request, data_dir, bootstrap, timeout_s, client) as frames:
        async for frame in frames:
            if wait and not wrote_text and isinstance(frame, FailedView) and frame.retry_after_s:
                if timeout_s is None or frame.retry_after_s < timeout_s:
                    return frame.retry_after_s
            if as_json:
                click.echo(msgspec.json.encode(frame))
            if isinstance(frame, FailedView):
                if wrote_text and not as_json:
                    click.echo()
                raise LocalError(failure_text(frame))
            if isinstance(frame, AnsweredView):
                if not as_json:
                    click.echo()
                    if explain or errors.is_terminal:
                        show_answered(errors, frame, request.request_id.hex() if explain else "")
                return None
            wrote_text = wrote_text or isinstance(frame, TextView)
            if as_json:
                continue
            if isinstance(frame, TextView):
                click.echo(printable(frame.text) if is_terminal else frame.text, nl=False)
            elif isinstance(frame, RouteView) and explain:
                show_route(errors, frame)
    raise LocalError("the answer ended before it was finished; ask again")


def print_view(value: _T, as_json: bool, show: "Callable[[Console, _T], None]") -> None:
    """``value`` as JSON, or as ``show`` draws it for people."""
    import msgspec

    if as_json:
        click.echo(msgspec.json.encode(value))
    else:
        show(console(), value)


def running(data_dir: Path | None) -> "RunInfo":
    from node.client import running_node
    from node.settings import default_data_dir

    return running_node(data_dir or default_data_dir())


def console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def run(main: Callable[[], Awaitable[_T]]) -> _T:
    """Run a command under trio; Ctrl-C cancels it, which cancels at the serving node too, and exits with 130."""
    import logging
    import signal

    import trio

    from node import log

    log.configure(logging.WARNING)

    async def supervised() -> list[_T]:
        results: list[_T] = []

        async def watch(scope: trio.CancelScope, task_status: trio.TaskStatus[None]) -> None:
            with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                task_status.started()
                await anext(aiter(signals))
                scope.cancel()

        async with trio.open_nursery() as nursery:
            await nursery.start(lambda *, task_status: watch(nursery.cancel_scope, task_status))
            results.append(await main())
            nursery.cancel_scope.cancel()
        return results

    results = trio.run(supervised)
    if not results:
        raise KeyboardInterrupt
    return results[0]


def _fail(message: str, code: int) -> None:
    click.echo(f"mycelia: {one_line(message)}", err=True)
    sys.exit(code)


def _discard_output() -> None:
    """Nobody can take what is still buffered for stdout; Python would complain about that at its end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def main() -> None:
    """Entry point: every expected error is one line on stderr; 2 for a wrong command line, 1 for the rest."""
    try:
        cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.format_message(), err=True)
        sys.exit(EXIT_USAGE)
    except click.UsageError as exc:
        command = exc.ctx.command_path if exc.ctx else "mycelia"
        _fail(f"{exc.format_message()} (try '{command} --help')", EXIT_USAGE)
    except click.ClickException as exc:
        _fail(exc.format_message(), EXIT_FAILED)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except (MyceliaError, OSError, BaseExceptionGroup) as exc:
        _end(exc)


def _end(exc: BaseException) -> None:
    """Exit as ``exc`` asks for; what nothing expected keeps its traceback. Call while handling it."""
    from node.settings import UsageError

    cause = first_error(exc)
    match cause:
        case MyceliaError():
            _fail(str(cause), EXIT_USAGE if isinstance(cause, UsageError) else EXIT_FAILED)
        case KeyboardInterrupt():
            sys.exit(EXIT_INTERRUPTED)
        case SystemExit():  # (rich, when its reader went away)
            sys.exit(cause.code)
        case BrokenPipeError():
            _discard_output()
            sys.exit(EXIT_FAILED)
        case OSError(errno=errno.ENOSPC | errno.EIO):
            _discard_output()
            _fail(f"cannot write: {cause.strerror}", EXIT_FAILED)
        case _:
            raise exc
