"""Turns an OpenAI client's request into requests to a node. Every function raises HttpError for what is not served."""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import msgspec

from mycelia.node.formats.calls import MAX_CALLS
from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai.request_types import (
    MAX_PROMPTS,
    AnyRequest,
    ChatRequest,
    CompletionRequest,
    ContentPart,
    FunctionName,
    GivenCall,
    Tool,
    ToolChoice,
    Turn,
)
from mycelia.node.serve.openai.structured import Form, call_form, wanted_form
from mycelia.node.serve.openai.unserved import refuse_sampling, refuse_used
from mycelia.proto.wire.biases import MOST, pack_biases
from mycelia.proto.wire.blocks import pack_tokens
from mycelia.proto.wire.codec import check_sampling
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import (
    MAX_BIASES,
    MAX_OPTIONS_CHARS,
    MAX_TOKENS_PER_REQUEST,
    Ask,
    ChatMessage,
    Sampling,
)

_SEEDS = 2**32 - 1
"""llama.cpp takes the highest seed for a random one."""
_DEFAULTS = Sampling(max_tokens=MAX_TOKENS_PER_REQUEST)
_RANDOM_SEEDS = (None, -1)
"""No seed, and llama.cpp's spelling of it."""


@dataclass(frozen=True)
class Wanted:
    asks: list[Ask]
    """One for each choice."""
    model: str
    """As the client named it."""
    timeout_s: float | None
    is_stream: bool
    includes_usage: bool
    with_logprobs: bool
    num_top: int
    """Alternatives per token that the client gets."""
    functions: Mapping[str, Any] = field(default_factory=dict)
    """The parameters of each function that the model may call, by its name."""
    max_calls: int = MAX_CALLS
    """Calls of one answer that the client gets."""
    choices_a_prompt: int = 1
    kept_a_prompt: int = 1
    """Choices that the client gets: those with the highest mean logprob."""
    echoes: bool = False
    """Each choice begins with its prompt."""
    num_prompt_top: int | None = None
    """Alternatives per token of the prompt that the client gets in ``prompt_logprobs``; None: it gets none."""


def wanted_chat(body: ChatRequest) -> Wanted:
    if body.top_logprobs and not body.logprobs:
        raise HttpError(400, "top_logprobs needs logprobs to be true", param="top_logprobs")
    tools = body.tools or []
    functions = {tool.function.name: tool.function.parameters for tool in tools}
    refuse_used(body, "audio", "web_search_options")
    if body.functions:
        raise HttpError(400, "functions are not served: send the same as tools", param="functions")
    form = wanted_form(body)
    told = tools
    match _tool_choice(body.tool_choice):
        case "none":
            told, functions = [], {}
        case "required" | ToolChoice() as choice:
            if form is not None and body.response_format is None:
                told_error = "a required call and another form of the answer exclude each other"
                raise HttpError(400, told_error, param="tool_choice")
            # (a response_format is the form of an answer in text, which a required call is not; instructor sends both)
            name = None if choice == "required" else choice.function.name
            form = call_form(tools, name, allows_several=bool(body.parallel_tool_calls) and name is None)
        case _ if form is not None:
            functions = {}  # (an answer made to fit a schema is no call, whatever it looks like)
        case _:
            pass
    max_calls = 1 if body.parallel_tool_calls is False else MAX_CALLS
    max_tokens = _or(body.max_completion_tokens, body.max_tokens)
    sampling = _sampling(body, max_tokens, body.logprobs and max(body.top_logprobs or 0, 1), form)
    messages = tuple(map(_message, body.messages, call_ids(body.messages)))
    told_json = _json([_told_tool(tool) for tool in told]) if told else ""
    options = _template_options(body)
    asks = [
        Ask(
            request_id=secrets.token_bytes(16),
            model=body.model or "",
            messages=messages,
            sampling=one,
            tools=told_json,
            cache_salt=body.cache_salt or "",
            shared_messages=body.shared_messages or 0,
            template_options=options,
            continues_final=bool(body.continue_final_message),
            reads_format=True,
        )
        for one in _choices(sampling, body.n or 1)
    ]
    return _wanted(body, asks, bool(body.logprobs), body.top_logprobs or 0, functions=functions, max_calls=max_calls)


