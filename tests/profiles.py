"""The number of examples for property tests: their own, or 3,000 and more in ``make nightly``."""

from hypothesis import settings

NIGHTLY_EXAMPLES = 3_000
settings.register_profile("nightly", max_examples=NIGHTLY_EXAMPLES, deadline=None, print_blob=True)


def examples(usual: int) -> int:
    """``usual`` in ``make test``. The examples differ between runs in both; a failure prints how to repeat it."""
    return max(usual, NIGHTLY_EXAMPLES) if settings.get_current_profile_name() == "nightly" else usual
