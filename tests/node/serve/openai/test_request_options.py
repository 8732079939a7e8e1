"""What clients spell in many ways, and options beyond the usual ones: limits, biases, echo, the best of several."""

import json
import sys
from typing import Any

import httpx
import msgspec
import pytest

from mycelia.node.serve.http.errors import HttpError
from mycelia.node.serve.openai import answers
from mycelia.node.serve.openai.request_types import CompletionRequest, GivenCall, GivenFunction, Turn
from mycelia.node.serve.openai.requests import call_ids, wanted_completion
from mycelia.proto.wire.biases import unpack_biases
from mycelia.proto.wire.messages import (
    MAX_TOKENS_PER_REQUEST,
    EntryFrame,
    Logprob,
    PromptLogprobs,
    Sampling,
    Text,
    TokenLogprobs,
)
from tests.node.serve.openai.test_api import ANSWERED, BEGUN, ROUTE, TOOL, chat, events, served


def entry(text: str, logprob: float, *others: str) -> TokenLogprobs:
    tops = [Logprob(token=ord(other[0]), text=other.encode(), logprob=-0.25) for other in others]
    return TokenLogprobs(chosen=Logprob(token=ord(text[0]), text=text.encode(), logprob=logprob), top=tuple(tops))


PROMPT = (entry("On", 0.0), entry("ce", -2.0, "ly", "ce"))
ECHO: list[EntryFrame] = [
    ROUTE,
    BEGUN,
    PromptLogprobs(position=0, logprobs=PROMPT),
    Text(text=" up", logprobs=(entry(" up", -1.0, " up"),)),
    ANSWERED,
]


async def sampling_of(**options: Any) -> Sampling:
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json=chat(**options))
    assert response.status_code == 200, response.text
    return node.asked[0].sampling


@pytest.mark.parametrize("spelled", [{}, {"max_tokens": None}, {"max_tokens": -1}, {"max_completion_tokens": 10**9}])
async def test_without_a_limit_an_answer_may_fill_the_context(spelled: dict[str, object]) -> None:
    assert (await sampling_of(**spelled)).max_tokens == MAX_TOKENS_PER_REQUEST


async def test_no_token_is_a_limit_and_the_newer_name_wins() -> None:
    assert (await sampling_of(max_tokens=0)).max_tokens == 0
    assert (await sampling_of(max_tokens=7, max_completion_tokens=0)).max_tokens == 0


async def test_a_seed_of_minus_one_is_a_random_one() -> None:
    assert len({(await sampling_of(seed=seed)).seed for seed in (-1, -1, None)}) == 3
    assert (await sampling_of(seed=5)).seed == (await sampling_of(seed=5 + 2**32 - 1)).seed == 5


NOTHING: dict[str, object] = {
    "model": None,
    "temperature": None,
    "top_p": None,
    "top_k": -1,
    "min_p": None,
    "n": None,
    "stop": [None, ""],
    "stream": None,
    "stream_options": None,
    "logprobs": False,
    "top_logprobs": 0,
    "logit_bias": {},
    "tools": [],
    "tool_choice": None,
    "response_format": None,
    "cache_salt": None,
    "timeout_s": None,
    "prompt_logprobs": None,
}


@pytest.mark.parametrize("name", NOTHING)
async def test_every_spelling_of_no_value_is_taken(name: str) -> None:
    plain, sampling = await sampling_of(seed=1), await sampling_of(seed=1, **{name: NOTHING[name]})
    assert sampling == plain or (name == "top_k" and sampling.top_k == 0)


@pytest.mark.parametrize("stop", ["", [], [""], ["x" * 300, "", None]])
async def test_stops(stop: object) -> None:
    assert (await sampling_of(stop=stop)).stop == (("x" * 300,) if len(stop) == 3 else ())  # type: ignore[arg-type]


async def test_an_empty_content_is_a_turn() -> None:
    async with served() as (node, http):
        body = {"messages": [{"role": "user", "content": ""}], "model": ""}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert node.asked[0].messages[0].content == ""


