"""What the programs of this folder share: each tries one client of the HTTP API against a node, in a Python that has
that client, and prints one line of JSON: what was tried -> "ok" or what went wrong.

    PYTHON NAME.py http://127.0.0.1:7118 smollm2
"""

import enum
import gc
import json
import sys
import time
import traceback
import urllib.request
from collections.abc import Callable
from typing import Literal

import pydantic

URL, MODEL = sys.argv[1:]
STORY = "Tell me a very long story of a ship, its crew and the sea."
TOO_LONG = "word " * 20_000
CANCEL_S = 30


class Mood(enum.Enum):
    CALM = "calm"
    ANGRY = "angry"


class Place(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=20)
    country: str | None = pydantic.Field(default=None, max_length=20)


class Person(pydantic.BaseModel):
    """A person, with the kinds of types that clients spell by references."""

    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=120)
    mood: Mood
    home: Place
    trips: list[Place] = pydantic.Field(max_length=2)
    size: Literal["small", "large"]


def metric(name: str) -> float:
    with urllib.request.urlopen(f"{URL}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def num_cancelled() -> float:
    return metric('mycelia_requests_total{outcome="cancelled"')


def cancels(ask: Callable[[], object]) -> None:
    """Raises if the node does not report a cancelled request after ``ask``, which begins a stream and closes it."""
    before, end = num_cancelled(), time.monotonic() + CANCEL_S
    ask()
    gc.collect()
    while num_cancelled() == before:
        if time.monotonic() > end:
            raise AssertionError("the node did not cancel the request")
        time.sleep(0.1)


def report(*trials: Callable[[], object]) -> None:
    told = {}
    for trial in trials:
        try:
            trial()
            told[trial.__name__] = "ok"
        except Exception as error:  # what clients raise is the finding
            traceback.print_exc()
            told[trial.__name__] = f"{type(error).__name__}: {error}"[:600]
    print(json.dumps(told))
