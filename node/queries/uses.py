"""What peers' models are for: text, embeddings or ranks, as the peers themselves say. For lists; no request depends on
it. An older node gives no answer, and its models are unknown."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Mapping

from mycelia.node.network.network import Opener
from mycelia.node.queries.questions import ask_all
from mycelia.proto.wire.messages import Uses, UsesQuery

VECTORS = "/mycelia/vectors/1"
"""The protocol of questions for vectors, which also answers this one."""
MAX_PEERS = 64
DEADLINE_S = 2.0


class PeerUses:
    """The answers of the peers asked last. Memory: MAX_PEERS answers."""

    def __init__(self, network: Opener) -> None:
        self._network = network
        self._told: OrderedDict[bytes, dict[bytes, str]] = OrderedDict()
        """Peer -> its namespaces -> the kind of their model."""

    async def ask(self, served: Mapping[bytes, Collection[bytes]]) -> None:
        """Ask peers, with the namespaces that their hellos named, unless their answers are known."""
        asked = [peer for peer, spaces in served.items() if not self._told.get(peer, {}).keys() >= {*spaces}]
        answers = await ask_all(self._network, VECTORS, UsesQuery(), asked, DEADLINE_S)
        for peer, answer in answers.items():
            if isinstance(answer, Uses):
                told = {use.namespace: use.kind for use in answer.uses}
                self._told[peer] = {space: told.get(space, "") for space in served[peer]}
                self._told.move_to_end(peer)
        while len(self._told) > MAX_PEERS:
            self._told.popitem(last=False)

    def kind_of(self, namespace: bytes) -> str:
        """What most of the peers that serve it say; empty: unknown."""
        kinds = Counter(kind for told in self._told.values() if (kind := told.get(namespace)))
        return kinds.most_common(1)[0][0] if kinds else ""
