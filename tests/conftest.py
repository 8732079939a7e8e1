"""Fixtures and output for all tests."""

import gc
import os
import sys
from collections import defaultdict
from collections.abc import Iterator

import pytest
import structlog

from tests import forked, profiles

SLOW_FIRST = ("e2e", "interop", "bench", "sim", "node")
"""Folders of tests, with the slowest files first."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exact-pairs", type=int, default=10, help="random prompt pairs of test_exact.py")
    parser.addoption("--exact-seed", type=int, default=1, help="seed of those pairs")
    parser.addoption("--full", action="store_true", help="use whole models, and a new interpreter for each process")


def pytest_configure(config: pytest.Config) -> None:
    profiles.choose(full=config.getoption("--full"))
    gc.disable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Folders with slow files come first, so that no process waits long for another at the end."""
    items.sort(key=lambda item: _rank(item.path.relative_to(item.config.rootpath).parts))


def _rank(parts: tuple[str, ...]) -> int:
    folder = parts[1] if len(parts) > 2 else ""
    return SLOW_FIRST.index(folder) if folder in SLOW_FIRST else len(SLOW_FIRST)


def pytest_collection_finish() -> None:
    """No collection of garbage looks at what was imported: it stays."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def plain_tracebacks() -> None:
    """As in ``node/log.py``: the default formatter would delay a test for tens of seconds at each error."""
    renderer = structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[*structlog.get_config()["processors"][:-1], renderer])


@pytest.fixture(autouse=True)
def log_settings_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test configures of the log ends with it: a module's logger that kept the settings of its first use would
    show later tests nothing."""
    usual, configure = structlog.get_config(), structlog.configure
    monkeypatch.setattr(
        structlog, "configure", lambda **settings: configure(**{**settings, "cache_logger_on_first_use": False})
    )
    yield
    configure(**usual)


@pytest.fixture(scope="session", autouse=True)
def nobodys_configuration() -> None:
    """Tests ignore the configuration of the user who runs them."""
    for name in [name for name in os.environ if name.startswith("MYCELIA_")]:
        del os.environ[name]
    os.environ["MYCELIA_CONFIG"] = os.devnull


@pytest.fixture(scope="session", autouse=True)
def no_terminals_size() -> None:
    """A program takes the size of its own terminal. pytest loads readline, which sets these for the workers of xdist,
    and a program prefers them."""
    for name in ("COLUMNS", "LINES"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def forked_processes(pytestconfig: pytest.Config) -> Iterator[None]:
    """Processes of tests are forked from one that has imported everything. See ``tests/forked.py``."""
    if sys.platform != "linux" or profiles.is_full():
        yield
        return
    with forked.installed():
        yield


@pytest.fixture
def fresh_processes() -> Iterator[None]:
    """Processes are started with a new interpreter, as children of the process that starts them."""
    with forked.not_installed():
        yield


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
