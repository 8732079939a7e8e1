"""What clients do before and around a prompt, against a real node: OpenAI's SDK, LangChain, HTTPS, other addresses."""

import gzip
import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.conftest import DEADLINE_S, ask, run_mycelia
from tests.node.serve.http.test_tls import make_certificate, trusting

pytestmark = pytest.mark.e2e

CHAT: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2, "temperature": 0}


async def test_openais_sdk_and_langchain_know_the_errors_and_the_aliases(
    swarm: LocalSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    with trio.fail_after(DEADLINE_S):
        options = ["--model", "fake", "--alias", "gpt-4o-mini=fake", "--allow-host", "node.example"]
        url = (await (await swarm.start("asked", options=options)).wait_ready()).api_url
        await trio.to_thread.run_sync(use_sdk, url)
        await trio.to_thread.run_sync(use_azures_sdk, url)
        await trio.to_thread.run_sync(use_responses, url)
        await trio.to_thread.run_sync(use_anthropics_sdk, url)
        await trio.to_thread.run_sync(use_langchain, url, monkeypatch)
        await use_http(url)


# (the clients are imported in the functions: the processes that only collect this file would take seconds for them)


def use_sdk(url: str) -> None:
    import openai

    too_long: Any = [{"role": "user", "content": "a b " * 20_000}]
    short = CHAT["messages"]
    for base_url in (f"{url}/v1", url, f"{url}//v1/"):
        with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["fake", "gpt-4o-mini"]
            assert client.models.retrieve("gpt-4o-mini").id == "gpt-4o-mini"
            told = client.chat.completions.create(model="gpt-4o-mini", messages=short, max_tokens=2, temperature=0)
            assert told.model == "gpt-4o-mini" and told.choices[0].message.content
            with pytest.raises(openai.NotFoundError, match=r"`gpt-9` does not exist.*Served: fake") as missing:
                client.chat.completions.create(model="gpt-9", messages=short)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError, match=r"maximum context length is \d+ tokens") as long:
                client.chat.completions.create(model="fake", messages=too_long)
            assert long.value.code == "context_length_exceeded"
            with pytest.raises(openai.NotFoundError, match=r"there is no path (/v1)?/images/generations"):
                client.images.generate(prompt="a cat")


def use_azures_sdk(url: str) -> None:
    """It has the model in the path, and sends the key as ``api-key``."""
    import openai

    with openai.AzureOpenAI(azure_endpoint=url, api_key="none", api_version="2024-10-21") as client:
        told = client.chat.completions.create(model="fake", messages=CHAT["messages"], max_tokens=2, temperature=0)
        assert told.choices[0].message.content


def use_responses(url: str) -> None:
    import openai
    from langchain_openai import ChatOpenAI
    from pydantic import SecretStr

    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        first = client.responses.create(model="fake", input="I am Ada.", max_output_tokens=5, temperature=0)
        assert first.output_text and first.usage is not None and first.usage.output_tokens == 5
        with client.responses.stream(
            model="fake", input="Who am I?", previous_response_id=first.id, max_output_tokens=5, temperature=0
        ) as stream:
            events: list[Any] = list(stream)
        text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events[-1].type == "response.incomplete", "it is cut off by max_output_tokens"
        last = events[-1].response
        assert last.output_text == text and last.usage is not None
        assert last.usage.input_tokens > first.usage.input_tokens, "it goes on from the first"
        assert client.responses.retrieve(first.id).output_text == first.output_text
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            client.responses.create(model="gpt-9", input="x")
        chat = ChatOpenAI(model="fake", base_url=f"{url}/v1", api_key=SecretStr("none"), use_responses_api=True)
        assert chat.invoke("hello", max_tokens=4, temperature=0).text


def use_anthropics_sdk(url: str) -> None:
    """Only where it is installed: the set-up does not install it."""
    if importlib.util.find_spec("anthropic") is None:
        return
    anthropic: Any = importlib.import_module("anthropic")
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as client:
        turns = [{"role": "user", "content": "hello"}]
        whole = client.messages.create(model="gpt-4o-mini", max_tokens=5, messages=turns)
        assert whole.content[0].text and whole.usage.output_tokens == 5 and whole.stop_reason == "max_tokens"
        with client.messages.stream(model="fake", max_tokens=5, messages=turns) as stream:
            text = "".join(stream.text_stream)
            assert stream.get_final_message().content[0].text == text
        assert client.messages.count_tokens(model="fake", messages=turns).input_tokens > 1
        with pytest.raises(anthropic.NotFoundError, match="gpt-9"):
            client.messages.create(model="gpt-9", max_tokens=5, messages=turns)
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
            client.messages.create(model="fake", max_tokens=5, messages=[{"role": "user", "content": "a b " * 20_000}])
        assert [model.id for model in client.models.list()] == ["fake", "gpt-4o-mini"]


