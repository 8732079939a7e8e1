"""The models that a node serves."""

from collections.abc import Iterator

from mycelia.node.engine.engine import Engine
from mycelia.node.engine.kinds import can_do
from mycelia.proto.wire.bounds import MAX_NAMESPACES
from mycelia.proto.wire.errors import LocalError


class OwnModels:
    """An engine for each model, in the order in which they were added. Requests that name no model get the first, or
    the one that is preferred."""

    def __init__(self, first: Engine) -> None:
        self.first = first
        self._by_name = {first.info.name: first}

    def __iter__(self) -> Iterator[Engine]:
        """The first one, then the others."""
        return iter([self.first, *(engine for engine in self._by_name.values() if engine is not self.first)])

    def __len__(self) -> int:
        return len(self._by_name)

    def add(self, engine: Engine) -> None:
        """Another model. Raises LocalError when it cannot be told from one of the others, or there are too many."""
        info = engine.info
        same = self._by_name.get(info.name) or self.of(info.namespace)
        if same is not None:
            raise LocalError(f"{same.info.name} and {info.name} are one model, or have one name: serve one of them")
        if len(self._by_name) >= MAX_NAMESPACES:
            raise LocalError(f"a node serves at most {MAX_NAMESPACES} models")
        self._by_name[info.name] = engine

    def prefer(self, engine: Engine) -> None:
        """Requests that name no model get this one from now on. It was added. Mutates."""
        self.first = engine

    def remove(self, engine: Engine) -> None:
        """A model is served no more; it is not the only one. Mutates."""
        del self._by_name[engine.info.name]
        if self.first is engine:
            self.first = next(iter(self._by_name.values()))

    def named(self, name: str) -> Engine | None:
        """The engine of the model that a request names."""
        return self._by_name.get(name) if name else self.first

    def model_for(self, kind: str) -> str:
        """See ``Api.model_for``: a model of the kind itself, or else one that also does its work."""
        infos = [engine.info for engine in self]
        able = [info.name for info in infos if info.kind == kind] or [
            info.name for info in infos if can_do(info.kind, kind)
        ]
        return able[0] if able else ""

    def of(self, namespace: bytes) -> Engine | None:
        return next((engine for engine in self if engine.info.namespace == namespace), None)
