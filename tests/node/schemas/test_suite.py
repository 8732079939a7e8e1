"""The official tests of JSON schema: each schema is enforced or refused by name."""

from collections import Counter

import pytest

from tests.node.schemas.suite import folder, outcomes


def test_every_schema_is_enforced_or_refused_by_name() -> None:
    suite = folder()
    if suite is None:
        pytest.skip("the tests of JSON schema are not there: `make nightly` fetches them")
    found = list(outcomes(suite))
    assert [outcome for outcome in found if outcome.kind == "wrong"] == []
    assert all(outcome.why for outcome in found if outcome.kind == "refused")
    counts = Counter(outcome.kind for outcome in found)
    assert counts["enforced"] / counts.total() >= 0.8
