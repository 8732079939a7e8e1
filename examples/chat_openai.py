"""A streamed conversation with a swarm, through OpenAI's own SDK (pip install openai).

    python examples/chat_openai.py "Why is the sky blue?" "And at sunset?"

Every argument is a turn, and each turn finds the earlier ones cached. Needs a node on this machine (mycelia node), or
the OPENAI_BASE_URL and OPENAI_API_KEY of another one.
"""

import os
import sys

from openai import APIConnectionError, APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> None:
    url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:7118/v1")
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    turns: list[ChatCompletionMessageParam] = []
    try:
        model = client.models.list().data[0].id
        for question in sys.argv[1:] or ["Why is the sky blue?", "Say that in five words."]:
            turns.append({"role": "user", "content": question})
            print(f"> {question}")
            turns.append({"role": "assistant", "content": answer(client, model, turns)})
    except APIConnectionError:
        sys.exit(f"{url}: nothing answers; is a node running? ('mycelia node' starts one)")
    except APIError as exc:
        sys.exit(f"{url}: {exc}")


def answer(client: OpenAI, model: str, turns: list[ChatCompletionMessageParam]) -> str:
    """Prints the answer as it comes, and then how much of the prompt was cached."""
    stream = client.chat.completions.create(
        model=model, messages=turns, max_tokens=80, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    said = ""
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            said += chunk.choices[0].delta.content
            print(chunk.choices[0].delta.content, end="", flush=True)
        if chunk.usage and chunk.usage.prompt_tokens_details:
            cached = chunk.usage.prompt_tokens_details.cached_tokens
            print(f"\n[{cached} of {chunk.usage.prompt_tokens} prompt tokens were computed before]")
    return said


if __name__ == "__main__":
    main()
