"""Clients that people use, against a swarm of two real nodes: what they send is understood, what they get they take."""

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from mycelia.node.local_swarm.processes import LocalNode, LocalSwarm
from tests.e2e.conftest import DEADLINE_S, becomes_idle
from tests.node.engine.gguf_files import quick_model

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).parents[2] / "examples"
LONG = "Answer in one word. " + "The ship left the harbour at dawn and the crew sang until the coast was gone. " * 8
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {"place": {"type": "string", "maxLength": 20}},
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}


async def two_nodes(swarm: LocalSwarm, model: Path | str) -> tuple[LocalNode, LocalNode, str]:
    """Two connected nodes, and the address of the second gateway."""
    options = ["--model", str(model), "--threads", "1"]
    first = await swarm.start("first", options=options)
    second = await swarm.start("second", [await first.address()], options)
    info = await second.wait_ready()
    await first.wait_peers(1)
    await second.wait_peers(1)
    return first, second, f"{info.api_url}/v1"


async def test_openais_own_sdk(swarm: LocalSwarm) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        first, second, url = await two_nodes(swarm, "smollm2")
        await trio.to_thread.run_sync(use_sdk, url)
        peers = {(await node.wait_ready()).peer for node in (first, second)}
        first_url = (await first.wait_ready()).api_url + "/v1"
        assert await trio.to_thread.run_sync(ask_for_headers, first_url) in peers
        await trio.to_thread.run_sync(lambda: asyncio.run(use_async_sdk(url)))
        await becomes_idle(second)


def use_sdk(url: str) -> None:
    import openai
    from pydantic import BaseModel

    class Person(BaseModel):
        name: str
        age: int

    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        assert [(model.id, getattr(model, "nodes", 0)) for model in client.models.list()] == [("smollm2", 2)]
        turns: Any = [{"role": "user", "content": LONG}]
        whole = client.chat.completions.create(model="smollm2", messages=turns, max_tokens=8, temperature=0)
        assert whole.choices[0].message.content and whole.usage is not None and whole.usage.completion_tokens <= 8
        stream = client.chat.completions.create(
            model="smollm2",
            messages=turns,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole.choices[0].message.content
        assert chunks[-1].usage is not None and chunks[-1].usage.prompt_tokens_details is not None
        assert chunks[-1].usage.prompt_tokens_details.cached_tokens, "the same prompt again"
        wanted: Any = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
            "tools": [WEATHER],
            "tool_choice": "required",
            "max_tokens": 60,
            "temperature": 0,
        }
        called = client.chat.completions.create(**wanted)
        assert called.choices[0].finish_reason == "tool_calls" and called.choices[0].message.tool_calls
        function = called.choices[0].message.tool_calls[0].function
        assert function.name == "get_weather" and json.loads(function.arguments).keys() == {"place"}
        with client.chat.completions.stream(**wanted) as events:
            deltas = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
            streamed = events.get_final_completion().choices[0].message.tool_calls
        assert streamed and json.loads(streamed[0].function.arguments).keys() == {"place"}
        assert "".join(delta.arguments_delta for delta in deltas) == streamed[0].function.arguments
        turns += [
            called.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": called.choices[0].message.tool_calls[0].id, "content": "rain"},
        ]
        then = client.chat.completions.create(
            model="smollm2",
            messages=turns,
            tools=[WEATHER],
            max_tokens=8,
        )
        assert then.choices[0].finish_reason in {"stop", "length", "tool_calls"}
        person = client.chat.completions.parse(
            model="smollm2",
            messages=[{"role": "user", "content": "Invent a person."}],
            response_format=Person,
            max_tokens=100,
            temperature=0,
        )
        assert isinstance(person.choices[0].message.parsed, Person)
        texts = client.completions.create(model="smollm2", prompt="Once upon a", max_tokens=4, logprobs=2, n=2)
        assert len(texts.choices) == 2 and texts.choices[1].logprobs is not None
        vectors = client.embeddings.create(model="smollm2", input=["a cat", "a kitten"])
        assert [len(row.embedding) for row in vectors.data] == [576, 576] and vectors.usage.total_tokens > 2
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.chat.completions.create(model="gpt-9", messages=turns)
        with pytest.raises(openai.BadRequestError, match="tokens"):
            client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "a " * 20_000}])
        with client.chat.completions.create(model="smollm2", messages=turns, max_tokens=500, stream=True) as endless:
            next(iter(endless))


def ask_for_headers(url: str) -> str:
    import openai

    with openai.OpenAI(base_url=url, api_key="none") as client:
        turns: Any = [{"role": "user", "content": LONG}]
        # (a node that is late on a busy machine may be avoided for a while)
        for _ in range(8):
            raw = client.chat.completions.with_raw_response.create(model="smollm2", messages=turns, max_tokens=1)
            if int(raw.headers["x-mycelia-cached-tokens"]):
                break
        assert int(raw.headers["x-mycelia-cached-tokens"]) > 100 and int(raw.headers["x-mycelia-ttft-ms"]) >= 0
        return raw.headers["x-mycelia-served-by"]


