"""A real browser without a window, for the tests of the page."""

import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import trio
from selenium.webdriver import Chrome, ChromeOptions, ChromeService

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


@contextmanager
def open_browser(folder: Path) -> Iterator[Chrome]:
    """Debian's chromium with its own profile in ``folder``; its console is recorded."""
    options = ChromeOptions()
    assert CHROMIUM is not None and DRIVER is not None
    options.binary_location = CHROMIUM
    # (as root in a container there is no sandbox and little shared memory)
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(argument)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = Chrome(options, ChromeService(DRIVER))
    try:
        yield browser
    finally:
        browser.quit()


@asynccontextmanager
async def browser_at(url: str, folder: Path, expected: str = "favicon") -> AsyncIterator[Chrome]:
    """A page that must have no error on its console at the end. expected: errors with this text are none."""
    with open_browser(folder) as browser:
        await trio.to_thread.run_sync(browser.get, url)
        yield browser
        entries = browser.get_log("browser")  # type: ignore[no-untyped-call]
        assert [entry for entry in entries if expected not in entry["message"]] == []


def text(browser: Chrome, selector: str) -> str:
    """The text of the first such element, empty if there is none. In one call: the page redraws itself often."""
    found = browser.execute_script("return document.querySelector(arguments[0])?.innerText", selector)
    return str(found or "")


async def until(browser: Chrome, holds: Callable[[Chrome], object]) -> None:
    """Each check asks the browser in a thread; the test's deadline bounds it."""
    while not await trio.to_thread.run_sync(holds, browser):
        pass
