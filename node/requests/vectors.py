"""Vectors of texts, and ranks of documents: by a model of this node, or by a peer that serves it.

This node's own engine comes first, where the work waits in its fair queue. If the engine refuses it, if its model is
not loaded and a peer would begin sooner, or if this node does not serve the model, peers are asked, in parts of some
texts: each text is computed by itself, so parts need not go to the same peer. But all go to one namespace, as vectors
of different models cannot be compared. A peer that does not serve the model passes a part on to one that does, once.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from mycelia.node.engine.engine import Engine
from mycelia.node.engine.kinds import EMBEDDING, RERANK, can_do, cannot
from mycelia.node.engine.prompts import TooLongError
from mycelia.node.errors import BusyError, FailedError, no_such_model
from mycelia.node.network.exchange import cancelled_at_end, receive_opening
from mycelia.node.network.network import MessageStream, Network, NetworkError
from mycelia.node.queries.models import SwarmModels
from mycelia.node.queries.questions import answer_of
from mycelia.node.queries.uses import VECTORS
from mycelia.node.requests.failures import failed_of
from mycelia.node.requests.own_models import OwnModels
from mycelia.node.serve.api import Embedded
from mycelia.proto.admission.limits import Limits
from mycelia.proto.admission.overload import OVERLOADED
from mycelia.proto.admission.subnets import Places, of_client, subnet_of
from mycelia.proto.events import Event, Malformed
from mycelia.proto.overlay import Overlay
from mycelia.proto.planes.failure import LEAVING, LEAVING_MESSAGE, PAUSED_MESSAGE
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import (
    MAX_SMALL,
    MAX_TEXTS,
    MAX_WIDTH,
    EmbedTexts,
    Failed,
    ModelUse,
    TextVectors,
    Uses,
    UsesQuery,
)

PART_CHARS = 16_384
"""Characters of the texts that a peer is asked for at once, unless one alone is longer: about 4,000 tokens."""
MAX_SENT_CHARS = 100_000
"""Characters of a query or a text that is sent to a peer: both fit one message, in any script."""
PATIENCE_S = 300.0
"""Maximum time for the answer to a part: 4,000 tokens at 30 tokens/s, and others before it."""
MAX_ASKED, MAX_ASKED_PER_KEY = 64, 8
"""Questions to peers at once, of all and of one client or peer."""
FAULT_S = 600.0
"""Time for which a peer that gave no answer is asked after the others."""
MAX_PASSED_TO_PEER = 16
"""Questions of peers that are passed on to one peer at once: of the 40 exchanges that this node may have open with it,
prompts take up to 32."""
RETRY_S = 2.0
_TOO_MANY = "this node passes on too many texts"
_FINAL = ("bad_request", "too_long")
"""Codes of failures that another node would have, too."""


@dataclass(frozen=True)
class _Wanted:
    texts: Sequence[str | Sequence[int]]
    """Texts, or tokens of a model of this node."""
    query: str = ""
    """Empty: vectors are wanted, and not ranks."""

    @property
    def kind(self) -> str:
        return RERANK if self.query else EMBEDDING

    async def made_by(self, engine: Engine, client: bytes, subnet: str = "") -> Embedded:
        """client, subnet: see ``EngineRequest``. Raises LocalError, as BusyError when too many wait."""
        self.check(engine)
        tokens = []
        for place, text in enumerate(self.texts):
            try:
                tokens.append(await self._tokens_of(text, engine, client, subnet))
            except TooLongError as exc:
                which = "" if self.query else f"text {place} of the input: "
                raise TooLongError(f"{which}{exc}") from exc
        return Embedded(await engine.embed(tokens, client, subnet), sum(map(len, tokens)))

    def check(self, engine: Engine) -> None:
        """Raises LocalError if the model is of another kind."""
        if not can_do(engine.info.kind, self.kind):
            raise LocalError(cannot(engine.info.name, engine.info.kind, self.kind))

    async def _tokens_of(self, text: str | Sequence[int], engine: Engine, client: bytes, subnet: str) -> Sequence[int]:
        if not isinstance(text, str):
            return text
        if self.query:
            return await engine.tokenize_pair(self.query, text, client, subnet)
        return await engine.tokenize_text(text, client, subnet)

    def parts(self) -> Iterator[tuple[str, ...]]:
        """The texts in parts for peers, in order. Raises LocalError for tokens, and for a text or query that is too
        long to be sent."""
        part: list[str] = []
        if len(self.query) > MAX_SENT_CHARS:
            raise _too_long("the query", self.query)
        for text in self.texts:
            if not isinstance(text, str):
                raise LocalError("token ids are only taken for models that this node serves itself: send texts")
            if len(text) > MAX_SENT_CHARS and not self.query:
                raise _too_long("a text", text)
            sent = _sendable(text[:MAX_SENT_CHARS])  # (the rest of a document would be cut there)
            if part and (len(part) == MAX_TEXTS or sum(map(len, part)) + len(sent) > PART_CHARS):
                yield tuple(part)
                part = []
            part.append(sent)
        yield tuple(part)


class Vectors:
    """See ``Api.embed`` and ``Api.rank``."""

    def __init__(
        self,
        own: OwnModels,
        network: Network,
        models: SwarmModels,
        overlay: Overlay,
        handle: Callable[[Event], None],
    ) -> None:
        """handle: passes an event to the overlay."""
        self._own = own
        self._network = network
        self._models = models
        self._overlay = overlay
        self._handle = handle
        self._places = Places(MAX_ASKED, MAX_ASKED_PER_KEY)
        self._faults = Limits[bytes](1 / FAULT_S, 1.0)
        self._at_peer = Places(MAX_ASKED, MAX_PASSED_TO_PEER)
        """The questions of other peers that each peer is asked now."""

    async def embed(self, texts: Sequence[str | Sequence[int]], client: bytes = b"", model: str = "") -> Embedded:
        return await self._made(_Wanted(texts), client, model)

    async def rank(self, query: str, documents: Sequence[str], client: bytes = b"", model: str = "") -> Embedded:
        return await self._made(_Wanted(documents, query), client, model)

    async def _made(self, wanted: _Wanted, client: bytes, model: str) -> Embedded:
        name = self._models.name_of(model) if model else self._own.model_for(wanted.kind)
        if not name:
            raise LocalError("this node serves no reranking model: name one of the swarm's in the field model")
        engine = self._own.named(name)
        if engine is None:
            return await self._elsewhere(wanted, name, b"", partial(self._models.find, name, client), client)
        wanted.check(engine)
        may_go = all(isinstance(text, str) for text in wanted.texts)  # (tokens are read here only)
        if may_go and not engine.residence.is_loaded and self._models.sooner(engine):
            try:
                return await self._at_others(wanted, engine, client)
            except (BusyError, FailedError):
                pass  # (it is loaded here instead)
        try:
            return await wanted.made_by(engine, client)
        except BusyError:
            if not (may_go and self._models.others(engine)):
                raise
        return await self._at_others(wanted, engine, client)

    async def _at_others(self, wanted: _Wanted, engine: Engine, client: bytes) -> Embedded:
        async def others() -> list[bytes]:
            return self._models.others(engine)

        return await self._elsewhere(wanted, engine.info.name, engine.info.namespace, others, client)

    async def _elsewhere(
        self, wanted: _Wanted, model: str, namespace: bytes, find: Callable[[], Awaitable[list[bytes]]], client: bytes
    ) -> Embedded:
        """find: the peers to ask, the best first. Raises LocalError, also as BusyError or FailedError."""
        vectors: list[NDArray[np.float32]] = []
        num_tokens = 0
        with self._place(client, of_client(client), is_known=not client):
            for part in wanted.parts():
                question = EmbedTexts(
                    model=model, namespace=namespace, query=_sendable(wanted.query), texts=part, is_passed_on=False
                )
                try:
                    answer = await self._asked(question, await find())
                except FailedError as exc:
                    raise FailedError(_in_input(str(exc), len(vectors)), exc.code) from exc
                made = np.frombuffer(answer.vectors, "<f4").reshape(len(part), -1)
                if vectors and len(vectors[0]) != made.shape[1]:
                    raise FailedError("peers disagree on what the model's vectors are", "no_peer")
                vectors += [vector.astype(np.float32) for vector in made]
                namespace, num_tokens = answer.namespace, num_tokens + answer.num_tokens
        return Embedded(vectors, num_tokens)

    @contextmanager
    def _place(self, key: bytes, subnet: str, is_known: bool) -> Iterator[None]:
        """A place for questions to peers. Raises BusyError."""
        if not self._places.take(key, subnet, is_known):
            raise BusyError(_TOO_MANY, RETRY_S)
        try:
            yield
        finally:
            self._places.free(key, subnet)

    async def _asked(self, question: EmbedTexts, peers: Sequence[bytes]) -> TextVectors:
        """The answer of the first of ``peers`` that gives one. Raises FailedError, or BusyError."""
        if not peers:
            raise FailedError(no_such_model(question.model, self._models.known_names()), "unknown_model")
        busy: Failed | None = None
        final: Failed | None = None
        # (a peer that gave no answer lately is asked last: it could hold up each question for as long)
        for peer in sorted(peers, key=lambda peer: not self._faults.has(peer, trio.current_time())):
            if question.is_passed_on and self._at_peer.is_at_limit(peer):
                busy = busy or Failed(code=OVERLOADED, message=_TOO_MANY, retryable=True)
                continue
            answer = await self._answer_of(peer, question)
            if isinstance(answer, Failed):
                final = answer if answer.code in _FINAL and final is None else final
                busy = answer if answer.code == OVERLOADED else busy
            elif answer is not None:
                return answer
            else:
                self._faults.take(peer, trio.current_time())
        if final is not None:  # (not sooner: one peer alone could refuse everything)
            raise FailedError(final.message, final.code)
        if busy is not None:
            raise BusyError(busy.message, busy.retry_after_ms / 1_000 or RETRY_S)
        raise FailedError(f"no node that serves {question.model!r} could answer: try again", "no_peer")

    async def _answer_of(self, peer: bytes, question: EmbedTexts) -> TextVectors | Failed | None:
        """None: it gave none that can be one."""
        answer: object = None
        if question.is_passed_on:
            self._at_peer.take(peer, "", is_known=True)
        with trio.move_on_after(PATIENCE_S):
            try:
                answer = await answer_of(self._network, VECTORS, question, peer)
            except (NetworkError, RemoteError):  # (an older node does not know the question)
                return None
            finally:
                if question.is_passed_on:
                    self._at_peer.free(peer, "")
        if isinstance(answer, Failed) or (isinstance(answer, TextVectors) and _fits(answer, question)):
            return answer
        if answer is not None:
            self._handle(Malformed(peer, f"no answer to {len(question.texts)} texts"))
        return None

    # --- questions of peers -----------------------------------------------------------------------------------------

    async def serve_stream(self, stream: MessageStream) -> None:
        """Answers one question of a peer, which cancels it by ending the stream. Raises RemoteError for another
        message."""
        question = await receive_opening(stream)
        if isinstance(question, UsesQuery):
            infos = [engine.info for engine in self._own]
            await stream.send(Uses(uses=tuple(ModelUse(namespace=one.namespace, kind=one.kind) for one in infos)))
            return
        if not isinstance(question, EmbedTexts):
            raise RemoteError(f"a {type(question).__name__} where an EmbedTexts belongs")
        members = self._overlay.members
        if members.is_leaving or members.is_paused:
            message = LEAVING_MESSAGE if members.is_leaving else PAUSED_MESSAGE
            await stream.send(Failed(code=LEAVING, message=message, retryable=True))
            return
        async with cancelled_at_end(stream):
            await stream.send(await self._answer(question, stream.peer))

    async def _answer(self, question: EmbedTexts, peer: bytes) -> TextVectors | Failed:
        question = msgspec.structs.replace(question, model=self._models.name_of(question.model))
        engine = self._own.of(question.namespace) if question.namespace else self._own.named(question.model)
        subnet = subnet_of(self._network.remote_address(peer))
        try:
            if engine is None:
                return await self._passed_on(question, peer, subnet)
            made = await _Wanted(question.texts, question.query).made_by(engine, peer, subnet)
        except LocalError as exc:
            return failed_of(exc)
        if len(made.vectors[0]) > MAX_WIDTH:
            return Failed(code="bad_request", message="the model's vectors are too wide to be sent", retryable=False)
        data = b"".join(vector.astype("<f4").tobytes() for vector in made.vectors)
        num_tokens = min(made.num_tokens, MAX_SMALL)
        return TextVectors(namespace=engine.info.namespace, vectors=data, num_tokens=num_tokens)

    async def _passed_on(self, question: EmbedTexts, peer: bytes, subnet: str) -> TextVectors:
        """The answer of a connected node that serves the model, which must not pass it on again."""
        servers = [] if question.is_passed_on else self._models.servers(question.model)
        with self._place(peer, subnet, is_known=False):
            passed_on = msgspec.structs.replace(question, is_passed_on=True)
            return await self._asked(passed_on, [server for server in servers if server != peer])


_PLACE = re.compile(r"(?<=\btext )\d{1,5}(?= of the input\b)")


def _in_input(message: str, num_before: int) -> str:
    """The message of a peer, to which the texts came without those before them."""
    return _PLACE.sub(lambda found: str(int(found[0]) + num_before), message)


def _too_long(what: str, text: str) -> LocalError:
    message = f"{what} has {len(text)} characters: at most {MAX_SENT_CHARS} go to another node"
    return FailedError(f"{message}. Please reduce the length of the input", "too_long")


def _sendable(text: str) -> str:
    """``text`` without lone surrogates, which no message can hold."""
    return text.encode("utf-8", "replace").decode()


def _fits(answer: TextVectors, question: EmbedTexts) -> bool:
    """Whether an answer may be one to ``question``."""
    if question.namespace and answer.namespace != question.namespace:
        return False
    size, rest = divmod(len(answer.vectors), 4 * len(question.texts))
    numbers = np.frombuffer(answer.vectors, "<f4") if not rest else np.array([np.nan])
    if not size or rest or not np.isfinite(numbers).all():
        return False
    return not question.query or (size == 1 and bool(((numbers >= 0) & (numbers <= 1)).all()))
