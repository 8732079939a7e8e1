"""What follows from measured rates. Pure: the caller measures."""

FIRST_CHUNK_TOKENS = 256
"""Prefill of a step before the rate is known."""
ROWS_STEP = 64
"""Rows of a step are a multiple of this where they can: llama.cpp's attention works on tiles of 64 rows. On one core
850 tokens in steps of 64 took 5.3 s, in steps of 80 5.7 s, in steps of 32 6.9 s, in one 5.2 s."""


def prefill_budget(rate: float, num_decoding: int, batch_tokens: int, can_abort: bool = True) -> int:
    """Prefill tokens of the next step, so that a step stays short on any machine.

    A step is what a decoding request waits for its next token, and a new one for its turn: aim at 0.25 s while
    something decodes, 2 s otherwise. At 160 tokens/s (one core, 135M parameters) that is 64 rows and 320 rows.
    Where a running step cannot be ended (``can_abort`` False: on a GPU) it is also what a cancel waits for: 0.25 s
    always.
    """
    fewest = (num_decoding // ROWS_STEP + 1) * ROWS_STEP
    wanted = rate * (0.25 if num_decoding or not can_abort else 2.0) if rate else FIRST_CHUNK_TOKENS
    rows = max(fewest, min(wanted, batch_tokens) // ROWS_STEP * ROWS_STEP)
    return int(rows) - num_decoding
