"""The scripts that build llama.cpp: what they ask for on which machine, and the wheel that is left."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from scripts.slim_wheel import slim, wanted_libraries

ROOT = Path(__file__).parents[1]
TOOLS = ("bash", "uname", "sed", "grep", "sort", "head", "wc", "tail", "dirname", "cat", "ls", "id")


def machine(folder: Path, **programs: str) -> dict[str, str]:
    """The environment of a machine that has a few of this one's tools, and ``programs`` with these scripts."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None
        (bin_ / name).symlink_to(found)
    for name, script in programs.items():
        path = bin_ / name.replace("_", "-")
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
    return {"PATH": f"{bin_}", "HOME": str(folder)}


def look(command: str, environment: dict[str, str], **variables: str) -> tuple[int, str]:
    """The exit status and the output of a function of ``scripts/llama.sh``."""
    script = f". scripts/steps.sh; . scripts/llama.sh; set -eu; cores=2; {command}"
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**environment, "options": "-DGGML_CUDA=on", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def cards(*capabilities: str, driver: str = "580.65.06") -> str:
    """A stand-in for nvidia-smi on a machine with these GPUs."""
    return f"case $1 in *compute_cap) printf '%s\\n' {' '.join(capabilities)} ;; *) echo {driver} ;; esac"


FOUND = 'look_for_cuda; echo "wheels=$cuda_wheels $cuda_arch minutes=$cuda_minutes"'


def test_cuda_without_a_toolkit_is_for_the_cards_that_are_there(tmp_path: Path) -> None:
    status, output = look(FOUND, machine(tmp_path, nvidia_smi=cards("8.6", "12.0", "8.6")))
    assert status == 0 and output == "wheels=1 -DCMAKE_CUDA_ARCHITECTURES=120-real;86-real minutes=94\n"


def test_cuda_for_other_cards_needs_none_here(tmp_path: Path) -> None:
    environment = machine(tmp_path)
    status, option = look('cuda_architectures "8.6;89, 120a"', environment)
    assert (status, option) == (0, "-DCMAKE_CUDA_ARCHITECTURES=86-real;89-real;120a-real")
    status, output = look(FOUND, environment, options=f"-DGGML_CUDA=on {option}")
    assert status == 0 and output == "wheels=1  minutes=141\n"


def test_an_installed_toolkit_is_used(tmp_path: Path) -> None:
    whole = machine(tmp_path, nvcc="exit 0")
    status, output = look(FOUND, whole)
    assert status == 0 and f"the CUDA toolkit of {tmp_path}/bin/nvcc" in output and "wheels= " in output
    (tmp_path / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")  # It finds no cuBLAS.
    assert look(FOUND, whole)[0] == 2, "so it would come from the index, and there is no GPU"


@pytest.mark.parametrize(
    ("programs", "words"),
    [
        ({}, "sees no NVIDIA GPU"),
        ({"nvidia_smi": "echo NVIDIA-SMI has failed because it has no driver; exit 9"}, "sees no NVIDIA GPU"),
        ({"nvidia_smi": cards("6.1")}, "compute capability 6.1, 7.5 is the least: take Vulkan: make node VULKAN=1"),
        ({"nvidia_smi": cards("8.6", driver="535.183.01")}, "driver 535.183.01 is too old for CUDA 13"),
        ({"nvidia_smi": cards("8.6"), "uname": "echo Darwin arm64"}, "for Darwin arm64 the package index has none"),
    ],
    ids=["no driver", "no card", "old card", "old driver", "other system"],
)
def test_cuda_that_cannot_work_is_one_line(tmp_path: Path, programs: dict[str, str], words: str) -> None:
    status, output = look(FOUND, machine(tmp_path, **programs))
    assert status == 2 and words in output and output.count("\n") == 1


@pytest.mark.parametrize("archs", ["sm_86", "8", "8.6x", "-1"])
def test_capabilities_that_are_none_are_refused(tmp_path: Path, archs: str) -> None:
    status, output = look(f"cuda_architectures '{archs}'", machine(tmp_path))
    assert status == 2 and archs.replace(".", "") in output


def test_vulkan_names_the_packages_that_are_missing(tmp_path: Path) -> None:
    """No header can be found where there is no compiler."""
    environment = machine(tmp_path)
    status, output = look("look_for_vulkan; demand_packages", environment)
    assert (
        status == 2 and "missing: glslc, a compiler of shaders, Vulkan's loader and headers, SPIR-V's headers" in output
    )
    assert "Debian's names: glslc libvulkan-dev spirv-headers" in output
    (tmp_path / "bin" / "dnf").symlink_to("/bin/true")
    assert "sudo dnf install -y glslc vulkan-loader-devel" in look("look_for_vulkan; demand_packages", environment)[1]


def test_a_missing_driver_of_vulkan_is_one_line(tmp_path: Path) -> None:
    if [*Path("/").glob("usr/share/vulkan/icd.d/*.json"), *Path("/").glob("etc/vulkan/icd.d/*.json")]:
        pytest.skip("this machine has a driver of Vulkan")
    environment = machine(tmp_path)
    status, output = look("name_missing_driver", environment)
    assert status == 0 and "mesa-vulkan-drivers" in output and output.count("\n") == 1
    assert look("name_missing_driver", environment, VK_ICD_FILENAMES="/some.json") == (0, "")


# --- the wheel -------------------------------------------------------------------------------------------------------


def test_each_library_is_kept_once_by_the_name_that_is_asked_for() -> None:
    names = [
        f"{stem}.so{version}" for stem in ("libllama", "libggml", "libggml-base") for version in ("", ".0", ".0.5.0")
    ]
    names += ["libggml-cpu-zen4.so", "libggml-cpu-x64.so", "libggml-vulkan.so", "ggml.txt"]
    assert wanted_libraries(names) == {
        "libllama.so",
        "libggml.so.0",
        "libggml-base.so.0",
        "libggml-cpu-zen4.so",
        "libggml-cpu-x64.so",
        "libggml-vulkan.so",
    }


def test_a_slim_wheel_is_whole(tmp_path: Path) -> None:
    wheel, info = tmp_path / "llama_cpp_python-1-py3-none-any.whl", "llama_cpp_python-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llama_cpp/__init__.py", "A = 1\n")
        archive.writestr("llama_cpp/py.typed", "")
        for name in ("libllama.so", "libllama.so.0", "libggml.so", "libggml.so.0", "libggml.so.0.1.0"):
            archive.writestr(f"llama_cpp/lib/{name}", name)
        for name in ("lib/libllama.so", "include/llama.h", "bin/convert.py", "llama_cpp/lib/cmake/llama/x.cmake"):
            archive.writestr(name, name)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "old")
    slim(wheel, tmp_path / "lib")
    assert sorted(os.listdir(tmp_path)) == ["lib", wheel.name]
    assert sorted(os.listdir(tmp_path / "lib")) == ["libggml.so.0", "libllama.so"]
    kept = zipfile.ZipFile(wheel)
    assert kept.testzip() is None
    listed = {line.split(",")[0] for line in kept.read(f"{info}/RECORD").decode().splitlines()}
    assert listed == set(kept.namelist()) and len(listed) == 7
    assert kept.read("llama_cpp/lib/libggml.so.0") == b"libggml.so.0"