def use_langchain(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its default client for embeddings makes token ids, with a vocabulary that it downloads otherwise."""
    import openai
    import tiktoken
    from langchain_core.exceptions import ContextOverflowError
    from langchain_openai import ChatOpenAI, OpenAIEmbeddings
    from pydantic import SecretStr

    ranks = {bytes([byte]): byte for byte in range(256)}
    encoding = tiktoken.Encoding("bytes", pat_str=r"[\s\S]", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "encoding_for_model", lambda _: encoding)
    settings: Any = {"model": "fake", "base_url": f"{url}/v1", "api_key": SecretStr("none")}
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        OpenAIEmbeddings(**settings).embed_query("a cat")
    vectors = OpenAIEmbeddings(**settings, check_embedding_ctx_length=False)
    assert vectors.embed_query("a cat") == vectors.embed_documents(["a dog", "a cat"])[1]
    with pytest.raises(openai.BadRequestError, match="no shorter ones"):
        OpenAIEmbeddings(**settings, check_embedding_ctx_length=False, dimensions=2).embed_query("a cat")
    with pytest.raises(ContextOverflowError):  # (it looks for words in the message)
        ChatOpenAI(**settings).invoke("a b " * 20_000)


async def use_http(url: str) -> None:
    """By IPv6, by another name, compressed, and as ``curl -d`` sends it."""
    port = httpx.URL(url).port
    async with httpx.AsyncClient(trust_env=False, timeout=DEADLINE_S) as http:
        body = gzip.compress(json.dumps(CHAT).encode())
        bases = [url, *([f"http://[::1]:{port}"] if has_ipv6() else [])]
        for base in bases:
            assert (await http.get(f"{base}/health")).json() == {"status": "ok"}
            headers = {"content-encoding": "gzip", "content-type": "application/x-www-form-urlencoded"}
            headers |= {"user-agent": "curl/8", "host": f"node.example:{port}"}
            told = await http.post(f"{base}/v1/chat/completions", content=body, headers=headers)
            assert told.status_code == 200 and told.json()["usage"]["completion_tokens"]
        props = (await http.get(f"{url}/props")).json()
        (model, _) = (await http.get(f"{url}/models")).json()["data"]
        assert model["max_model_len"] == props["default_generation_settings"]["n_ctx"] > 0


def has_ipv6() -> bool:
    addresses = Path("/proc/net/if_inet6")
    return addresses.exists() and "0" * 31 + "1" in addresses.read_text()


async def test_https_serves_clients_and_the_commands_on_this_machine(swarm: LocalSwarm, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    with trio.fail_after(DEADLINE_S):
        node = await swarm.start("sealed", options=["--model", "fake", "--tls-cert", str(cert), "--tls-key", str(key)])
        url = (await node.wait_ready()).api_url
        assert url.startswith("https://")
        async with httpx.AsyncClient(base_url=url, verify=trusting(cert), trust_env=False) as http:
            assert (await http.get("/health")).json() == {"status": "ok"}
            streamed = await http.post("/v1/chat/completions", json=CHAT | {"stream": True})
            assert streamed.text.endswith("data: [DONE]\n\n")
        assert (await ask(node, "hello", "--max-tokens", "2", "--temperature", "0")).answered.completion_tokens
        assert '"model"' in (await run_mycelia("status", "--json", "--data-dir", str(node.data_dir))).stdout
        other, _ = make_certificate(tmp_path, "other")
        cert.write_bytes(other.read_bytes())
        refused = await run_mycelia("status", "--data-dir", str(node.data_dir))
        assert refused.returncode == 1 and "does not answer" in refused.stderr, "another program may be at the port"
    wrong = await run_mycelia("node", "--model", "fake", "--tls-cert", str(cert), "--tls-key", str(key))
    assert wrong.returncode == 2 and "is not that of the certificate" in wrong.stderr
