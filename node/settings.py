"""A node's settings, parsed once by the command line. No other module reads options or the environment."""

from dataclasses import dataclass
from pathlib import Path

from mycelia.node.guest.limits import GuestLimits, Hours
from mycelia.node.plugins import OWN_POLICY
from mycelia.node.serve.api_keys import ApiKey
from mycelia.proto.wire.errors import LocalError

DEFAULT_PORT = 7117
DEFAULT_API_HOST = "127.0.0.1"
DEFAULT_API_PORT = 7118
DEFAULT_DRAIN_S = 30.0
UNNAMED = "(unnamed)"
"""Stands for a private swarm that has only a key."""


class UsageError(LocalError):
    """A mistake on the command line: exit code 2."""


@dataclass(frozen=True)
class WantedModel:
    """A model to serve."""

    name: str
    """Registered name or path of a GGUF file."""
    on_demand: bool = False
    """Load it when it is asked for, and not at the start."""
    called: str = ""
    """The name for users; empty: follows from ``name``."""
    lora_path: Path | None = None
    """GGUF file of a LoRA adapter that is applied to the model; None: none."""

    @classmethod
    def of(cls, text: str) -> "WantedModel":
        """The value of the option --model: a name or a path, and when it is loaded. Raises UsageError."""
        name, separator, when = text.rpartition(LOAD)
        if not separator:
            return cls(text)
        if when not in WHEN or not name:
            raise UsageError(f"--model: {text!r} has to end in {' or '.join(LOAD + one for one in WHEN)}")
        return cls(name, when == ON_DEMAND)


LOAD = ",load="
AT_START, ON_DEMAND = "start", "demand"
WHEN = (AT_START, ON_DEMAND)


@dataclass(frozen=True)
class NodeSettings:
    data_dir: Path
    """Directory of identity, lock and run file; one running node per directory."""
    model: str
    """Registered name or path of a GGUF file: of the first model, which prompts get that name none."""
    listen: tuple[str, ...]
    """Multiaddrs to accept peers on."""
    bootstrap: tuple[str, ...]
    """Full multiaddrs of nodes to join through."""
    announce: tuple[str, ...]
    """Multiaddrs to announce instead of the listen addresses; empty: announce the listen addresses."""
    swarm_key: bytes
    """Key of a private swarm, whose nodes accept only peers with this key; empty: the open network."""
    swarm: str
    """Name of a private swarm with a list of members, instead of ``swarm_key``; empty: none."""
    api_port: int
    """Port of the HTTP API; 0 takes any free one."""
    api_host: str = DEFAULT_API_HOST
    """Address of the HTTP API; all except loopback need keys."""
    api_keys: tuple[ApiKey, ...] = ()
    """Keys of the HTTP API, of which every HTTP request needs one; empty: no key is needed."""
    cors_origins: tuple[str, ...] = ()
    """Origins of web pages whose scripts may use the HTTP API."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of this machine besides those of the loopback, by which its own programs may call the HTTP API."""
    tls_cert: Path | None = None
    """PEM file with the certificate of the HTTP API; None: it is not encrypted."""
    tls_key: Path | None = None
    """PEM file with the certificate's private key; None: it is in ``tls_cert``."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Other names that clients of the HTTP API may use, each with the model that it means."""
    on_demand: bool = False
    """Load the first model when it is asked for, and not at the start."""
    others: tuple[WantedModel, ...] = ()
    """Further models to serve."""
    auto: bool = False
    """Choose one more model of the catalogue by what the swarm lacks. The first one is loaded only when asked for."""
    memory_gib: float | None = None
    """Memory for the models together, with their KV cells and --ram-tier; None: what is free, or most of it."""
    threads: int | None = None
    """Engine threads; None: every usable core."""
    cells: int | None = None
    """Number of KV cells; None: the usual number, or fewer if memory is short."""
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
    """Directory in which such prefixes are also kept; None: nothing is kept on disk."""
    disk_tier_gib: float | None = None
    """Budget of ``cache_dir``; None: the engine's default."""
    exact: bool = False
    """Exact mode: slower, with logits that do not depend on cached prefixes."""
    public: bool = False
    """Serve the open network beside a private one, with prefixes, an identity and ports of its own."""
    relay: bool = True
    """Pass on connections for nodes that peers cannot dial, and be reached through such a relay if necessary."""
    mdns: bool = True
    """Find nodes in the private networks of this machine by multicast DNS, and be found there."""
    port_mapping: bool = True
    """Ask the router to forward the peer port where peers cannot connect."""
    exit_with_parent: bool = False
    """Leave when standard input ends, so that no node outlives the program that started it."""
    drain_s: float = DEFAULT_DRAIN_S
    """Time in which a leaving node finishes its answers."""
    journal: bool = True
    """Keep a journal of the requests that entered here, to show them after a restart."""
    policy: str = OWN_POLICY
    """Routing policy for prompts that enter here: a name in ``sim/policies.py``; others are for comparisons."""
    share: float = 1.0
    """Largest part of the processor's or GPU's time that prompts of others take while they run."""
    gpu_memory_bytes: int | None = None
    """Memory of each GPU; None: what is free."""
    bytes_per_s: float | None = None
    """Traffic with peers outside the local network, each way; None: no limit."""
    month_bytes: int | None = None
    """The same traffic in a calendar month, both ways together, after which no prompts of others are taken."""
    hours: tuple[Hours, ...] = ()
    """When prompts of others are taken, by the local clock; empty: always."""
    is_polite: bool = False
    """Take none while other programs use the machine, on battery, or while a program fills the screen."""
    keeps_log: bool = False
    """Keep a log in the data directory, and reports of crashes."""
    debug: bool = False
    """Log everything, and check the engine's invariants whenever the engine becomes idle."""

    @property
    def guest(self) -> GuestLimits:
        return GuestLimits(self.month_bytes, self.hours, self.is_polite)
