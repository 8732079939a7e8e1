"""Checks of a node's command line, made before anything starts."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mycelia.node.engine.sizing import Offload
from mycelia.node.plugins import OWN_POLICY, policies
from mycelia.node.settings import UsageError
from mycelia.proto.wire.errors import LocalError

if TYPE_CHECKING:
    from mycelia.node.serve.api_keys import ApiKey
    from mycelia.node.settings import WantedModel

BOOTSTRAP_FILE = "bootstrap.txt"
MAX_BOOTSTRAP_PEERS = 256
MAX_LIST_BYTES = 262_144
"""Largest size of a file with one entry on each line."""


def read_tensor_split(text: str) -> tuple[float, ...]:
    """The numbers in a text such as "3,1". Raises UsageError when they cannot be shares of GPUs."""
    try:
        split = tuple(float(share) for share in text.split(",")) if text else ()
        Offload(split=split)
    except (ValueError, LocalError) as exc:
        problem = f"{text!r} is not a list of numbers such as 3,1" if isinstance(exc, ValueError) else str(exc)
        raise UsageError(f"--tensor-split: {problem}") from exc
    return split


def read_bootstrap(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The multiaddrs in ``sources``. Each source is a multiaddr, or a file with one on each line and # comments.

    Without sources they come from bootstrap.txt in the user's configuration folder (not with --isolated) and from the
    one installed with the program: never from the working directory, which may be anybody's. Raises UsageError for a
    file that cannot be read or a line that is not a full multiaddr.
    """
    from mycelia.node.network.addresses import parse_bootstrap  # (imports multiaddr, which `--help` does not need)

    addresses: dict[str, None] = {}
    for source in sources or map(str, _default_bootstrap_files()):
        if source.startswith(("/ip4/", "/ip6/", "/dns")):
            addresses[_checked(source, "--bootstrap", parse_bootstrap)] = None
            continue
        for number, line in enumerate(_lines(source, "--bootstrap"), start=1):
            text = line.partition("#")[0].strip()
            if text:
                addresses[_checked(text, f"{source}, line {number}", parse_bootstrap)] = None
    return tuple(addresses)[:MAX_BOOTSTRAP_PEERS]


def check_listen(listen: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for a text that is not a multiaddr. The node's start shows whether it can listen there."""
    from mycelia.node.network.addresses import parse  # (imports multiaddr, which `--help` does not need)

    return tuple(_checked(text, "--listen", parse) for text in listen)


def check_announce(announce: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for an address that peers cannot dial."""
    from mycelia.node.network.addresses import parse_announce  # (imports multiaddr, which `--help` does not need)

    return tuple(_checked(text, "--announce", parse_announce) for text in announce)


def read_api_keys(host: str, path: Path | None, key: str, texts: tuple[str, ...] = ()) -> "tuple[ApiKey, ...]":
    """The keys of a file (one on each line, with # comments), ``key``, and the keys with names (``key_texts.py``).

    Raises UsageError for a key that is easy to guess, and when other machines could use the API without a key.
    """
    from mycelia.node.commands.key_texts import check_key, read_keys
    from mycelia.node.serve.api_keys import MAX_KEYS, unnamed
    from mycelia.node.serve.http.server import is_loopback

    lines = [line.partition("#")[0].strip() for line in _lines(str(path), "--api-key-file")] if path else []
    for text in (given := [text for text in (*lines, key) if text]):
        check_key(text, f"--api-key-file {path}" if path else "MYCELIA_API_KEY")
    if path and not given:
        raise UsageError(f"--api-key-file {path} has no key in it; 'openssl rand -hex 24' makes one")
    keys = {one.digest: one for one in (*map(unnamed, given), *read_keys(texts))}  # (the name of a named one stays)
    if not keys and not is_loopback(host):
        raise UsageError(
            f"--api-host {host} lets other machines use this node; make a key with 'mycelia key add NAME', or give"
            " --api-key-file FILE with one key on each line"
        )
    if len(keys) > MAX_KEYS:
        raise UsageError(f"{len(keys)} API keys are more than {MAX_KEYS}")
    return tuple(keys.values())


def check_cors(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for a text that no browser sends as the origin of a page, so that it would never match."""
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors: {origin!r} is not an origin of web pages such as https://chat.example")
    return origins


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def check_hosts(hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The names in lower case. Raises UsageError for a text that is no host's name."""
    for host in hosts:
        if host == "*":
            raise UsageError("--allow-host: name each host; any name would let web pages use this node")
        if not _HOST.fullmatch(host):
            raise UsageError(f"--allow-host: {host!r} is not a name such as host.docker.internal, without a port")
    return tuple(host.lower().strip("[]") for host in hosts)


_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,252})|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]+\]?")