async def use_async_sdk(url: str) -> None:
    import openai

    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

        async def ask(number: int) -> str:
            turns: Any = [{"role": "user", "content": f"Count from {number}."}]
            stream = await client.chat.completions.create(
                model="smollm2", messages=turns, max_tokens=8, stream=True, temperature=0
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert all(await asyncio.gather(*map(ask, range(4))))


async def run(*command: str, **environment: str) -> str:
    done = await trio.run_process(
        command, capture_stdout=True, capture_stderr=True, check=False, env=os.environ | environment
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def test_curl_llm_and_langchain(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        _, second, url = await two_nodes(swarm, "smollm2")
        body = {"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        if shutil.which("curl"):
            said = await run(
                "curl", "-sS", f"{url}/chat/completions", "-H", "Content-Type: application/json", "-d", json.dumps(body)
            )
            assert json.loads(said)["choices"][0]["message"]["content"]
            streamed = await run(
                "curl",
                "-sSN",
                f"{url}/chat/completions",
                "-H",
                "Content-Type: application/json",
                "-d",
                json.dumps(body | {"stream": True}),
            )
            assert streamed.endswith("data: [DONE]\n\n")

        (tmp_path / "llm").mkdir()
        (tmp_path / "llm" / "extra-openai-models.yaml").write_text(
            f"- model_id: swarm\n  model_name: smollm2\n  api_base: {url}\n  supports_schema: true\n"
        )
        llm = str(Path(sys.executable).with_name("llm"))
        place = {"LLM_USER_PATH": str(tmp_path / "llm"), "LLM_LOAD_PLUGINS": "", "OPENAI_API_KEY": "none"}
        assert (await run(llm, "-m", "swarm", "-o", "max_tokens", "8", "Say hello.", **place)).strip()

        await trio.to_thread.run_sync(use_langchain, url)
        await becomes_idle(second)


def use_langchain(url: str) -> None:
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    model = ChatOpenAI(model="smollm2", base_url=url, api_key=SecretStr("none"), temperature=0, max_completion_tokens=8)
    said = model.invoke("Say hello.")
    assert said.content and said.usage_metadata is not None and said.usage_metadata["output_tokens"] <= 8
    assert "".join(str(chunk.content) for chunk in model.stream("Say hello.")) == said.content
    calls = ChatOpenAI(model="smollm2", base_url=url, api_key=SecretStr("none"), temperature=0).bind_tools(
        [WEATHER], tool_choice="get_weather"
    )
    (call,) = calls.invoke("What is the weather in Paris?").tool_calls
    assert call["name"] == "get_weather" and call["args"].keys() == {"place"}


async def test_the_examples_run_as_they_stand(swarm: LocalSwarm) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        _, _, url = await two_nodes(swarm, quick_model())
        place = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}
        talk = await run(sys.executable, str(EXAMPLES / "chat_openai.py"), "Say hello.", "And bye.", **place)
        assert talk.count("prompt tokens were computed before]") == 2
        batch = await run(sys.executable, str(EXAMPLES / "few_shot_batch.py"), **place)
        assert batch.count("tokens computed before") == 8 and "not computed again" in batch
        saved = int(batch.splitlines()[-1].split("%")[0].split()[-1])
        assert saved > 50
        nowhere = await trio.run_process(
            [sys.executable, str(EXAMPLES / "chat_openai.py")],
            env=os.environ | {"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        assert nowhere.returncode == 1 and b"is a node running?" in nowhere.stderr


async def test_the_example_swarm_goes_on_without_the_node_that_it_kills() -> None:
    with trio.fail_after(2 * DEADLINE_S):
        told = await run(sys.executable, str(EXAMPLES / "local_swarm.py"), "3", "--model", "fake")
    assert told.count("asked at") == 4 and told.count("killed node-") == 1


@pytest.mark.nightly  # (tests/e2e/test_private_swarm.py gives the same commands)
async def test_the_private_swarm_admits_whom_it_invited_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        told = await run(str(EXAMPLES / "private_swarm.sh"), MODEL="fake", TMPDIR=str(tmp_path))
    assert "\nmycelia1" in told and "online" in told and "this invitation has been used up" in told
    assert "mycelia: no node could be reached" in told and "is removed from home" in told
    assert os.listdir(tmp_path) == []
    commands = [str(process.info["cmdline"]) for process in psutil.process_iter(["cmdline"])]
    assert not [command for command in commands if str(tmp_path) in command]
