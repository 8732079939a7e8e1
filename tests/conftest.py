"""Fixtures and output for all tests."""

import os
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest
import structlog

import tests.profiles  # noqa: F401  registers hypothesis profiles, before any test module is read


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exact-pairs", type=int, default=10, help="random prompt pairs of test_exact.py")
    parser.addoption("--exact-seed", type=int, default=1, help="seed of those pairs")


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """As in ``node/log.py``: the default formatter would delay a test for tens of seconds at each error."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(scope="session", autouse=True)
def nobodys_configuration() -> None:
    """Tests ignore the configuration of the user who runs them."""
    for name in [name for name in os.environ if name.startswith("MYCELIA_")]:
        del os.environ[name]
    os.environ["MYCELIA_CONFIG"] = os.devnull


@pytest.fixture(scope="session", autouse=True)
def close_what_llama_cpp_opened() -> Iterator[None]:
    """llama.cpp's package opens /dev/null twice on import and never closes it; the interpreter complains."""
    yield
    utils = sys.modules.get("llama_cpp._utils")
    if utils is not None:
        utils.outnull_file.close()
        utils.errnull_file.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each reason why tests could not run on this machine, and one for each figure that tests recorded."""
    files: dict[str, list[str]] = defaultdict(list)
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        files[reason.removeprefix("Skipped: ")].append(report.nodeid.partition("::")[0])
    if files:
        terminalreporter.section("not run on this machine", sep="-")
    for reason, where in sorted(files.items()):
        terminalreporter.line(f"{reason}: {len(where)} in {', '.join(sorted(set(where)))}")
    figures = {
        f"{name}: {value}" for report in terminalreporter.getreports("passed") for name, value in report.user_properties
    }
    for figure in sorted(figures):
        terminalreporter.line(figure)