def check_tls(cert: Path | None, key: Path | None) -> Path | None:
    """``cert``. Raises UsageError when they are no certificate and its key."""
    if cert is None:
        if key is not None:
            raise UsageError("--tls-key needs --tls-cert, the certificate of this key")
        return None
    from mycelia.node.serve.http.tls import load_tls

    try:
        load_tls(cert, key)
    except LocalError as exc:
        raise UsageError(f"--tls-cert: {exc}") from exc
    return cert


MAX_ALIASES, MAX_MODEL_CHARS = 256, 128


def read_aliases(texts: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """(Name, model) for each text such as gpt-4o-mini=smollm2. Raises UsageError."""
    aliases: dict[str, str] = {}
    for text in texts:
        name, _, model = (part.strip() for part in text.partition("="))
        if not name or not model or max(len(name), len(model)) > MAX_MODEL_CHARS:
            raise UsageError(f"--alias: {text!r} is not a name and a model such as gpt-4o-mini=smollm2")
        if aliases.setdefault(name, model) != model:
            raise UsageError(f"--alias: {name} means {aliases[name]} and {model}; give one of them")
    for name, model in aliases.items():
        if model in aliases:
            raise UsageError(f"--alias: {name} means {model}, which is an alias itself; give the model's own name")
    if len(aliases) > MAX_ALIASES:
        raise UsageError(f"--alias: {len(aliases)} aliases are more than {MAX_ALIASES}")
    return tuple(aliases.items())


def check_policy(name: str) -> str:
    """Raises UsageError for an unknown policy, and for the oracle, which only a simulator can follow."""
    if name != OWN_POLICY:
        known = [known for known in policies().NAMES if known not in policies().ORACLES]
        if name not in known:
            raise UsageError(f"--policy: there is no policy {name}; choose one of {', '.join(known)}")
    return name


def _checked(text: str, where: str, parse: Callable[[str], object]) -> str:
    try:
        parse(text)
    except LocalError as exc:
        raise UsageError(f"{where}: {exc}") from exc
    return text


def _lines(source: str, option: str) -> list[str]:
    try:
        with Path(source).open("rb") as file:
            data = file.read(MAX_LIST_BYTES + 1)
        if len(data) > MAX_LIST_BYTES:
            raise UsageError(f"{option} {source} has more than {MAX_LIST_BYTES} bytes; shorten it")
        return data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        is_utf16 = isinstance(exc, UnicodeDecodeError) and data.startswith((b"\xff\xfe", b"\xfe\xff"))
        reason = exc.strerror if isinstance(exc, OSError) else f"not a text file{' in UTF-8' if is_utf16 else ''}"
        hint = "; give a multiaddr or a file of multiaddrs" if option == "--bootstrap" else ""
        raise UsageError(f"{option} {source}: {reason}{hint}") from exc


def _default_bootstrap_files() -> list[Path]:
    from mycelia.node.commands.config_file import default_file

    context = click.get_current_context(silent=True)
    of_user, of_program = default_file().parent / BOOTSTRAP_FILE, Path(__file__).parents[1] / BOOTSTRAP_FILE
    is_isolated = context is not None and context.find_root().params.get("isolated")
    return [path for path in ([of_program] if is_isolated else [of_user, of_program]) if path.is_file()]


SWARM_KEY_LINES = ["/key/swarm/psk/1.0.0/", "/base16/"]
"""The first lines of a private swarm's key file, in libp2p's format."""
SWARM_KEY_BYTES = 32


def read_swarm_key(path: Path | None) -> bytes:
    """The key in a file of libp2p's format: two lines that name the format, then 64 hexadecimal digits.

    Empty without a file. Raises UsageError, with the command that makes a key file.
    """
    if path is None:
        return b""
    from mycelia.node.storage.private_swarms import check_only_owner_reads

    if path.is_file():
        try:
            check_only_owner_reads(path)
        except LocalError as exc:
            raise UsageError(f"--swarm-key: {exc}") from exc
    words = [word for line in _lines(str(path), "--swarm-key") for word in line.split()]
    try:
        key = bytes.fromhex(words[2]) if words[:2] == SWARM_KEY_LINES and len(words) == 3 else b""
    except ValueError:
        key = b""
    if len(key) != SWARM_KEY_BYTES:
        form = "\\n".join(SWARM_KEY_LINES)
        raise UsageError(
            f"--swarm-key {path} has no key in it; make one with:"
            f" umask 077; (printf '{form}\\n'; openssl rand -hex {SWARM_KEY_BYTES}) > swarm.key"
        )
    return key


MAX_MODELS = 16
"""As many as peers can be told of."""


def read_models(texts: tuple[str, ...]) -> "tuple[WantedModel, ...]":
    """The models of the option --model. Raises UsageError."""
    from mycelia.node.settings import WantedModel

    if len(texts) > MAX_MODELS:
        raise UsageError(f"--model: {len(texts)} models are more than {MAX_MODELS}")
    return tuple(map(WantedModel.of, texts))


def models_in_swarm(
    data_dir: Path, swarm: str, models: "Sequence[WantedModel]", is_default: bool
) -> "list[WantedModel]":
    """The models to serve in a private swarm, see ``model_in_swarm``. is_default: the user named none."""
    if is_default:
        return [replace(one, name=model_in_swarm(data_dir, swarm, "") or one.name) for one in models]
    for one in models:
        model_in_swarm(data_dir, swarm, one.name)
    return list(models)


def read_loras(texts: tuple[str, ...], model: "WantedModel") -> "list[WantedModel]":
    """``model`` with each adapter. Raises UsageError for a text that is no name and file of one."""
    from mycelia.node.engine.gguf import check_adapter

    found = []
    for text in texts:
        name, _, path = text.partition("=")
        if not name or not path or len(name) > MAX_MODEL_CHARS:
            raise UsageError(f"--lora: {text!r} is not a name and a file such as poet=./poet.gguf")
        try:
            check_adapter(Path(path).expanduser())
        except LocalError as exc:
            raise UsageError(f"--lora: {exc}") from exc
        found.append(replace(model, called=name, lora_path=Path(path).expanduser()))
    return found


def model_in_swarm(data_dir: Path, swarm: str, model: str) -> str:
    """The model to serve in a private swarm: ``model``, or if that is empty the first one of the swarm that needs no
    file; empty: any. Raises UsageError for a model that the swarm does not serve."""
    if not swarm:
        return model
    from mycelia.node.engine.models import FAKE_MODEL, PACKAGED_MODELS, model_name
    from mycelia.node.storage.private_swarms import read_swarm

    served = read_swarm(data_dir, swarm).roster.models
    if not served or (model and model_name(model) in served):
        return model
    if model:
        raise UsageError(f"--model: the private swarm {swarm} serves only {', '.join(served)}")
    known = next((name for name in served if name in PACKAGED_MODELS or name == FAKE_MODEL), None)
    if known is None:
        raise UsageError(
            f"the private swarm {swarm} serves {', '.join(served)}: give the model's file with --model PATH"
        )
    return known
