# Read by CMake at the start of llama-cpp-python's build (scripts/setup passes it). That project forces llama.cpp's
# helpers for its own command-line tools to be built; nothing in the Python package loads them, and they take a third
# of the compile time. A plain variable goes before the forced cache entry.
set(LLAMA_BUILD_COMMON OFF)
