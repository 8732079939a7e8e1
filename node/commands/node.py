"""``mycelia node``: run a node, with all its options."""

from pathlib import Path

import click

from mycelia.node.commands.guest import guest_options
from mycelia.node.commands.options import bootstrap_option, data_dir_option, swarm_key_option, swarm_option


@click.command(
    epilog="""\b
Examples:
  mycelia node
  mycelia node --model qwen3-4b                             a model of the catalogue, fetched if it is not here
  mycelia node --model hf:Qwen/Qwen3-8B-GGUF:Q4_K_M         any GGUF model of Hugging Face
  mycelia node --model ./model.gguf --listen /ip4/0.0.0.0/tcp/7117
  mycelia node --model smollm2 --model ./large.gguf,load=demand   the second when it is asked for
  mycelia node --auto                                       the model that the swarm lacks most and that fits here
  mycelia node --bootstrap /dnsaddr/bootstrap.example.org   join through the nodes that a name lists
  mycelia node --announce /ip4/203.0.113.7/tcp/7117         behind a router that forwards this port
  mycelia node --swarm home                                 in the private swarm that you made or joined
  mycelia node --swarm home --public                        in the open network as well
  mycelia node --model ./model.gguf --gpu-layers 20         20 layers on the GPU, the rest on the processor
  mycelia node --polite --hours 22:00-08:00 --memory 4      take little of this machine
  mycelia node --data-dir /tmp/second --listen /ip4/127.0.0.1/tcp/0 --api-port 0 \\
      --bootstrap /ip4/127.0.0.1/tcp/7117/p2p/12D3KooW..."""
)
@click.option(
    "--listen",
    multiple=True,
    metavar="MULTIADDR",
    help="Address on which peers are accepted. Repeatable.  [default: port 7117]",
)
@click.option(
    "--announce",
    multiple=True,
    metavar="MULTIADDR",
    help="Address to announce to peers instead of the listen addresses, as behind a forwarded port. Repeatable.",
)
@bootstrap_option
@swarm_option
@swarm_key_option
@click.option(
    "--public",
    is_flag=True,
    help="Be in the open network, too, beside --swarm or --swarm-key: with the same model in memory, and with an"
    " identity, ports (--listen plus 2) and cached prefixes of its own. Prompts of members come first. Your own prompts"
    " enter the private swarm, except those of 'mycelia ask --public'.",
)
@data_dir_option
@click.option(
    "--model",
    "models",
    multiple=True,
    default=("smollm2",),
    show_default="smollm2",
    metavar="NAME|PATH[,load=demand]",
    help="Model to serve: a GGUF file, smollm2, or a model that is fetched if it is not here: a name of 'mycelia model"
    " catalogue', hf:OWNER/REPO:QUANT or a URL; 'fake' needs no model and answers with letters, for tests. Repeatable:"
    " prompts that name no model get the first one. With ,load=demand it is loaded when it is asked for, and unloaded"
    " when nobody asks. Models that do not fit beside each other take turns.",
)
@click.option(
    "--auto",
    is_flag=True,
    help="Choose a model of 'mycelia model catalogue' that fits this machine and that the swarm lacks most, fetch and"
    " serve it, beside those of --model. The choice is made again at most once an hour; 'mycelia status' says what was"
    " chosen and why. Without --model, smollm2 answers until then, and later when it is asked for.",
)
@click.option(
    "--lora",
    multiple=True,
    metavar="NAME=FILE",
    help="LoRA adapter (GGUF) of the first model: both together are served as the model NAME, with prefixes of their"
    " own. On a processor the weights are in memory once. Repeatable.",
)
@click.option(
    "--memory",
    "memory_gib",
    type=click.FloatRange(0.1, 2**20),
    metavar="GIB",
    help="Memory for the model, or for several together: weights, KV cells and --ram-tier."
    "  [default: what is free; for several models 4/5 of it]",
)
@click.option(
    "--api-port", type=click.IntRange(0, 65_535), help="Port of the HTTP API; 0 takes any free one.  [default: 7118]"
)
@click.option(
    "--api-host",
    metavar="ADDRESS",
    help="Address of the HTTP API; all except loopback need an API key.  [default: 127.0.0.1]",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="File with API keys, one on each line. When there is a key, here or in MYCELIA_API_KEY, every HTTP request"
    " needs one.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="NAME,SETTINGS",
    help="API key with a name and limits, such as alice,file=alice.key,requests_per_minute=60. Settings: file or sha256"
    " (of the key), requests_per_minute, tokens_per_day, concurrent. 'mycelia key add NAME' writes one to the"
    " configuration. Repeatable.",
)
@click.option(
    "--cors",
    multiple=True,
    metavar="ORIGIN",
    help="Origin of web pages whose scripts may use the HTTP API. Repeatable.",
)
@click.option(
    "--allow-host",
    multiple=True,
    metavar="NAME",
    help="Name of this machine by which its own programs call the HTTP API, besides 127.0.0.1 and localhost, such as"
    " host.docker.internal in a container, or the name of a reverse proxy. With API keys all names are accepted."
    " Repeatable.",
)
@click.option(
    "--tls-cert",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Certificate of the HTTP API, in PEM form with its chain: the API then speaks HTTPS only.",
)
@click.option(
    "--tls-key",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Private key of --tls-cert.  [default: in the file of the certificate]",
)
@click.option(
    "--alias",
    multiple=True,
    metavar="NAME=MODEL",
    help="Other name of a model, for clients of the HTTP API that ask for a model by a name of their own, such as"
    " gpt-4o-mini=smollm2. Repeatable.",
)
@click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads of the engine.  [default: all usable processor cores]"
)
@click.option("--slots", type=click.IntRange(1, 127), help="Number of requests that run at once.  [default: 8]")
@click.option(
    "--cells",
    type=click.IntRange(256, 4_194_304),
    help="Number of tokens that the KV cache holds (KV cells)."
    "  [default: 8192; on a GPU or with little memory, what fits]",
)
@click.option(
    "--gpu-layers",
    type=click.IntRange(0, 10_000),
    help="Number of model layers on GPUs; 0 uses no GPU.  [default: all, if llama.cpp is built for GPUs and finds one]",
)
@click.option(
    "--tensor-split",
    default="",
    metavar="A,B,...",
    help="Share of the model on each GPU, such as 3,1.  [default: by free memory]",
)
@click.option("--main-gpu", type=click.IntRange(0, 15), help="Number of the only GPU to use.  [default: all GPUs]")
@click.option(
    "--ram-tier",
    type=click.IntRange(0),
    metavar="MIB",
    help="Host memory for prefixes evicted from the KV cache.  [default: 1/4 of the free memory, at most 4096]",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for prefixes evicted from memory, so that a restarted node finds them again. Its files contain"
    " prompts.  [default: nothing is kept on disk]",
)
@click.option(
    "--disk-tier", type=click.FloatRange(0), metavar="GIB", help="Most disk space of --cache-dir.  [default: 8]"
)
@click.option(
    "--exact",
    is_flag=True,
    help="Compute logits that are the same bits with and without a cached prefix, for tests. CPU only. Prefill takes"
    " 1.15 times as long; decoding takes 4 times as long for one answer, and no longer for 8 at once. Prefixes are"
    " shared only with other exact nodes.",
)
@guest_options
@click.option(
    "--policy",
    default="mycelia",
    show_default=True,
    metavar="NAME",
    help="Routing policy for prompts that enter here; others than the default are for comparisons, see"
    " 'mycelia simulate --help'.",
)
@click.option(
    "--drain",
    "drain_s",
    type=click.FloatRange(0, 86_400),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="Time to finish running answers after Ctrl-C, SIGTERM or 'mycelia leave'. Answers that take longer continue at"
    " other nodes. A second Ctrl-C ends the node at once.",
)
@click.option(
    "--relay/--no-relay",
    default=True,
    show_default=True,
    help="Pass on connections for nodes that peers cannot dial (at most 32 nodes and 2 MiB/s). If peers cannot dial"
    " this node, as behind a router, let them reach it through such a relay.",
)
@click.option(
    "--mdns/--no-mdns",
    default=True,
    show_default=True,
    help="Find other nodes in this machine's private networks, and be found there (multicast DNS, UDP port 5353). Never"
    " in public networks. In a private swarm only its members can read the answers.",
)
@click.option(
    "--no-port-mapping",
    is_flag=True,
    help="Do not ask the router to open the peer port (UPnP, NAT-PMP, PCP). Without this option the node asks if"
    " peers cannot connect; the router closes the port when the node ends, or within an hour if it is killed.",
)
@click.option(
    "--no-journal",
    is_flag=True,
    help="Keep no journal of requests on disk. The journal has each request's time, client and serving node, but no"
    " prompts and no answers.",
)
@click.option("--exit-with-parent", is_flag=True, help="Leave when standard input ends, for programs that start nodes.")
@click.option("--debug", is_flag=True, help="Log everything, and check the engine's invariants when it is idle.")
@click.pass_context
def node(context: click.Context, /, **_: object) -> None:
    """Run a node: join the swarm and serve a model until Ctrl-C.

    SIGHUP or 'mycelia config reload' makes a running node read its configuration again.
    """
    import logging
    from functools import partial

    import trio

    from mycelia.node import log
    from mycelia.node.commands.node_settings import settings_again, settings_of

    log.configure(logging.DEBUG if context.params["debug"] else logging.INFO)
    settings = settings_of(context)
    from mycelia.node.run import run_node

    trio.run(run_node, settings, partial(settings_again, context, settings))
