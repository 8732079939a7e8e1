"""Advice about GPU backends that do not work."""

import pytest

from mycelia.node.engine.backends import missing_library_fix, no_gpu_reason, unusable_backend

OPEN = "cannot open shared object file: No such file or directory"


def test_a_build_for_the_processor_alone_needs_no_gpu() -> None:
    assert no_gpu_reason(["CPU"]) == no_gpu_reason(["BLAS", "RPC", "CPU"]) == ""


def test_a_build_for_gpus_names_the_tools_of_their_drivers() -> None:
    assert no_gpu_reason(["CUDA", "CPU"]).endswith("look at the driver ('nvidia-smi' for NVIDIA)")
    both = no_gpu_reason(["CUDA", "Vulkan", "CPU"])
    assert "CUDA, Vulkan" in both and "nvidia-smi" in both and "vulkaninfo" in both
    assert no_gpu_reason(["ROCm", "CPU"]).endswith("look at the driver"), "a backend without a tool known here"


@pytest.mark.parametrize(
    ("name", "reason", "fix"),
    [
        ("Vulkan", f"libvulkan.so.1: {OPEN}", "libvulkan1"),
        ("Vulkan", "no driver offers a GPU", "mesa-vulkan-drivers"),
        ("CUDA", f"libcudart.so.13: {OPEN}", "CUDA=1"),
        ("CUDA", f"libcublas.so.13: {OPEN}", "CUDA=1"),
        ("CUDA", f"libcuda.so.1: {OPEN}", "NVIDIA's driver"),
    ],
)
def test_each_known_reason_has_a_fix(name: str, reason: str, fix: str) -> None:
    sentence = unusable_backend(name, reason)
    assert name in sentence and reason in sentence and fix in sentence


def test_unknown_reasons_stand_alone() -> None:
    assert missing_library_fix("Aborted") == ""
    assert unusable_backend("SYCL", "why").endswith("does not start here: why")
