"""Scores 50 multiple-choice items by lm-evaluation-harness, through a node. A program of its own
for a Python that has lm_eval; prints JSON. ``test_lm_eval.py`` runs it.

    python lm_eval_run.py http://127.0.0.1:7118/v1/completions FOLDER ITEMS_WITHOUT_CACHE
"""

import json
import random
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import lm_eval  # type: ignore[import-not-found]
from lm_eval.models.openai_completions import LocalCompletionsAPI  # type: ignore[import-not-found]
from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

NUM_ITEMS, NUM_SHOTS = 50, 5
KINDS = {
    "animal": ["horse", "cat", "dog", "sheep", "goat", "rabbit", "fox", "wolf", "bear", "lion"],
    "colour": ["red", "blue", "green", "yellow", "black", "white", "brown", "orange", "purple", "pink"],
    "fruit": ["apple", "pear", "plum", "cherry", "peach", "grape", "lemon", "melon", "fig", "mango"],
    "tool": ["hammer", "saw", "drill", "chisel", "plane", "file", "wrench", "pliers", "axe", "spade"],
    "metal": ["iron", "copper", "gold", "silver", "tin", "lead", "zinc", "nickel", "steel", "bronze"],
    "tree": ["oak", "beech", "birch", "pine", "elm", "maple", "willow", "ash", "cedar", "larch"],
}
STORY = "Four words are given, and three of them belong together. Read them slowly, think of what each of them means, "
STORY += "and name the one that does not belong to the others. The words are"


def make_items(folder: Path) -> None:
    chance = random.Random(25)
    items = []
    for _ in range(NUM_ITEMS + NUM_SHOTS):
        kind, other = chance.sample(sorted(KINDS), 2)
        words = [*chance.sample(KINDS[kind], 3), chance.choice(KINDS[other])]
        choices = chance.sample(words, 4)
        question = f"{STORY} {', '.join(choices)}. Which one does not belong to the others?"
        items.append({"question": question, "choices": choices, "answer": choices.index(words[3])})
    for name, part in (("items", items[:NUM_ITEMS]), ("shots", items[NUM_ITEMS:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in part))
    text = (Path(__file__).parent / "lm_eval_task" / "task.yaml").read_text()
    for name in ("items", "shots"):
        text = text.replace(f"{name}.jsonl", str(folder / f"{name}.jsonl"))
    (folder / "task.yaml").write_text(text)


class WithoutCache(LocalCompletionsAPI):  # type: ignore[misc]
    """The same requests, none of which may reuse what another one computed."""

    def _create_payload(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return {**super()._create_payload(*args, **kwargs), "cache_salt": uuid.uuid4().hex}


def score(
    kind: type[LocalCompletionsAPI], url: str, folder: Path, limit: int | None = None, **options: Any
) -> dict[str, Any]:
    model = kind(model="smollm2", base_url=url, tokenizer_backend="auto", **options)
    manager, began = TaskManager(include_path=str(folder), include_defaults=False), time.monotonic()
    results = lm_eval.simple_evaluate(
        model,
        tasks=["mycelia_odd_one"],
        task_manager=manager,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
        cache_requests=False,
    )
    wall_s = time.monotonic() - began
    (scores,) = results["results"].values()
    (samples,) = results["samples"].values()
    samples.sort(key=lambda sample: sample["doc_id"])
    values = [[response[0][0] for response in sample["resps"]] for sample in samples]
    asked = [[list(arguments) for arguments in sample["arguments"]] for sample in samples]
    accuracies = {name: scores[f"{name},none"] for name in ("acc", "acc_norm")}
    return {"wall_s": wall_s, "num_items": len(samples), **accuracies, "values": values, "asked": asked}


def main(url: str, folder: Path, num_uncached: int) -> None:
    make_items(folder)
    told = {
        "cached": score(LocalCompletionsAPI, url, folder),
        "uncached": score(WithoutCache, url, folder, limit=num_uncached),
        "at_once": score(LocalCompletionsAPI, url, folder, limit=num_uncached, batch_size=8),
    }
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