def wanted_completion(body: CompletionRequest) -> Wanted:
    n, num_top = body.n or 1, _num_top(body.logprobs)
    best_of = _or(body.best_of, n)
    refuse_used(body, "suffix")
    if best_of < n:
        raise HttpError(400, "best_of must not be less than n", param="best_of")
    if best_of > n and body.stream:
        raise HttpError(400, "the best of several answers cannot be streamed", param="best_of")
    logprobs = max(num_top, 1) if num_top is not None else int(best_of > n)
    sampling = _sampling(body, body.max_tokens, logprobs, wanted_form(body))
    asks = [
        Ask(
            request_id=secrets.token_bytes(16),
            model=body.model or "",
            messages=(),
            sampling=_with_echo(one, num_top, bool(tokens)) if body.echo else one,
            text=text,
            tokens=tokens,
            cache_salt=body.cache_salt or "",
        )
        for text, tokens in read_prompts(body.prompt, MAX_PROMPTS, "prompt")
        for one in _choices(sampling, best_of)
    ]
    return _wanted(body, asks, num_top is not None, num_top or 0, choices_a_prompt=best_of, echoes=bool(body.echo))


def _num_top(logprobs: int | bool | None) -> int | None:
    """Alternatives per token; None: no logprobs. Some clients send true and false here, as for chats."""
    return int(logprobs) if logprobs or type(logprobs) is int else None


def _with_echo(sampling: Sampling, num_top: int | None, is_tokens: bool) -> Sampling:
    """With the logprobs of the prompt, if they are wanted or the text of a prompt in tokens must be found."""
    if num_top is None and not is_tokens:
        return sampling
    wanted = max(num_top or 0, sampling.prompt_logprobs, 1)
    return msgspec.structs.replace(sampling, prompt_logprobs=wanted)


def _wanted(
    body: AnyRequest,
    asks: list[Ask],
    with_logprobs: bool,
    num_top: int,
    *,
    functions: Mapping[str, Any] | None = None,
    max_calls: int = MAX_CALLS,
    choices_a_prompt: int | None = None,
    echoes: bool = False,
) -> Wanted:
    is_stream = bool(body.stream)
    if body.stream_options is not None and not is_stream:
        raise HttpError(400, "stream_options needs stream to be true", param="stream_options")
    if body.prompt_logprobs is not None and is_stream:
        raise HttpError(400, "prompt_logprobs cannot be streamed", param="prompt_logprobs")
    includes_usage = bool(body.stream_options and body.stream_options.include_usage)
    n = body.n or 1
    return Wanted(
        asks,
        body.model or "",
        body.timeout_s,
        is_stream,
        includes_usage,
        with_logprobs,
        num_top,
        functions or {},
        max_calls,
        choices_a_prompt=choices_a_prompt or n,
        kept_a_prompt=n,
        echoes=echoes,
        num_prompt_top=body.prompt_logprobs,
    )


def read_prompts(prompt: str | list[Any], most: int, param: str) -> list[tuple[str, bytes]]:
    """(text, packed tokens), one of them empty, for each of at most ``most`` prompts in the body's field ``param``.
    Raises HttpError."""
    is_one = isinstance(prompt, str) or isinstance(prompt[0], int)
    items = [prompt] if is_one else prompt
    if len(items) > most:
        raise HttpError(400, f"{len(items)} texts are too many: at most {most}", param=param)
    if not all(items):
        which = "" if is_one else f"[{next(place for place, item in enumerate(items) if not item)}]"
        raise HttpError(400, f"{param}{which} is empty", param=param)
    try:
        return [(item, b"") if isinstance(item, str) else ("", pack_tokens(item)) for item in items]
    except (OverflowError, TypeError) as exc:
        raise HttpError(400, "token ids must be whole numbers from 0 to 4294967295", param=param) from exc


