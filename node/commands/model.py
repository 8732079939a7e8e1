"""``mycelia model``: the models on this machine. What the swarm serves: ``mycelia models``."""

import os
import threading
from typing import TYPE_CHECKING

import click

from mycelia.node.commands.options import json_option
from mycelia.node.commands.running import print_view

if TYPE_CHECKING:
    from mycelia.node.models.transfer import Watch

NAMES = """A model's NAME is one of

\b
  qwen3-4b                     a name of 'mycelia model catalogue'
  hf:OWNER/REPO:Q4_K_M         a quantisation in a Hugging Face repository
  hf:OWNER/REPO:FILE.gguf      a file in it
  hf.co/OWNER/REPO             as Ollama spells it; without :QUANT it is Q4_K_M, if there is one
  https://host/FILE.gguf       a URL; with #sha256=... that checksum is checked
  ./FILE.gguf                  a file on this machine"""


@click.group(
    epilog="""\b
Examples:
  mycelia model catalogue                               list models that can be fetched by a short name
  mycelia model pull qwen3-4b                           fetch one of them
  mycelia model pull hf:Qwen/Qwen3-8B-GGUF:Q4_K_M       fetch any GGUF model of Hugging Face
  mycelia node --model qwen3-4b                         serve it; fetches it first if it is not here
  mycelia model ls                                      list the models on this machine
  mycelia model rm qwen3-4b                             remove it"""
)
def model() -> None:
    """Fetch, list, inspect and remove the models on this machine.

    What the swarm serves: 'mycelia models'.
    """


@model.command(
    epilog="""\b
Examples:
  mycelia model pull qwen3-4b
  mycelia model pull hf:ggml-org/SmolLM3-3B-GGUF
  mycelia model pull hf.co/Qwen/Qwen3-8B-GGUF:Q8_0
  mycelia model pull "https://example.org/model.gguf#sha256=8334b850..."
  mycelia node --model "$(mycelia model pull qwen3-4b)"         it prints the file's path
  HF_ENDPOINT=https://hub.example.org mycelia model pull ...    from a mirror""",
    help=f"""Fetch the model NAME, or its new version, and print the path of its file.

Before it begins it says how large the model is and whether the disk has room. A download that was cut off goes on where
it ended, also after a restart. Files are checked by their checksums, and are whole or absent.

Models of repositories go to the cache of huggingface_hub, which other programs share: what they fetched is found, and
HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE count.

{NAMES}""",
)
@click.argument("name")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input ends, for programs that fetch models.")
def pull(name: str, exit_with_parent: bool) -> None:
    from mycelia.node.models.pull import pull as fetch
    from mycelia.node.terminal.models import watching

    if exit_with_parent:
        threading.Thread(target=_end_with_input, daemon=True).start()
    with watching() as watch:
        try:
            path = fetch(name, watch, lambda name, size: _note_memory(watch, name, size))
        except KeyboardInterrupt:
            watch.say("stopped; the same command goes on from here")
            raise
    click.echo(path)


@model.command(
    "ls",
    epilog="""\b
Examples:
  mycelia model ls
  mycelia model ls --json | jq -r '.[] | select(.is_whole) | .name'""",
)
@json_option
def ls(as_json: bool) -> None:
    """List the models on this machine.

    Also those that other programs put into the cache of huggingface_hub, and downloads that were cut off. The column
    'model' is the NAME for other commands; 'served as' is the name in a swarm.
    """
    from mycelia.node.models.held import list_models
    from mycelia.node.terminal.models import show_held

    print_view(list_models(), as_json, show_held)


@model.command(
    epilog="""\b
Examples:
  mycelia model show smollm2
  mycelia model show qwen3-4b --tokens 32768
  mycelia model show ./model.gguf --json | jq .memory_bytes"""
)
@click.argument("name")
@click.option(
    "--tokens",
    type=click.IntRange(1, 100_000_000),
    metavar="N",
    help="Tokens of context to say the memory for.  [default: those that it was trained on, at most 8192]",
)
@json_option
def show(name: str, tokens: int | None, as_json: bool) -> None:
    """Show what the model NAME on this machine is.

    Architecture, quantisation, context, template, whether it thinks and calls functions, how its prefixes are shared,
    and the memory that it needs. No weights are loaded.
    """
    from mycelia.node.models.card import card_of
    from mycelia.node.models.find import find_model, served_name
    from mycelia.node.terminal.models import show_card

    path = find_model(name)
    print_view(card_of(served_name(name, path), path, tokens), as_json, show_card)


@model.command(
    epilog="""\b
Examples:
  mycelia model rm qwen3-4b
  mycelia model rm hf:Qwen/Qwen3-8B-GGUF:Q8_0"""
)
@click.argument("name")
def rm(name: str) -> None:
    """Remove the model NAME from this machine, also a download of it that was cut off.

    It is removed from the cache of huggingface_hub, which other programs use, too. Other quantisations from the same
    repository stay, and are named.
    """
    from mycelia.node.models.held import left_of, remove_model
    from mycelia.node.models.sizes import size_text

    click.echo(f"removed {name}: {size_text(remove_model(name))} are free again")
    if left := [f"{one.name} ({size_text(one.bytes)})" for one in left_of(name)]:
        click.echo(f"of its repository this stays: {', '.join(left)}; 'mycelia model rm' removes it by that name")


@model.command(
    epilog="""\b
Examples:
  mycelia model catalogue
  mycelia model catalogue --json | jq -r 'to_entries[] | select(.value.size_mb < 3000) | .key'"""
)
@json_option
def catalogue(as_json: bool) -> None:
    """List models with open licences that can be fetched by a short name.

    A file catalogue.toml in the configuration folder ('mycelia config path') adds your own.
    """
    from mycelia.node.models.catalogue import load_catalogue
    from mycelia.node.terminal.models import show_catalogue

    print_view(load_catalogue(), as_json, show_catalogue)


def _end_with_input() -> None:
    """Ends the process when standard input ends: what was fetched stays, and the next one goes on from there."""
    while os.read(0, 4_096):
        pass
    os._exit(1)


def _note_memory(watch: "Watch", name: str, size: int) -> None:
    """Tell if the model is too large for this machine: it may be meant for another one."""
    from mycelia.node.models.pull import check_fits
    from mycelia.proto.wire.errors import LocalError

    try:
        check_fits(name, size)
    except LocalError as exc:
        watch.say(f"note: {exc}")
