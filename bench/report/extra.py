"""Packages that only some benchmarks need: the extra ``bench`` of setup.cfg."""

from importlib.util import find_spec

from mycelia.proto.wire.errors import LocalError


def check_extra(module: str, needed_by: str) -> None:
    """Raises LocalError, which names the fix, when ``module`` is not installed."""
    if find_spec(module) is None:
        raise LocalError(f"{needed_by} needs the package {module}: pip install 'mycelia[bench]'")
