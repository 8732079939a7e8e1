"""The defaults of ``Sampling``: llama.cpp's, and greedy. They import nothing, so that ``mycelia --help`` is quick."""

TEMPERATURE = 0.0
SEED = 0
TOP_K = 40
TOP_P = 0.95
MIN_P = 0.05
REPEAT_PENALTY = 1.0
