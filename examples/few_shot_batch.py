"""Many questions after the same examples, in parallel, and how much of them the swarm had cached (pip install openai).

    python examples/few_shot_batch.py

Few-shot prompts suit a swarm best: the examples are computed once. Needs a node on this machine (mycelia node), or the
OPENAI_BASE_URL and OPENAI_API_KEY of another one.
"""

import asyncio
import os
import sys
import time

from openai import APIConnectionError, APIError, AsyncOpenAI

EXAMPLES = "\n\n".join(
    f"Review: {review}\nMood: {mood}"
    for review, mood in [
        ("The room was clean, the staff friendly and the breakfast the best that we had on the whole journey.", "good"),
        ("We waited an hour for cold soup, and nobody said that they were sorry.", "bad"),
        ("A small shop with a large heart: the owner explained every single tea to us.", "good"),
        ("The picture on the website must be of another hotel. There was mould behind the bed.", "bad"),
        ("My parcel came a day early, and the lamp looks even better than I had hoped.", "good"),
        ("The battery lasts for two hours at most, and the manual is in no language that I know.", "bad"),
        ("I have read it three times, and each time I found something that I had missed before.", "good"),
        ("The band played for twenty minutes and then the sound broke down for the rest of the evening.", "bad"),
    ]
)
REVIEWS = [
    "Never again.",
    "I would come back tomorrow if I could.",
    "The soup was cold and so was the waiter.",
    "What a lovely garden!",
    "It broke on the first day.",
    "The best coffee in town.",
    "Too loud to sleep.",
    "Every child in our family loves it.",
]


async def main() -> None:
    """Ask the first question alone, so that its examples are computed, then all the others at once."""
    url = os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:7118/v1")
    async with AsyncOpenAI(base_url=url, api_key=os.environ.get("OPENAI_API_KEY", "none")) as client:
        try:
            model = (await client.models.list()).data[0].id
            first = await ask(client, model, REVIEWS[0])
            rest = await asyncio.gather(*(ask(client, model, review) for review in REVIEWS[1:]))
        except APIConnectionError:
            sys.exit(f"{url}: nothing answers; is a node running? ('mycelia node' starts one)")
        except APIError as exc:
            sys.exit(f"{url}: {exc}")
    for review, (mood, cached, tokens, seconds) in zip(REVIEWS, [first, *rest], strict=True):
        print(f"{review:42} {mood:8} {cached:4} of {tokens} tokens computed before, {seconds:.2f} s")
    saved, tokens = sum(row[1] for row in rest), sum(row[2] for row in rest)
    print(f"after the first one {saved / max(tokens, 1):.0%} of all prompt tokens were not computed again")


async def ask(client: AsyncOpenAI, model: str, review: str) -> tuple[str, int, int, float]:
    """(mood, prompt tokens computed before, prompt tokens, seconds)."""
    began = time.perf_counter()
    done = await client.completions.create(
        model=model,
        prompt=f"{EXAMPLES}\n\nReview: {review}\nMood:",
        max_tokens=2,
        temperature=0,
        stop="\n",
        extra_body={"cache_salt": "public"},  # no secrets: all clients may share the cached examples
    )
    assert done.usage is not None
    details = done.usage.prompt_tokens_details
    cached = (details.cached_tokens or 0) if details else 0
    return done.choices[0].text.strip(), cached, done.usage.prompt_tokens, time.perf_counter() - began


if __name__ == "__main__":
    asyncio.run(main())