def _choices(sampling: Sampling, n: int) -> list[Sampling]:
    """The same sampling with a different seed for each choice."""
    return [msgspec.structs.replace(sampling, seed=(sampling.seed + place) % _SEEDS) for place in range(n)]


def _sampling(body: AnyRequest, max_tokens: int | None, logprobs: int | bool | None, form: Form | None) -> Sampling:
    refuse_sampling(body)
    stop = body.stop if isinstance(body.stop, list) else [body.stop]
    last_n = _or(body.repeat_last_n, _DEFAULTS.repeat_last_n)
    is_limited = max_tokens is not None and 0 <= max_tokens < MAX_TOKENS_PER_REQUEST
    sampling = Sampling(
        max_tokens=max_tokens if max_tokens is not None and is_limited else MAX_TOKENS_PER_REQUEST,
        temperature=_or(body.temperature, 1.0),
        seed=secrets.randbelow(_SEEDS) if body.seed in _RANDOM_SEEDS else _or(body.seed, 0) % _SEEDS,
        top_k=max(_or(body.top_k, _DEFAULTS.top_k), 0),
        top_p=_or(body.top_p, 1.0),
        min_p=_or(body.min_p, _DEFAULTS.min_p),
        repeat_penalty=_or(_or(body.repeat_penalty, body.repetition_penalty), _DEFAULTS.repeat_penalty),
        repeat_last_n=min(last_n, MAX_TOKENS_PER_REQUEST) if last_n >= 0 else MAX_TOKENS_PER_REQUEST,
        frequency_penalty=_or(body.frequency_penalty, 0.0),
        presence_penalty=_or(body.presence_penalty, 0.0),
        stop=tuple(text for text in stop if text),
        logprobs=int(logprobs or 0),
        grammar="" if form is None else form.text,
        grammar_kind="gbnf" if form is None else form.kind,
        prompt_logprobs=0 if body.prompt_logprobs is None else max(body.prompt_logprobs, 1),
        logit_bias=_biases(body.logit_bias),
    )
    try:
        check_sampling(sampling)
    except LocalError as exc:
        raise HttpError(400, str(exc)) from exc
    return sampling


def _biases(wanted: dict[str, float | bool] | list[Any] | None) -> bytes:
    """Packed biases. Raises HttpError."""
    pairs = wanted.items() if isinstance(wanted, dict) else wanted or []
    try:
        if len(pairs) > MAX_BIASES:  # (before a dictionary: a client can choose ids that all have one hash)
            raise LocalError(f"{len(pairs)} tokens with a bias are too many: at most {MAX_BIASES}")
        biases = {int(token): -MOST if bias is False else float(bias) for token, bias in pairs}
        return pack_biases(biases)
    except (LocalError, OverflowError, TypeError, ValueError) as exc:
        why = str(exc) if isinstance(exc, LocalError) else "it maps token ids to numbers from -100 to 100"
        raise HttpError(400, f"logit_bias: {why}", param="logit_bias") from exc


def _tool_choice(wanted: str | dict[str, Any] | None) -> str | ToolChoice:
    """Reads the spellings of several APIs. Raises HttpError."""
    if isinstance(wanted, dict):
        kind = wanted.get("type", "function")
        if kind in ("function", "tool"):
            named = wanted.get("function", wanted)
            name = named.get("name") if isinstance(named, dict) else None
            if not isinstance(name, str):
                raise HttpError(400, "tool_choice names no function", param="tool_choice")
            return ToolChoice(FunctionName(name))
        wanted = str(kind)
    choices = {None: "auto", "": "auto", "auto": "auto", "none": "none", "required": "required", "any": "required"}
    if wanted not in choices:
        told = f"tool_choice {str(wanted)[:32]!r} is unknown: auto, none or required"
        raise HttpError(400, told, param="tool_choice")
    return choices[wanted]


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _told_tool(tool: Tool) -> dict[str, Any]:
    function = tool.function
    told: dict[str, Any] = {"name": function.name}
    if function.description:
        told["description"] = function.description
    told["parameters"] = function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": told}