BIASED = ({"5": 1.5, "7": -100}, [[5, 1.5], [7, False]], [[7, -1000], ["5", 1.5], [9, 0]])


@pytest.mark.parametrize("spelled", BIASED)
async def test_logit_bias_of_both_apis(spelled: object) -> None:
    biases = unpack_biases((await sampling_of(logit_bias=spelled)).logit_bias)
    assert [(int(token), float(bias)) for token, bias in biases] == [(5, 1.5), (7, -100.0)]


@pytest.mark.parametrize("kind", [list, dict])
def test_many_biases_are_refused_before_a_dictionary_is_made(kind: type) -> None:
    one_hash = sys.hash_info.modulus  # (of integers: a dictionary of its multiples takes the square of their number)
    body = {"prompt": "a", "logit_bias": kind([(str(n * one_hash), 1.0) for n in range(60_000)])}  # (that took 20 s)
    with pytest.raises(HttpError, match="60000 tokens with a bias are too many"):
        wanted_completion(msgspec.convert(body, CompletionRequest))


@pytest.mark.parametrize(
    ("choice", "is_forced"),
    [
        ("any", True),
        ("required", True),
        ({"type": "any"}, True),
        ({"type": "function", "function": {"name": "weather"}}, True),
        ({"type": "function", "name": "weather"}, True),
        ({"type": "tool", "name": "weather"}, True),
        ({"type": "auto"}, False),
        ("auto", False),
        ("", False),
        ({"type": "none"}, False),
    ],
)
async def test_tool_choice_of_several_apis(choice: object, is_forced: bool) -> None:
    assert bool((await sampling_of(tools=[TOOL], tool_choice=choice)).grammar) is is_forced


UNSERVED: dict[str, tuple[object, list[object]]] = {
    "min_tokens": (5, [0, None]),
    "ignore_eos": (True, [False, None]),
    "stop_token_ids": ([2], [[], None]),
    "typical_p": (0.9, [1, 1.0, None]),
    "dry_multiplier": (0.8, [0.0]),
    "mirostat": (2, [0]),
    "audio": ({"voice": "alloy"}, [None, {}]),
    "web_search_options": ({"search_context_size": "low"}, [None]),
}


@pytest.mark.parametrize("name", UNSERVED)
async def test_what_would_change_the_answer_and_is_not_served_is_refused_by_name(name: str) -> None:
    used, unused = UNSERVED[name]
    async with served() as (node, http):
        refused = await http.post("/v1/chat/completions", json=chat() | {name: used})
        assert refused.status_code == 400 and refused.json()["error"]["param"] == name and not node.asked
        for value in unused:
            assert (await http.post("/v1/chat/completions", json=chat() | {name: value})).status_code == 200, value


async def test_penalties_under_the_names_of_other_servers() -> None:
    assert (await sampling_of(repetition_penalty=1.5)).repeat_penalty == 1.5
    assert (await sampling_of(repetition_penalty=1.5, repeat_penalty=1.25)).repeat_penalty == 1.25
    assert (await sampling_of()).repeat_last_n == (await sampling_of(repeat_last_n=64)).repeat_last_n == 64
    assert (await sampling_of(repeat_last_n=-1)).repeat_last_n == MAX_TOKENS_PER_REQUEST


async def test_older_and_looser_turns() -> None:
    call = {"function": {"name": "mcp.weather:now", "arguments": "{}"}}
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "function", "name": "mcp.weather:now", "content": "rain"},
    ]
    async with served() as (node, http):
        body = {"messages": turns, "tools": [{"function": {"name": "mcp.weather:now"}}]}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert [turn.role for turn in node.asked[0].messages] == ["user", "assistant", "tool"]


