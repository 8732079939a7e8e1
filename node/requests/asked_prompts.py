"""From a client's Ask to the tokens of its prompt, or to the refusal of it."""

from collections.abc import Sequence

import msgspec

from mycelia.node.engine.engine import Engine
from mycelia.node.engine.kinds import TEXT, cannot
from mycelia.node.engine.prompts import TooLongError, prompt_over_context
from mycelia.node.errors import BusyError, FailedError
from mycelia.node.network.network import Network
from mycelia.node.requests.prompt_logprobs import MAX_PROMPT_RECORDS
from mycelia.proto.admission.subnets import subnet_of
from mycelia.proto.cache.radix import common_prefix
from mycelia.proto.wire.blocks import token_array
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LocalError, RemoteError
from mycelia.proto.wire.messages import MAX_TEXT_BYTES_PER_TOKEN, Ask, Logprob, Sampling, TokenLogprobs


class AskedPrompts:
    """The prompts that clients ask this node for, in tokens of its engine's model."""

    def __init__(self, engine: Engine, network: Network) -> None:
        self._engine = engine
        self._network = network

    async def prepare(self, ask: Ask, client: bytes) -> tuple[Sequence[int], Sampling]:
        """The tokens of a prompt and its sampling within the model's context. Raises LocalError, also as BusyError or
        FailedError."""
        info = self._engine.info
        if ask.model and ask.model != info.name:
            raise FailedError(f"this node serves {info.name!r}, not {ask.model!r}", "unknown_model")
        if info.kind != TEXT:
            raise LocalError(cannot(info.name, info.kind, TEXT))
        if ask.namespace and ask.namespace != info.namespace:
            raise FailedError("this node's model is not the one that began the answer", "unknown_model")
        if sum(map(bool, (ask.messages, ask.text, ask.tokens))) > 1:
            raise LocalError("a prompt is a conversation, a text or tokens, not several of them")
        if not (ask.tokens or ask.text or ask.messages):
            raise LocalError("the prompt is empty")
        check_sampling(ask.sampling)
        prompt = await self._tokens_of(ask, client)
        num_answered = len(self._known_tokens(ask.answered)) if ask.answered else 0
        if not prompt:
            raise LocalError("the prompt is empty")
        room = info.context_tokens - len(prompt)
        if room < 1:
            raise TooLongError(prompt_over_context(info.context_tokens, len(prompt)))
        sampling = msgspec.structs.replace(ask.sampling, max_tokens=min(ask.sampling.max_tokens, room))
        if num_answered > sampling.max_tokens:
            raise LocalError(f"{num_answered} tokens of an answer are more than the request allows")
        if not sampling.prompt_logprobs:
            return prompt, sampling
        if len(prompt) * (1 + sampling.prompt_logprobs) > MAX_PROMPT_RECORDS:
            most = MAX_PROMPT_RECORDS // (1 + sampling.prompt_logprobs)
            raise LocalError(f"with so many alternatives a prompt may have {most} tokens")
        # (a client that has tokens of the answer has all logprobs of the prompt)
        start = len(prompt) if num_answered else min(sampling.logprobs_from, len(prompt))
        return prompt, msgspec.structs.replace(sampling, logprobs_from=start)

    async def open_tokens(self, ask: Ask, prompt: Sequence[int], client: bytes) -> int:
        """The number of leading prompt tokens that belong to the messages without secrets. Raises LocalError, also
        as BusyError."""
        if not ask.shared_messages or not ask.messages:
            return 0
        if ask.shared_messages >= len(ask.messages):
            return len(prompt)
        shared = msgspec.structs.replace(ask, messages=ask.messages[: ask.shared_messages], continues_final=False)
        try:
            return common_prefix(prompt, await self._tokens_of(shared, client))
        except BusyError:
            raise
        except LocalError as exc:
            raise LocalError(f"the shared messages by themselves: {exc}") from exc

    def first_logprobs(self, prompt: Sequence[int]) -> TokenLogprobs:
        """Stands for the first token of a prompt, which has no probability."""
        text = b"" if self._engine.vocabulary is None else self._engine.vocabulary.piece(prompt[0])
        return TokenLogprobs(chosen=Logprob(token=prompt[0], text=text[:MAX_TEXT_BYTES_PER_TOKEN], logprob=0.0), top=())

    async def _tokens_of(self, ask: Ask, client: bytes) -> Sequence[int]:
        """Raises LocalError, also as BusyError or TooLongError."""
        if ask.tokens:
            return self._known_tokens(ask.tokens)
        if ask.text:
            return await self._engine.tokenize_text(ask.text, client, network_of(client, self._network))
        return await self._engine.tokenize_chat(ask.conversation, client, network_of(client, self._network))

    def _known_tokens(self, packed: bytes) -> Sequence[int]:
        """Unpacks at least one token. Raises LocalError."""
        try:
            tokens = token_array(packed)
        except RemoteError as exc:
            raise LocalError(str(exc)) from exc
        if max(tokens) >= self._engine.info.num_vocab:
            raise LocalError(f"token ids of this model are below {self._engine.info.num_vocab}")
        return tokens


def network_of(client: bytes, network: Network) -> str:
    """The network from which a client asks: all clients of one network have one share of the engine."""
    address = network.remote_address(client) if client else ""
    return subnet_of(address) if address else ""  # (API keys have none)
