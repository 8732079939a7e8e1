"""Backends of llama.cpp as plug-ins: where they are loaded from, and which of them cannot start."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mycelia.node.engine.child.llama.bindings import FOLDER
from mycelia.node.engine.child.llama.devices import NO_DRIVER, Ggml
from mycelia.node.engine.child.llama.models import list_backends, list_devices

STAND_IN = """
#include <stddef.h>
#include <stdio.h>
static size_t count = LINKED;
static char asked[512];
size_t ggml_backend_dev_count(void) { return 0; }
void *ggml_backend_dev_get(size_t i) { return NULL; }
const char *ggml_backend_dev_name(void *d) { return ""; }
const char *ggml_backend_dev_description(void *d) { return ""; }
int ggml_backend_dev_type(void *d) { return 0; }
void ggml_backend_dev_memory(void *d, size_t *free, size_t *total) {}
size_t ggml_backend_reg_count(void) { return count; }
void *ggml_backend_reg_get(size_t i) { return NULL; }
const char *ggml_backend_reg_name(void *r) { return "CPU"; }
void ggml_backend_load_all_from_path(const char *path) { snprintf(asked, sizeof asked, "%s", path); count += FOUND; }
const char *asked_path(void) { return asked; }
"""
"""ggml's registry with LINKED backends, and FOUND more in any folder."""


def stand_in(folder: Path, linked: int, found: int) -> ctypes.CDLL:
    library = folder / f"libllama-{linked}-{found}.so"
    flags = ["-shared", "-fPIC", f"-DLINKED={linked}", f"-DFOUND={found}"]
    subprocess.run(["cc", "-x", "c", "-", *flags, "-o", library], input=STAND_IN, text=True, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.asked_path.restype = ctypes.c_char_p
    return loaded


def test_plugins_come_from_one_folder_and_linked_backends_from_none(tmp_path: Path) -> None:
    plugins = stand_in(tmp_path, linked=0, found=2)
    Ggml(plugins).load_plugins(tmp_path)
    assert plugins.asked_path() == os.fsencode(tmp_path) and Ggml(plugins).backends() == ["CPU", "CPU"]
    linked = stand_in(tmp_path, linked=1, found=1)
    Ggml(linked).load_plugins(tmp_path)
    assert linked.asked_path() == b""


def test_without_any_backend_nothing_else_is_searched(tmp_path: Path) -> None:
    """llama.cpp itself would look in the current directory next."""
    with pytest.raises(ImportError, match="backends are missing in"):
        Ggml(stand_in(tmp_path, linked=0, found=0)).load_plugins(tmp_path)


def test_backends_that_cannot_start_are_named_with_the_reason(tmp_path: Path) -> None:
    ggml = Ggml(stand_in(tmp_path, linked=1, found=0))
    (tmp_path / "libggml-cuda.so.0").write_bytes(b"no library")
    shutil.copy(tmp_path / "libllama-1-0.so", tmp_path / "libggml-vulkan.so")
    for name in ("libggml-cpu-zen4.so", "libggml-base.so.0", "libggml-vulkan.so.txt", "libggml-new.so"):
        (tmp_path / name).touch()
    unusable = ggml.unusable(tmp_path)
    assert list(unusable) == ["CUDA", "Vulkan"]
    assert "libggml-cuda.so.0" in unusable["CUDA"] and unusable["Vulkan"] == NO_DRIVER


INTRUDERS = ("libggml-cpu.so", "libggml-cuda.so", "libggml-vulkan.so", "libggml-cpu-zen4.so", "libggml-blas.so")
MARK = "#include <stdlib.h>\n__attribute__((constructor)) static void run(void) { _Exit(77); }\n"
LOADS = """
from mycelia.node.engine.child.llama.models import list_backends
from mycelia.node.engine.child.llama.bindings import L
L.llama_backend_init()
assert "CPU" in list_backends(), list_backends()
"""


def test_the_current_directory_is_never_searched(tmp_path: Path) -> None:
    """In any build: of this one the backends are linked, or plug-ins where LLAMA_CPP_LIB_PATH names such a build."""
    compile_library = ["cc", "-x", "c", "-", "-shared", "-fPIC", "-o", f"{tmp_path}/x.so"]
    subprocess.run(compile_library, input=MARK, text=True, check=True)
    for name in INTRUDERS:
        shutil.copy(tmp_path / "x.so", tmp_path / name)
    done = subprocess.run([sys.executable, "-c", LOADS], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- builds that scripts/llama-build makes: `make generic-build` and `make cuda-build` run these --------------------

PLUGINS = sorted(path.name for path in FOLDER.glob("libggml-cpu-*.so"))
CUDA = list(FOLDER.glob("libggml-cuda.so*"))
HAS_GPU = os.path.exists("/dev/nvidia0")


@pytest.mark.skipif(not PLUGINS, reason="this build of llama.cpp has no plug-ins")
def test_the_processors_variant_is_chosen_at_run_time() -> None:
    loaded = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines() if ".so" in line}
    assert len(PLUGINS) > 1 and len(loaded.intersection(PLUGINS)) == 1, "one of several"


@pytest.mark.skipif(not CUDA or HAS_GPU, reason="this build of llama.cpp is not for CUDA, or there is a GPU")
def test_without_a_driver_cuda_has_no_devices_and_the_processor_works() -> None:
    assert "CUDA" in list_backends() and "CPU" in list_backends()
    assert not [device for device in list_devices() if device.kind == "gpu"]
