"""Which models of the catalogue fit a machine, and what a machine may give. Pure: the caller measures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

CONTEXT_TOKENS = 8_192
"""Tokens of the KV cache with which a model has to fit, as nodes have by default."""
CPU_BYTES = 2_700_000_000
"""The largest model to propose without a GPU: a processor reads all weights for each token, at some 20 GB/s."""
MAX_OFFERS = 6
SHARE = 0.5
"""Part of the free memory that a guest takes."""


class Model(Protocol):
    """What the catalogue says of a model."""

    @property
    def parameters(self) -> str: ...

    @property
    def about(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def memory_bytes(self, tokens: int) -> int: ...


@dataclass(frozen=True)
class Machine:
    host_bytes: int
    """Memory that is free."""
    gpu_bytes: int = 0
    """Free memory of all GPUs that llama.cpp sees."""


@dataclass(frozen=True)
class Offer:
    name: str
    about: str
    size_bytes: int
    memory_bytes: int
    is_here: bool


@dataclass(frozen=True)
class Giving:
    """What a node may use, as options of ``mycelia node``."""

    name: str
    about: str
    settings: Mapping[str, object]


def offers(catalogue: Mapping[str, Model], machine: Machine, here: Sequence[Offer]) -> list[Offer]:
    """The models to choose from, the one to propose first: the largest that runs at a usable speed in half of the
    machine's memory. here: models on this machine that the catalogue does not have, such as packaged ones."""
    room = max(machine.host_bytes, machine.gpu_bytes) * SHARE
    most = machine.gpu_bytes * 0.9 if machine.gpu_bytes else min(CPU_BYTES, room)
    fitting = [
        Offer(name, f"{model.parameters}, {model.about}", model.size_bytes, needed, is_here=False)
        for name, model in catalogue.items()
        if (needed := model.memory_bytes(CONTEXT_TOKENS)) <= max(room, machine.gpu_bytes)
    ]
    quick = sorted((one for one in fitting if one.size_bytes <= most), key=lambda one: -one.size_bytes)
    slow = sorted((one for one in fitting if one.size_bytes > most), key=lambda one: one.size_bytes)
    return [*quick, *slow][: MAX_OFFERS - len(here)] + list(here)


def givings(machine: Machine) -> list[Giving]:
    """The ways to give, the one to propose first."""
    memory = max(round(machine.host_bytes * SHARE / 2**30, 1), 0.5)
    half = f"{memory:g} GiB of memory"
    return [
        Giving("guest", f"{half}, and nothing while you use the machine", {"memory": memory, "polite": True}),
        Giving("nights", f"{half}, from 22:00 to 08:00", {"memory": memory, "hours": ["22:00-08:00"]}),
        Giving("all", "what is free, at all times", {}),
    ]