def _template_options(body: ChatRequest) -> str:
    """``Ask.template_options``."""
    if body.continue_final_message:
        if body.add_generation_prompt:
            raise HttpError(
                400,
                "add_generation_prompt and continue_final_message exclude each other",
                param="add_generation_prompt",
            )
        if body.messages[-1].role != "assistant" or body.messages[-1].tool_calls:
            raise HttpError(
                400,
                "continue_final_message needs a last message of the assistant, without tool_calls",
                param="continue_final_message",
            )
    named = {
        "reasoning_effort": body.reasoning_effort,
        "enable_thinking": body.enable_thinking,
        "add_generation_prompt": body.add_generation_prompt,
    }
    given = {name: value for name, value in named.items() if value is not None}
    options = given | (body.chat_template_kwargs or {})
    text = _json(options) if options else ""
    if len(text) > MAX_OPTIONS_CHARS:
        raise HttpError(
            400, f"chat_template_kwargs have over {MAX_OPTIONS_CHARS} characters", param="chat_template_kwargs"
        )
    return text


def call_ids(turns: Sequence[Turn]) -> list[list[str]]:
    """For each turn the ids of its calls, or of the call that it answers. Missing ones are made up: results answer the
    calls in their order, and templates that show ids (nine letters and digits for those of Mistral) get equal ones."""
    ids: list[list[str]] = []
    num_ids = 0
    unanswered: dict[str, None] = {}
    for turn in turns:
        own = list[str]()
        for call in turn.tool_calls or ():
            own.append(call.id or f"call{num_ids + len(own) + 1:05}")
            unanswered[own[-1]] = None
        if turn.role in ("tool", "function"):
            own = [turn.tool_call_id] if turn.tool_call_id else [*islice(unanswered, 1)]
            for answered in own:
                unanswered.pop(answered, None)
        ids.append(own)
        num_ids += len(own)
    return ids


def _message(turn: Turn, ids: Sequence[str]) -> ChatMessage:
    role = {"developer": "system", "function": "tool"}.get(turn.role, turn.role)
    extras: dict[str, Any] = {}
    if turn.tool_calls:
        extras["tool_calls"] = list(map(_told_call, turn.tool_calls, ids))
    elif ids:
        extras["tool_call_id"] = ids[0]
    if turn.name:
        extras["name"] = turn.name
    thoughts = turn.reasoning_content or turn.reasoning
    if thoughts and turn.role == "assistant":
        extras["reasoning_content"] = thoughts
    parts = _parts(turn)
    if parts is None:
        extras["content"] = None
    elif len(parts) > 1:
        extras["content_parts"] = list(map(len, parts))
    return ChatMessage(role=role, content="".join(parts or ()), extras=_json(extras) if extras else "")


def _parts(turn: Turn) -> list[str] | None:
    """The texts of a content. The model's template joins them, if it reads parts; else they are one text."""
    if turn.content is None:
        if turn.role != "assistant":
            raise HttpError(400, f"a message of role {turn.role} needs a content", param="messages")
        return None
    if isinstance(turn.content, str):
        return [turn.content]
    return [_text(part) for part in turn.content]


def _text(part: ContentPart) -> str:
    if part.type not in ("text", "refusal"):
        raise HttpError(400, f"a content of type {part.type!r} is not served: the models read text", param="messages")
    return part.text or part.refusal or ""


def _told_call(call: GivenCall, call_id: str) -> dict[str, Any]:
    """A call in the form that templates expect: arguments as an object. Text that is none stays as it is."""
    arguments: Any = call.function.arguments or {}
    if isinstance(arguments, str):
        with suppress(msgspec.DecodeError, RecursionError):
            arguments = msgspec.json.decode(arguments, type=dict[str, Any] | None) or {}
    return {"id": call_id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except RecursionError:
        raise HttpError(400, "a schema or tool is nested too deeply") from None
