"""Prompts in the usual 5-shot form of MMLU (Hendrycks et al., arXiv 2009.03300): a prefix shared by all questions of a
subject, and a question that no other prompt has.

The real texts come from a folder with ``mmlu.jsonl`` or ``mmlu.jsonl.gz``, a question a line, as {"split": "dev" or
"test", "subject", "question", "choices": four texts, "answer": "A" to "D"}. Without it, texts are made of common words,
with prefixes as long as the 57 real ones.
"""

import gzip
import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Literal

import msgspec

from mycelia.proto.wire.errors import LocalError
from mycelia.sim.workload import MMLU_PREFIX_TOKENS, MMLU_QUESTION_TOKENS

FILES = ("mmlu.jsonl.gz", "mmlu.jsonl")
SHOTS = 5
_HEAD = "The following are multiple choice questions (with answers) about {}.\n\n"
_WORDS = """the of and to in is that it was for on are as with his they at be this from have or by one had not but what
    all were when we there can an your which their said if do will each about how up out them then she many some so
    these would other into has more her two like him see time could no make than first been its who now people my
    made over did down only way find use may water long little very after words called just where most know"""
"""One token each in common vocabularies."""


class _Row(msgspec.Struct):
    split: Literal["dev", "test"]
    subject: str
    question: str
    choices: list[str]
    answer: str


@dataclass(frozen=True)
class Subject:
    name: str
    prefix: str
    questions: Sequence[str]
    """Each ends where the answer has to follow."""


def load_subjects(folder: Path) -> list[Subject]:
    """The real subjects, by name. Raises LocalError for a folder without them."""
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if path is None:
        raise LocalError(f"{folder} has no {' and no '.join(FILES)}; without --data the prompts are made up")
    rows: dict[str, dict[str, list[_Row]]] = {}
    try:
        for line in _lines(path):
            row = msgspec.json.decode(line, type=_Row)
            rows.setdefault(row.subject, {"dev": [], "test": []})[row.split].append(row)
    except (OSError, EOFError, msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise LocalError(f"{path} is no MMLU: {exc}") from exc
    subjects = [
        Subject(
            name,
            _HEAD.format(name.replace("_", " ")) + "".join(_text(row, True) for row in split["dev"][:SHOTS]),
            [_text(row, False) for row in split["test"]],
        )
        for name, split in sorted(rows.items())
        if split["test"]
    ]
    if not subjects:
        raise LocalError(f"{path} has no questions of the split 'test'")
    return subjects


def made_up_subjects(num_questions: int, seed: int) -> list[Subject]:
    """57 subjects of the real lengths, with ``num_questions`` each."""
    rng = random.Random(seed)  # noqa: S311  no secret

    low, high = MMLU_QUESTION_TOKENS // 2, MMLU_QUESTION_TOKENS * 3 // 2
    subjects = []
    for number, num_tokens in enumerate(MMLU_PREFIX_TOKENS):
        name = f"subject {number}"
        prefix = _HEAD.format(name)
        prefix += words(num_tokens - len(prefix.split()), rng) + "\n\n"
        questions = [words(rng.randint(low, high), rng) + "\nAnswer:" for _ in range(num_questions)]
        subjects.append(Subject(name, prefix, questions))
    return subjects


def words(count: int, rng: random.Random) -> str:
    """A text of ``count`` common words, each a token in most vocabularies."""
    return " ".join(rng.choices(_WORDS.split(), k=count))


def draw_prompts(subjects: Sequence[Subject], count: int, zipf: float, rng: random.Random) -> list[str]:
    """Subjects by Zipf's law, in an order of popularity that is drawn too. A question is asked again only after all
    others of its subject."""
    order = rng.sample(subjects, len(subjects))
    weights = list(accumulate((rank + 1) ** -zipf for rank in range(len(order))))
    left: dict[str, list[str]] = {}
    prompts = []
    for _ in range(count):
        subject = order[bisect(weights, rng.random() * weights[-1])]
        if not left.get(subject.name):
            left[subject.name] = rng.sample(subject.questions, len(subject.questions))
        prompts.append(subject.prefix + left[subject.name].pop())
    return prompts


def _text(row: _Row, with_answer: bool) -> str:
    choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", row.choices, strict=False))
    return f"{row.question}{choices}\nAnswer:" + (f" {row.answer}\n\n" if with_answer else "")


def _lines(path: Path) -> Iterator[bytes]:
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        yield from file