async def test_calls_of_earlier_turns_are_taken_as_meant() -> None:
    given: list[Any] = ["", "null", None, {"a": 1}, '{"a": 1}', "[1]", "not JSON"]
    calls = [{"function": {"name": "f", "arguments": arguments}} for arguments in given]
    turns = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "tool_calls": calls[:2]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two"},
        {"role": "assistant", "tool_calls": [{**call, "id": f"own{place}"} for place, call in enumerate(calls[2:])]},
        {"role": "tool", "content": "four", "tool_call_id": "own1"},
        {"role": "tool", "content": "three"},
    ]
    async with served() as (node, http):
        response = await http.post("/v1/chat/completions", json={"messages": turns})
        assert response.status_code == 200, response.text
    extras = [json.loads(turn.extras or "{}") for turn in node.asked[0].messages]
    told = [call["function"]["arguments"] for turn in extras for call in turn.get("tool_calls", ())]
    assert told == [{}, {}, {}, {"a": 1}, {"a": 1}, "[1]", "not JSON"]
    assert [call["id"] for call in extras[1]["tool_calls"]] == ["call00001", "call00002"]
    ids = [turn.get("tool_call_id") for turn in extras]
    assert ids == [None, None, "call00001", "call00002", None, "own1", "own0"]


# --- logprobs ---------------------------------------------------------------------------------------------------------


async def completion(http: httpx.AsyncClient, **options: object) -> Any:
    response = await http.post("/v1/completions", json={"model": "fake", "prompt": "Once", **options})
    assert response.status_code == 200, response.text
    return response.json()


async def test_an_echo_begins_with_the_prompt_and_its_logprobs() -> None:
    async with served(ECHO) as (node, http):
        (choice,) = (await completion(http, echo=True, logprobs=1))["choices"]
        streamed = await http.post(
            "/v1/completions", json={"prompt": "Once", "echo": True, "logprobs": 1, "stream": True}
        )
    assert choice["text"] == "Once up" and choice["logprobs"] == {
        "tokens": ["On", "ce", " up"],
        "token_logprobs": [None, -2.0, -1.0],
        "top_logprobs": [None, {"ly": -0.25}, {" up": -0.25}],
        "text_offset": [0, 2, 4],
    }
    chunks = [chunk["choices"][0] for chunk in events(streamed.text)]
    assert [chunk["text"] for chunk in chunks] == ["Once", " up", ""]
    assert [chunk["logprobs"]["text_offset"] for chunk in chunks[:2]] == [[0, 2], [4]]
    assert chunks[0]["logprobs"]["token_logprobs"] == [None, -2.0]
    assert [ask.sampling.prompt_logprobs for ask in node.asked] == [1, 1]


async def test_an_echo_without_logprobs_asks_for_none_unless_the_prompt_is_tokens() -> None:
    async with served(ECHO) as (node, http):
        assert (await completion(http, echo=True))["choices"][0]["text"] == "Once up"
        (choice,) = (await completion(http, echo=True, prompt=[1, 2]))["choices"]
    assert choice["text"] == "Once up" and choice["logprobs"] is None
    assert [ask.sampling.prompt_logprobs for ask in node.asked] == [0, 1]


async def test_a_prompt_alone_is_echoed() -> None:
    async with served([*ECHO[:3], ANSWERED]) as (_, http):
        (choice,) = (await completion(http, echo=True, logprobs=0, max_tokens=0))["choices"]
    assert choice["text"] == "Once" and choice["logprobs"]["top_logprobs"] == [None, {}]


async def test_prompt_logprobs_in_vllms_form() -> None:
    told = [
        None,
        {
            "99": {"logprob": -2.0, "rank": 2, "decoded_token": "ce"},
            "108": {"logprob": -0.25, "rank": 1, "decoded_token": "ly"},
        },
    ]
    async with served(ECHO) as (_, http):
        (choice,) = (await completion(http, prompt_logprobs=2))["choices"]
        whole = (await http.post("/v1/chat/completions", json=chat(prompt_logprobs=2))).json()
        plain = (await http.post("/v1/chat/completions", json=chat())).json()
    assert choice["prompt_logprobs"] == whole["prompt_logprobs"] == told and choice["text"] == " up"
    assert "prompt_logprobs" not in plain


async def test_logprobs_of_many_prompts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_PROMPT_RECORDS", 7)
    async with served(ECHO) as (_, http):
        assert await completion(http, echo=True, logprobs=1)
        refused = await http.post("/v1/completions", json={"prompt": ["Once", "Twice"], "echo": True, "logprobs": 1})
    assert refused.status_code == 400 and "too many" in refused.json()["error"]["message"]


