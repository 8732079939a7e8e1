"""``mycelia node``: run a node. Everything that can be set of it."""

import os
from pathlib import Path

import click

from mycelia.node.commands.options import bootstrap_option, data_dir_option, swarm_key_option


@click.command(
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
@swarm_key_option
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
    swarm_key: Path | None,
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

    from mycelia.node import log
    from mycelia.node.commands.checks import (
        check_announce,
        check_cors,
        check_listen,
        check_policy,
        read_api_keys,
        read_bootstrap,
        read_swarm_key,
        read_tensor_split,
    )
    from mycelia.node.settings import DEFAULT_API_HOST, DEFAULT_API_PORT, DEFAULT_LISTEN, NodeSettings
    from mycelia.node.storage.data_dir import default_data_dir

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
        swarm_key=read_swarm_key(swarm_key),
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
    from mycelia.node.run import run_node

    trio.run(run_node, settings)
