"""How much a run of the tests does: the usual, or more in ``make nightly``."""

from hypothesis import settings

NIGHTLY_EXAMPLES = 3_000
settings.register_profile("nightly", max_examples=NIGHTLY_EXAMPLES, deadline=None, print_blob=True)


_full = False


def choose(*, full: bool) -> None:
    """full: the option --full of pytest."""
    global _full
    _full = full


def is_full() -> bool:
    """Whether tests use whole models, and each process is a new interpreter's."""
    return _full


def examples(usual: int) -> int:
    """``usual`` in ``make test``. The examples differ between runs in both; a failure prints how to repeat it."""
    return max(usual, NIGHTLY_EXAMPLES) if settings.get_current_profile_name() == "nightly" else usual
