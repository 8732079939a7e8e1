# CMake reads this at the start of llama-cpp-python's build (scripts/setup passes it). That build forces llama.cpp's
# helpers for command-line tools to be built. Nothing in the Python package loads them, and they take a third of the
# compile time. A plain variable has priority over the forced cache entry.
set(LLAMA_BUILD_COMMON OFF)

# This processor's instructions, but not GCC's scheduling for it. On a Zen 4 with GCC 12, -march=native alone prefills
# 12 % slower (SmolLM2 135M Q4_1, 850 tokens, one thread: 149 against 168 tokens per CPU second) and decodes no faster.
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  add_compile_options("$<$<COMPILE_LANGUAGE:C,CXX>:-mtune=generic>")
endif()

# CUDA's libraries from the package index lie where the system's loader does not look: beside this package, or where
# scripts/llama.sh put them.
if(MYCELIA_CUDA_LIBRARIES)
  foreach(kind SHARED MODULE)
    string(APPEND CMAKE_${kind}_LINKER_FLAGS
           " -Wl,-rpath,'$ORIGIN/../../nvidia/cu13/lib' -Wl,-rpath,'${MYCELIA_CUDA_LIBRARIES}'")
  endforeach()
endif()
