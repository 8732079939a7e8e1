"""What follows from measured rates. Pure: the caller measures."""

FIRST_CHUNK_TOKENS = 64
"""Prefill of a step before the rate is known: 1.3 s at 50 tokens/s."""
ROWS_STEP = 64
"""Rows of a step are a multiple of this where they can: llama.cpp's attention works on tiles of 64 rows. On one core
850 tokens in steps of 64 took 5.3 s, in steps of 80 5.7 s, in steps of 32 6.9 s, in one 5.2 s."""


def prefill_budget(
    rate: float,
    num_decoding: int,
    batch_tokens: int,
    can_abort: bool = True,
    is_shared: bool = False,
    num_prefilling: int = 1,
) -> int:
    """Prefill tokens of the next step, so that a step stays short on any machine.

    A step is what a decoding request waits for its next token, and a new one for its turn: aim at 0.25 s while
    something decodes, or several prompts are computed; else at 0.5 s where requests come together (``is_shared``), and
    at 2 s where they come one by one. At 160 tokens/s (one core, 135M parameters) that is 64 rows, 64 and 320. Shorter
    steps make a cold prompt of 1,500 tokens take a tenth longer, and who comes behind it wait for 0.4 s instead of 2 to
    3 (one thread, 280 tokens/s). Where a running step cannot be ended (``can_abort`` False: on a GPU) it is also what a
    cancel waits for: 0.25 s always.
    """
    fewest = (num_decoding // ROWS_STEP + 1) * ROWS_STEP
    seconds = 0.25 if num_decoding or num_prefilling > 1 or not can_abort else 0.5 if is_shared else 2.0
    wanted = rate * seconds if rate else FIRST_CHUNK_TOKENS
    rows = max(fewest, min(wanted, batch_tokens) // ROWS_STEP * ROWS_STEP)
    return int(rows) - num_decoding
