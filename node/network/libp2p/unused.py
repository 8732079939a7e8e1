"""Packages that libp2p imports for what no node uses: they are left out.

``import libp2p`` also imports its QUIC and WebSocket transports, its discovery by mDNS and UPnP, and a client of
certificate authorities, with the packages that these need. While it runs, such packages are found as modules whose
every name is a class that does nothing.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = frozenset(
    {"aioquic", "httpx", "miniupnpc", "requests", "sqlite3", "trio_websocket", "websockets", "wsproto", "zeroconf"}
)


class _Nothing(type):
    """A class whose attributes are such classes as well."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (Exception,), {})  # (some are caught, others are derived from)


class _Left(ModuleType):
    """Stands for a module of an unused package."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Nothing(name, (Exception,), {})


class _Finder(MetaPathFinder, Loader):
    def __init__(self, packages: frozenset[str]) -> None:
        self._packages = packages

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self._packages else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Left(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing in it."""


@contextmanager
def without_unused() -> Iterator[None]:
    """Context of the first import of libp2p. Packages that are imported already stay; afterwards all can be imported
    as usual."""
    finder = _Finder(UNUSED - sys.modules.keys())
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Left)]:
            del sys.modules[name]
