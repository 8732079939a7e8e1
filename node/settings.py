"""What a user may set, parsed once. Nothing below the command line reads files, flags or the environment."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from node.engine.sizing import Offload
from proto.errors import LocalError
from sim.policies import NAMES, ORACLE, OWN

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/7117"
DEFAULT_API_HOST = "127.0.0.1"
DEFAULT_API_PORT = 7118
DEFAULT_DRAIN_S = 30.0
BOOTSTRAP_FILE = "bootstrap.txt"
MAX_BOOTSTRAP_PEERS = 256
SWARM_KEY_LINES = ["/key/swarm/psk/1.0.0/", "/base16/"]
"""How a file with the key of a private swarm begins, as libp2p has it."""
SWARM_KEY_BYTES = 32
MAX_LIST_BYTES = 262_144
"""Of a file with one entry a line."""


class UsageError(LocalError):
    """The command line asks for something that cannot be meant: exit code 2."""


@dataclass(frozen=True)
class NodeSettings:
    """Everything ``mycelia node`` was told."""

    data_dir: Path
    """Identity, lock and run file; one running node a directory."""
    model: str
    """Registered name or path of a GGUF file."""
    listen: tuple[str, ...]
    """Multiaddrs to accept peers on."""
    bootstrap: tuple[str, ...]
    """Full multiaddrs of nodes to join through."""
    announce: tuple[str, ...]
    """Multiaddrs that peers are told instead of those listened on; empty: tell those."""
    swarm_key: bytes
    """Of a private swarm: nobody without it is understood; empty: the open network."""
    api_port: int
    """Port of the HTTP API; 0 takes any free one."""
    api_host: str = DEFAULT_API_HOST
    """Where it listens; anything but loopback needs keys."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens the API; none: no key is needed."""
    cors_origins: tuple[str, ...] = ()
    """Of web pages whose scripts may use the API."""
    threads: int | None = None
    """Engine threads; None: every usable core."""
    cells: int | None = None
    """KV cells the engine holds; None: as many as are usual and fit."""
    slots: int | None = None
    """Requests that run at once; None: the engine's default."""
    gpu_layers: int | None = None
    """Layers on GPUs; None: all where there is a GPU."""
    tensor_split: tuple[float, ...] = ()
    """Shares of the GPUs; empty: by their free memory."""
    main_gpu: int | None = None
    """The one GPU to use; None: all of them."""
    ram_tier_mib: int | None = None
    """Host memory for prefixes that left the KV cache; None: the engine's default."""
    cache_dir: Path | None = None
    """Where such prefixes are also kept on disk; None: nowhere."""
    disk_tier_gib: float | None = None
    """Budget of ``cache_dir``; None: the engine's default."""
    exact: bool = False
    """Logits that do not depend on reuse, slower."""
    relay: bool = True
    """Pass connections on for nodes that nobody can dial, and be reached through such a peer if this is one."""
    exit_with_parent: bool = False
    """Leave when standard input ends, so that no node outlives the program that started it."""
    drain_s: float = DEFAULT_DRAIN_S
    """How long a node that was told to leave still finishes what it is answering."""
    journal: bool = True
    """Write down which requests entered, to show them after a restart."""
    policy: str = OWN
    """Who answers prompts that enter here: a name in ``sim.policies``, for comparisons."""
    debug: bool = False
    """Log everything, and check the engine's invariants whenever it becomes idle."""


def default_data_dir() -> Path:
    """Where this user's node lives unless told otherwise."""
    return Path(platformdirs.user_data_dir("mycelia", appauthor=False))


def read_tensor_split(text: str) -> tuple[float, ...]:
    """ "3,1" as numbers. Raises UsageError for what cannot be shares of GPUs."""
    try:
        split = tuple(float(share) for share in text.split(",")) if text else ()
        Offload(split=split)
    except (ValueError, LocalError) as exc:
        problem = f"{text!r} is no list of numbers such as 3,1" if isinstance(exc, ValueError) else str(exc)
        raise UsageError(f"--tensor-split: {problem}") from exc
    return split


