"""Which states of a recurrent or hybrid model are kept, so that later prompts can begin with one.

Theory. An attention layer keeps a cell per token, and any prefix of the cells can be reused. A recurrent layer keeps
one *state*, of constant size, and every token changes it: what is not saved at some length cannot be restored there. A
prompt can begin at the longest saved state of its tokens; in a hybrid model, which has both kinds of layers, also the
cells up to there must be in the cache.

    prompt     |----------------------------------------------->
    cells      |==============================|                  known
    states              ^         ^                ^
                             begins here

A state of a small model has 20 MB, as much as 400 to 1,500 of its tokens' cells. So it matters where states are saved
(Marconi, Pan et al., MLSys 2025):

- where a prompt leaves what the cache knows. This is where two prompts were seen to branch, such as after a system
  prompt; the third one begins there. The first two cannot: nobody knew the place when they were computed;
- near the end of a prompt. The same prompt again needs a state before the last token, whose logits are wanted. The next
  turn of a conversation begins with all of the last prompt if its answer had thoughts, which templates leave out
  afterwards, but not always with its last tokens, which open the answer. So the place is after the last control token,
  if that is near the end;
- at the end of an answer, for the next turn of a conversation;
- every ``EVERY_TOKENS`` of a long prompt. No prompt needs exactly that, but a first branch loses less.

Eviction is by the tokens that a state saves per byte, times the chance of reuse (``value.py``): a state saves only the
tokens after the state below it, see ``tier.py``.

No clock, no IO.
"""

EVERY_TOKENS = 512
"""Maximum distance of the states of a prompt: the prefill of so many tokens takes far longer than a copy of a state."""
NEAR_END_TOKENS = 32
"""A state before a control token is as good for the same prompt as one before the last token, if not more tokens have
to be computed again: these take about one step."""


def lengths(begin: int, num_prompt: int, known: int, turn: int = 0, grid: int = 1) -> tuple[int, ...]:
    """The lengths, ascending, at which the state of a prompt of ``num_prompt`` tokens is saved while it is computed
    from ``begin`` on. known: tokens of the prompt that the cache knew; turn: the length after the last control token;
    grid: lengths are multiples of it."""
    last = turn if num_prompt - NEAR_END_TOKENS <= turn < num_prompt else num_prompt - 1
    wanted = {known, last, *range(begin // EVERY_TOKENS * EVERY_TOKENS, num_prompt, EVERY_TOKENS)}
    cut = {length // grid * grid for length in wanted}
    return tuple(sorted(length for length in cut if begin < length < num_prompt))
