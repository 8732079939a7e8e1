# CMake reads this at the start of llama-cpp-python's build (scripts/setup passes it). That build forces llama.cpp's
# helpers for command-line tools to be built. Nothing in the Python package loads them, and they take a third of the
# compile time. A plain variable has priority over the forced cache entry.
set(LLAMA_BUILD_COMMON OFF)
