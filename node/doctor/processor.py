"""Whether another build of llama.cpp would be faster on this machine's processor. Reads /proc/cpuinfo."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
_FLAGS = {
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA": "fma",
    "F16C": "f16c",
    "AVX_VNNI": "avx_vnni",
    "AVX512": "avx512f",
    "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
    "AMX_INT8": "amx_int8",
    "NEON": "asimd",
    "DOTPROD": "asimddp",
    "MATMUL_INT8": "i8mm",
    "SVE": "sve",
}
"""llama.cpp's name of instructions -> Linux's."""


def unused_instructions(features: Sequence[str]) -> str:
    """A hint if this processor has instructions that the build does not use, as one made on another machine; empty:
    none. features: what the build uses, by llama.cpp's names; empty: unknown."""
    flags = _flags()
    unused = [name for name, flag in _FLAGS.items() if flag in flags and name not in features]
    if not features or not unused:
        return ""
    return (
        f"llama.cpp is built without {', '.join(unused)}, which this processor has:"
        " 'make setup CMAKE_ARGS=-DGGML_NATIVE=on' builds it for this machine"
    )


def _flags() -> set[str]:
    with suppress(OSError), CPUINFO.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return set(value.split())
    return set()
