"""The prefixes in the KV cells of this node's own models, as its engines report them: for display."""

from mycelia.node.engine.engine import FIRST_EDGE_ID, CacheChange, Engine
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.requests.salts import Salts
from mycelia.node.views.state import TreeRowView
from mycelia.proto.cache.radix import RadixTree
from mycelia.proto.cache.sharing import PUBLIC, owner_of, plain, tags_of

_PREVIEW_TOKENS = 24


class OwnTrees:
    """One radix tree for each model that is served."""

    def __init__(self, me: bytes, own: OwnModels, salts: Salts) -> None:
        self._me = me
        self._own = own
        self._salts = salts
        self._trees: dict[bytes, RadixTree] = {}
        """By namespace."""

    def begin(self, namespace: bytes) -> None:
        """A model is served. Mutates."""
        self._trees[namespace] = RadixTree()

    def end(self, namespace: bytes) -> None:
        """It is served no more. Mutates."""
        del self._trees[namespace]

    def num_tokens(self, namespace: bytes) -> int:
        tree = self._trees.get(namespace)
        return tree.num_tokens if tree is not None else 0

    def apply(self, namespace: bytes, change: CacheChange, now: float) -> None:
        """The engine's cache changed. Mutates."""
        tree = self._trees[namespace]
        if change.reset:
            tree.clear()
        for leaf in change.evicted:
            if leaf in tree:
                tree.remove(leaf)
        for leaf, path in change.stored:
            if leaf >= FIRST_EDGE_ID:
                continue  # In memory or on disk: announced, but not a part of the tree of KV cells.
            tree.insert(path, leaf, now)

    async def rows(self, client: bytes = b"") -> list[TreeRowView]:
        """See ``Api.tree``."""
        return [row for engine in self._own for row in await self._rows_of(engine, client)]

    async def _rows_of(self, engine: Engine, client: bytes) -> list[TreeRowView]:
        rows = list(self._trees[engine.info.namespace].rows())
        if not rows:  # (so that no model is loaded for it)
            return []
        salt = self._salts.of("", client)
        shown = {None, PUBLIC.tag, owner_of(salt.tag_at(self._me), salt.scope, self._me, "").tag}
        texts = await engine.detokenize(
            [
                plain(row.tokens[:_PREVIEW_TOKENS]) if not client or tag in shown else ()
                for row, tag in zip(rows, tags_of(rows), strict=True)
            ]
        )
        return [
            TreeRowView(
                level=row.level,
                tokens=len(row.tokens),
                depth_tokens=row.depth_tokens,
                is_leaf=row.seq_id is not None,
                text=text,
                model=engine.info.name if len(self._own) > 1 else "",
            )
            for row, text in zip(rows, texts, strict=True)
        ]
