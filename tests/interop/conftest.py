"""What tests of clients share with the end-to-end tests."""

from tests.e2e.conftest import swarm

__all__ = ["swarm"]
