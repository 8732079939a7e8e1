"""What happens to a node's models, and what the node is to do about them: the events and effects of ``Loader``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """A request needs the model, loaded or not. is_own: of a client of this node, not of a peer."""

    model: str
    is_own: bool = True


@dataclass(frozen=True)
class Ended:
    """A request that was asked is over. saved_s: seconds of prefill that reused prefixes saved it."""

    model: str
    saved_s: float = 0.0
    is_own: bool = True


@dataclass(frozen=True)
class Loaded:
    """The model is loaded. num_bytes: memory that its engine takes; 0: unknown."""

    model: str
    took_s: float
    num_bytes: int = 0


@dataclass(frozen=True)
class LoadFailed:
    model: str


@dataclass(frozen=True)
class Unloaded:
    model: str


@dataclass(frozen=True)
class Measured:
    """A loaded model's engine takes this much memory now."""

    model: str
    num_bytes: int


@dataclass(frozen=True)
class Learned:
    """A load that served only to learn of the model is over: it need not wait to become idle."""

    model: str


@dataclass(frozen=True)
class Withdrawn:
    """The node serves the model no more: it is unloaded and forgotten when its last request is over. No other request
    may come for it."""

    model: str


@dataclass(frozen=True)
class Declared:
    """A model of the node, at its start or later."""

    name: str
    num_bytes: int
    """What its engine takes, as measured in an earlier run or estimated."""
    load_s: float
    """What loading takes, likewise."""
    stays: bool = True
    """It is loaded without a request where there is room, and stays when nobody asks for it."""
    is_measured: bool = False


@dataclass(frozen=True)
class Looked:
    """Time has passed: ``Loader.due_at``, or the start."""


Event = Asked | Ended | Loaded | LoadFailed | Unloaded | Measured | Learned | Declared | Withdrawn | Looked


@dataclass(frozen=True)
class Load:
    """Answer with Loaded or LoadFailed."""

    model: str
    kept_bytes: int
    """Room for its kept prefixes."""
    room_bytes: int
    """What its engine may take, at most."""


@dataclass(frozen=True)
class Unload:
    """Begin nothing new, finish what has begun unless it takes long, then end the engine. Answer with Unloaded."""

    model: str


@dataclass(frozen=True)
class Keep:
    """The model may keep this many bytes of prefixes from now on, loaded or not."""

    model: str
    kept_bytes: int


@dataclass(frozen=True)
class Refuse:
    """The requests that wait for the model cannot be answered: it does not fit, even alone."""

    model: str
    needed_bytes: int
    room_bytes: int


Effect = Load | Unload | Keep | Refuse
