"""A conversation with a swarm through OpenAI's own SDK (pip install openai), as a stream.

    python examples/chat_openai.py "Why is the sky blue?" "And at sunset?"

Every argument is a turn; each turn finds the ones before it computed. Needs a node that runs on this machine
(mycelia node), or OPENAI_BASE_URL and OPENAI_API_KEY of one elsewhere.
"""

import os
import sys

from openai import APIError, OpenAI
from openai.types.chat import ChatCompletionMessageParam


def main() -> None:
    """Ask what stands on the command line."""
    url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:7118/v1")
    client = OpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    turns: list[ChatCompletionMessageParam] = []
    try:
        model = client.models.list().data[0].id
        for question in sys.argv[1:] or ["Why is the sky blue?", "Say that in five words."]:
            turns.append({"role": "user", "content": question})
            print(f"> {question}")
            turns.append({"role": "assistant", "content": answer(client, model, turns)})
    except APIError as exc:
        sys.exit(f"{url}: {exc}; is a node running? ('mycelia node' starts one)")


def answer(client: OpenAI, model: str, turns: list[ChatCompletionMessageParam]) -> str:
    """Prints it as it comes, and then what the swarm had of its prompt."""
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
