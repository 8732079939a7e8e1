"""The prefill budget of a step. Pure: the caller measures the rates."""

FIRST_CHUNK_TOKENS = 64
"""Prefill tokens of a step while the rate is unknown: 1.3 s at 50 tokens/s."""
ROWS_STEP = 64
"""The number of rows of a step is a multiple of this if possible: llama.cpp's attention uses tiles of 64 rows. On one
core 850 tokens took 5.3 s in steps of 64, 5.7 s in steps of 80, 6.9 s in steps of 32, and 5.2 s in one step."""


def prefill_budget(
    rate: float,
    num_decoding: int,
    batch_tokens: int,
    can_abort: bool = True,
    is_shared: bool = False,
    num_prefilling: int = 1,
) -> int:
    """The number of prefill tokens of the next step, such that a step stays short on any machine.

    A decoding request waits one step for its next token, and a new request waits for the end of the running step. The
    target is 0.25 s while any request decodes or several prompts are computed; else 0.5 s where requests overlap
    (``is_shared``), and 2 s where they come one by one. At 160 tokens/s (one core, 135M parameters) that is 64, 64 and
    320 rows. With shorter steps a cold prompt of 1,500 tokens takes a tenth longer, but the next request waits 0.4 s
    instead of 2 to 3 s (one thread, 280 tokens/s). If a running step cannot be aborted (``can_abort`` False: on a GPU),
    a cancel waits for it, too: the target is always 0.25 s.
    """
    fewest = (num_decoding // ROWS_STEP + 1) * ROWS_STEP
    seconds = 0.25 if num_decoding or num_prefilling > 1 or not can_abort else 0.5 if is_shared else 2.0
    wanted = rate * seconds if rate else FIRST_CHUNK_TOKENS
    rows = max(fewest, min(wanted, batch_tokens) // ROWS_STEP * ROWS_STEP)
    return int(rows) - num_decoding