async def test_logprobs_end_where_the_content_ends() -> None:
    stopped: list[EntryFrame] = [
        ROUTE,
        Text(text="One", logprobs=(entry("One", -1.0), entry(" t", -1.0))),
        Text(text="", logprobs=(entry("wo", -1.0),)),
        ANSWERED,
    ]
    async with served(stopped) as (_, http):
        whole = (await http.post("/v1/chat/completions", json=chat(logprobs=True))).json()["choices"][0]
        streamed = await http.post("/v1/chat/completions", json=chat(logprobs=True, stream=True))
    assert [told["token"] for told in whole["logprobs"]["content"]] == ["One"]
    chunks = [chunk["choices"][0]["logprobs"] for chunk in events(streamed.text)]
    assert [told["token"] for chunk in chunks if chunk for told in chunk["content"]] == ["One"]


async def test_logprobs_that_come_before_their_text() -> None:
    whole = entry("é", -1.0)
    first, second = (Logprob(token=1, text=byte, logprob=-1.0) for byte in (b"\xc3", b"\xa9"))
    halves = (TokenLogprobs(chosen=first, top=()), TokenLogprobs(chosen=second, top=()))
    frames: list[EntryFrame] = [
        ROUTE,
        Text(text="", logprobs=halves[:1]),
        Text(text="éé", logprobs=(halves[1], whole)),
        ANSWERED,
    ]
    async with served(frames) as (_, http):
        choice = (await http.post("/v1/chat/completions", json=chat(logprobs=True))).json()["choices"][0]
    assert b"".join(bytes(told["bytes"]) for told in choice["logprobs"]["content"]) == "éé".encode()


async def test_the_best_of_several_answers() -> None:
    scripts: list[list[EntryFrame]] = [
        [ROUTE, Text(text=text, logprobs=(entry(text, logprob),)), ANSWERED]
        for text, logprob in (("bad", -3.0), ("best", -0.5), ("good", -1.0))
    ]
    async with served(*scripts) as (node, http):
        body = await completion(http, n=2, best_of=3)
        refused = [
            await http.post("/v1/completions", json={"prompt": "x", **options})
            for options in ({"best_of": 1, "n": 2}, {"best_of": 2, "stream": True}, {"best_of": 17}, {"suffix": "x"})
        ]
    assert [(choice["index"], choice["text"]) for choice in body["choices"]] == [(0, "best"), (1, "good")]
    assert body["choices"][0]["logprobs"] is None and body["usage"]["completion_tokens"] == 6
    assert len({ask.sampling.seed for ask in node.asked}) == 3 and {response.status_code for response in refused} == {
        400
    }


async def test_logprobs_of_completions_may_be_true_or_false() -> None:
    async with served(ECHO) as (_, http):
        assert (await completion(http, logprobs=False))["choices"][0]["logprobs"] is None
        assert (await completion(http, logprobs=True))["choices"][0]["logprobs"]["tokens"] == [" up"]


class CountedId(str):
    num_compared = 0

    def __eq__(self, other: object) -> bool:
        CountedId.num_compared += 1
        return str.__eq__(self, other)

    def __hash__(self) -> int:
        return str.__hash__(self)


def test_each_result_finds_its_call_without_a_look_at_all_others() -> None:
    turns: list[Turn] = []
    for turn in range(50):
        calls = [GivenCall(GivenFunction("f"), CountedId(f"{turn}/{call}")) for call in range(40)]
        turns += [Turn("assistant", tool_calls=calls), Turn("tool", "r")]
    ids = call_ids(turns)
    assert [ids[place] for place in (1, 3, 99)] == [["0/0"], ["0/1"], ["1/9"]]
    assert CountedId.num_compared < 4_000, "with 2,000 calls"
    assert call_ids(
        [Turn("assistant", tool_calls=[GivenCall(GivenFunction("f"))] * 2), Turn("tool"), Turn("tool")]
    ) == [
        ["call00001", "call00002"],
        ["call00001"],
        ["call00002"],
    ]