def prepare_data_dir(path: Path) -> Path:
    """Make the directory if needed. Raises LocalError when it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as exc:
        raise LocalError(
            f"cannot make the data directory {path}: {exc.strerror}; choose another with --data-dir"
        ) from exc
    if not os.access(path, os.W_OK | os.X_OK):
        raise LocalError(f"cannot write to the data directory {path}; choose another with --data-dir")
    return path


def read_bootstrap(sources: tuple[str, ...]) -> tuple[str, ...]:
    """The multiaddrs that ``sources`` name: multiaddrs themselves, or files with one a line and # comments.

    Without sources: bootstrap.txt in the working directory, else the one that came with the program, else nobody.
    Raises UsageError for a file that cannot be read or a line that is no full multiaddr.
    """
    from node.network.addresses import parse_peer  # (imports multiaddr, which `--help` does not need)

    if not sources:
        default = _default_bootstrap_file()
        sources = (str(default),) if default else ()
    addresses: dict[str, None] = {}
    for source in sources:
        if source.startswith(("/ip4/", "/ip6/", "/dns")):
            addresses[_checked(source, "--bootstrap", parse_peer)] = None
            continue
        for number, line in enumerate(_lines(source, "--bootstrap"), start=1):
            text = line.partition("#")[0].strip()
            if text:
                addresses[_checked(text, f"{source}, line {number}", parse_peer)] = None
    return tuple(addresses)[:MAX_BOOTSTRAP_PEERS]


def read_swarm_key(path: Path | None) -> bytes:
    """The key in a file of libp2p's form: two lines that name the form, then 64 hexadecimal digits. Empty without a
    file. Raises UsageError that says how to make one."""
    if path is None:
        return b""
    words = [word for line in _lines(str(path), "--swarm-key") for word in line.split()]
    try:
        key = bytes.fromhex(words[2]) if words[:2] == SWARM_KEY_LINES and len(words) == 3 else b""
    except ValueError:
        key = b""
    if len(key) != SWARM_KEY_BYTES:
        form = "\\n".join(SWARM_KEY_LINES)
        raise UsageError(
            f"--swarm-key {path} holds no key; make one with:"
            f" (printf '{form}\\n'; openssl rand -hex {SWARM_KEY_BYTES}) > swarm.key"
        )
    return key


def check_listen(listen: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for what is no multiaddr. Whether it can be listened on shows when the node starts."""
    from node.network.addresses import parse  # (imports multiaddr, which `--help` does not need)

    return tuple(_checked(text, "--listen", parse) for text in listen)


def check_announce(announce: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for what peers could not dial."""
    from node.network.addresses import parse_announce  # (imports multiaddr, which `--help` does not need)

    return tuple(_checked(text, "--announce", parse_announce) for text in announce)


def read_api_keys(host: str, path: Path | None, key: str) -> tuple[str, ...]:
    """The keys of a file, one a line with # comments, and ``key``. Raises UsageError for one that is easily guessed,
    and when others than this machine could use the API without any."""
    from node.serve.keys import MIN_KEY_CHARS
    from node.serve.server import is_loopback

    lines = [line.partition("#")[0].strip() for line in _lines(str(path), "--api-key-file")] if path else []
    keys = tuple(dict.fromkeys(text for text in (*lines, key) if text))
    if any(len(text) < MIN_KEY_CHARS or not text.isascii() or not text.isprintable() for text in keys):
        raise UsageError(
            f"an API key must be {MIN_KEY_CHARS} or more ASCII characters: 'openssl rand -hex 24' makes one"
        )
    if path and not keys:
        raise UsageError(f"--api-key-file {path} holds no key; 'openssl rand -hex 24' makes one")
    if not keys and not is_loopback(host):
        raise UsageError(f"--api-host {host} lets others use this node: give --api-key-file FILE with a key a line")
    return keys


def check_cors(origins: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for what no browser sends as the origin of a page, and so would never let one in."""
    for origin in origins:
        if origin not in ("*", "null") and not _ORIGIN.fullmatch(origin):
            raise UsageError(f"--cors: {origin!r} is no origin of web pages; an example is https://chat.example")
    return origins


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:[a-z0-9_.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?")


def check_policy(name: str) -> str:
    """Raises UsageError for a name that is no policy, and for the one that only a simulator can follow."""
    if name not in NAMES or name == ORACLE:
        raise UsageError(f"--policy: no policy {name}; there are {', '.join(n for n in NAMES if n != ORACLE)}")
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
            raise UsageError(f"{option} {source} is over {MAX_LIST_BYTES} bytes")
        return data.decode().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "not a text file"
        hint = "; give a multiaddr or a file of multiaddrs" if option == "--bootstrap" else ""
        raise UsageError(f"{option} {source}: {reason}{hint}") from exc


def _default_bootstrap_file() -> Path | None:
    here = Path(BOOTSTRAP_FILE)
    beside_source = Path(__file__).resolve().parent.parent / BOOTSTRAP_FILE
    return next((path for path in (here, beside_source) if path.is_file()), None)
