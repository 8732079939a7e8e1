"""How many examples the property tests try: their own number, or 3,000 and more in ``make nightly``."""

from hypothesis import settings

NIGHTLY_EXAMPLES = 3_000
settings.register_profile("nightly", max_examples=NIGHTLY_EXAMPLES, deadline=None, print_blob=True)


def examples(usual: int) -> int:
    """``usual`` in ``make test``. Chance differs from run to run in both; a failure prints how to see it again."""
    return max(usual, NIGHTLY_EXAMPLES) if settings.get_current_profile_name() == "nightly" else usual
