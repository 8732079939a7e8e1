"""What a user may set, parsed once. Nothing below the command line reads files, flags or the environment."""

from dataclasses import dataclass
from pathlib import Path

from mycelia.node.plugins import OWN_POLICY
from mycelia.proto.wire.errors import LocalError

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/7117"
DEFAULT_API_HOST = "127.0.0.1"
DEFAULT_API_PORT = 7118
DEFAULT_DRAIN_S = 30.0


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
    policy: str = OWN_POLICY
    """Who answers prompts that enter here: a name in ``sim/policies.py``, for comparisons."""
    debug: bool = False
    """Log everything, and check the engine's invariants whenever it becomes idle."""
