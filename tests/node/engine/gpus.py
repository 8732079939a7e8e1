"""The GPUs of the machine that runs the tests, and the time limits that suit them.

`make gpu-test` offers Mesa's lavapipe, a Vulkan device that computes on the processor: 12 tokens of prefill or 2 of an
answer per CPU second. A kernel for a new number of rows is compiled first, which takes up to 43 CPU seconds.
"""

import pytest

from mycelia.node.engine.child.llama.models import find_gpus
from mycelia.node.engine.sizing import Offload

GPUS = find_gpus(Offload())
SOFTWARE = any("llvmpipe" in gpu.description for gpu in GPUS)
"""Whether a GPU is none, but a program on the processor."""
LIMIT_S = 900 if SOFTWARE else 120
"""Time limit of a test."""

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not GPUS, reason="llama.cpp is not built for a GPU, or sees none"),
]
