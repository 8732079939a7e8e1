"""POST /v1/rerank: how well documents answer a query, as Cohere, Jina and llama-server have it."""

from collections.abc import Callable
from dataclasses import dataclass

from msgspec import UNSET

from mycelia.node.serve.api import Api, Embedded
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.request_types import RerankRequest, TextDocument
from mycelia.node.serve.openai.response_types import RankedDocument, Reranked, TextUsage
from mycelia.node.serve.openai.vectors import VectorAnswer

MAX_DOCUMENTS = 1_000
"""Documents of one request, as Cohere has it."""


@dataclass(frozen=True)
class WantedRanks:
    query: str
    documents: list[str]
    named: str
    """The model as the client named it."""
    model: str
    """The model that ranks."""
    num_results: int
    returns_documents: bool


def wanted_ranks(body: RerankRequest, usual: str, name_of: Callable[[str], str]) -> WantedRanks:
    """What to rank. usual, name_of: see ``wanted_embeddings``. Raises HttpError for what no node can do."""
    named = body.model or usual
    if not named:
        message = "this node serves no reranking model: name one of the swarm's; 'mycelia model catalogue' has some"
        raise HttpError(400, message, param="model")
    if not body.query.strip():
        raise HttpError(400, "the query is empty", param="query")
    if len(body.documents) > MAX_DOCUMENTS:
        message = f"{len(body.documents)} documents are too many: at most {MAX_DOCUMENTS}"
        raise HttpError(400, message, param="documents")
    documents = [one if isinstance(one, str) else one.text for one in body.documents]
    num_results = min(body.top_n or len(documents), len(documents))
    return WantedRanks(body.query, documents, named, name_of(named), num_results, bool(body.return_documents))


class RerankAnswer(VectorAnswer):
    """An ASGI application."""

    def __init__(self, api: Api, wanted: WantedRanks, client: bytes) -> None:
        self._api = api
        self._wanted = wanted
        self._client = client

    async def make(self) -> Embedded:
        wanted = self._wanted
        return await self._api.rank(wanted.query, wanted.documents, self._client, wanted.model)

    async def shape(self, made: Embedded) -> Reranked:
        wanted = self._wanted
        ranks = [float(vector[0]) for vector in made.vectors]
        best = sorted(range(len(ranks)), key=lambda index: (-ranks[index], index))[: wanted.num_results]
        results = [
            RankedDocument(
                index, ranks[index], TextDocument(wanted.documents[index]) if wanted.returns_documents else UNSET
            )
            for index in best
        ]
        return Reranked(results, wanted.named, TextUsage(made.num_tokens, made.num_tokens))
