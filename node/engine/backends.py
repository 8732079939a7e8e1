"""Advice for people when a GPU backend of llama.cpp does not work on their machine. Pure: callers look at the machine.

A backend is CUDA, Vulkan and so on. One that is a plug-in may fail to start alone; one that is linked takes the whole
library with it when a shared library that it needs is missing.
"""

from collections.abc import Sequence

BUILD_CUDA = "'make node CUDA=1' builds it for NVIDIA GPUs"
BUILD_VULKAN = "'make node VULKAN=1' builds it for GPUs of AMD, Intel and others"

_NO_GPU_BACKENDS = ("CPU", "BLAS", "RPC")
_TOOLS = {"CUDA": "'nvidia-smi' for NVIDIA", "Vulkan": "'vulkaninfo --summary' for Vulkan"}
_LIBRARY_FIXES = {
    "libvulkan.so": "install Vulkan's loader (Debian: libvulkan1, Fedora: vulkan-loader)",
    "libcudart.so": "'make setup CUDA=1' installs CUDA's libraries",
    "libcublas": "'make setup CUDA=1' installs CUDA's libraries",
    "libcuda.so": "install NVIDIA's driver",
}
_DRIVER_FIXES = {
    "CUDA": "install NVIDIA's driver; then 'nvidia-smi' lists the GPU",
    "Vulkan": "install a driver (mesa-vulkan-drivers for AMD and Intel); then 'vulkaninfo --summary' lists the GPU",
}


def no_gpu_reason(backends: Sequence[str]) -> str:
    """What to look at when a build for GPUs sees none; empty for a build for the processor alone."""
    built = [name for name in backends if name not in _NO_GPU_BACKENDS]
    if not built:
        return ""
    tools = " or ".join(_TOOLS[name] for name in built if name in _TOOLS)
    where = f"the driver ({tools})" if tools else "the driver"
    return f"llama.cpp is built for {', '.join(built)} but sees no GPU here: look at {where}"


def missing_library_fix(message: str) -> str:
    """What installs the shared library that the loader's ``message`` names; empty: none of those known here."""
    return next((fix for library, fix in _LIBRARY_FIXES.items() if library in message), "")


def unusable_backend(name: str, reason: str) -> str:
    """A sentence for a backend that did not start, with what helps."""
    fix = missing_library_fix(reason) or _DRIVER_FIXES.get(name, "")
    return f"llama.cpp is built for {name}, which does not start here: {reason}{fix and f'; {fix}'}"
