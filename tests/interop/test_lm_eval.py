"""lm-evaluation-harness, whose multiple choice reads the logprobs of prompts: the same scores as llama.cpp alone, and
what prompts share is computed once.

It runs in a Python that has lm_eval: that of `make interop`, or another one named by MYCELIA_LM_EVAL.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest
import trio

from mycelia.node.engine.child.job import REPORT_ROWS
from mycelia.node.engine.models import resolve_model
from mycelia.node.local_swarm.processes import open_local_swarm
from mycelia.proto.cache.radix import common_prefix

pytestmark = pytest.mark.interop

INSTALLED = Path(__file__).parents[2] / ".venv" / "clients" / "lm_eval_client" / "bin" / "python"
PYTHON = os.environ.get("MYCELIA_LM_EVAL") or (str(INSTALLED) if INSTALLED.exists() else "")
PROGRAM = Path(__file__).parent / "lm_eval_run.py"
NUM_UNCACHED = 10
"""Items that are also scored without any reuse: the time of an item is compared."""
CLOSE = 0.5
"""Largest difference of a choice's logprob from llama.cpp alone: its sums depend on the places of the cells."""


@pytest.mark.skipif(not PYTHON, reason="needs lm_eval: set MYCELIA_LM_EVAL to a Python that has lm_eval[api]")
async def test_scores_and_time_of_fifty_items(tmp_path: Path) -> None:
    with trio.fail_after(1_800):
        async with open_local_swarm(tmp_path) as swarm:
            node = await swarm.start("only", options=["--threads", "1"])
            url = (await node.wait_ready()).api_url + "/v1/completions"
            command = [PYTHON, str(PROGRAM), url, str(tmp_path), str(NUM_UNCACHED)]
            offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
            run = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.DEVNULL, env={**os.environ, **offline}
            )
    told = json.loads(run.stdout.splitlines()[-1])
    check(told, alone(told["cached"]["asked"]))


def check(told: dict[str, Any], expected: list[list[float]]) -> None:
    cached, uncached, at_once = told["cached"], told["uncached"], told["at_once"]
    assert cached["num_items"] == 50 and uncached["num_items"] == NUM_UNCACHED
    for run in (cached, uncached, at_once):
        for values, others in zip(run["values"], expected, strict=False):
            assert np.allclose(values, others, atol=CLOSE)
    for values, others in zip(cached["values"], expected, strict=True):
        best = int(np.argmax(values))
        assert best == np.argmax(others) or max(others) - others[best] < CLOSE / 2, "another choice, and no near tie"
    ratio = (cached["wall_s"] / cached["num_items"]) / (uncached["wall_s"] / uncached["num_items"])
    print(f"wall against no prefix cache: {ratio:.2f}; accuracy {cached['acc']}, {cached['acc_norm']} normalized")  # noqa: T201  the figures
    assert ratio <= 0.5


def alone(asked: list[list[list[str]]]) -> list[list[float]]:
    """The logprob of each choice of each item by llama.cpp's bindings."""
    model = llama_cpp.Llama(str(resolve_model("smollm2")), n_ctx=2048, logits_all=True, verbose=False, flash_attn=True)
    return [[_logprob(model, context, choice) for context, choice in item] for item in asked]


def _logprob(model: llama_cpp.Llama, context: str, choice: str) -> float:
    start = len(model.tokenize(context.encode(), special=True))
    tokens = model.tokenize((context + choice).encode(), special=True)
    model.n_tokens = min(
        common_prefix(tokens, model.input_ids[: model.n_tokens].tolist()), start - 1, max(len(tokens) - REPORT_ROWS, 0)
    )
    model.eval(tokens[model.n_tokens :])
    rows = model.scores[start - 1 : len(tokens) - 1].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return float(sum(rows[place, token] for place, token in enumerate(tokens[start:])))
