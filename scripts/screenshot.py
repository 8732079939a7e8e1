"""Makes docs/dashboard.png, of a real swarm in Debian's chromium: ``make screenshot``. With a folder as its argument,
it writes the picture there, with those of the dark page and of a phone."""

import sys
import tempfile
from pathlib import Path

import httpx
import trio
from selenium.webdriver import Chrome

from mycelia.node.local_swarm.processes import open_local_swarm
from tests.e2e.browser import open_browser

LOOKS = {"dashboard": (1280, 1150, "light"), "dashboard-dark": (1280, 1150, "dark"), "phone": (390, 2400, "light")}
"""Name -> width, height and theme."""
COMMITTED = "dashboard"
SHARED = [
    "You solve short word problems. " + "Anna has 12 apples and gives 5 to Ben. 12 - 5 = 7. " * 9,
    "You sort reviews of a hotel into good and bad. " + "The room was spotless and quiet: good. " * 11,
    "You name the tone of a sentence. " + "The birds sing and the kettle is on: happy. " * 12,
]


async def ask(url: str, question: str) -> None:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24}
    async with httpx.AsyncClient(timeout=120) as http:
        (await http.post(f"{url}/v1/chat/completions", json=body)).raise_for_status()


def shoot(browser: Chrome, folder: Path, name: str) -> None:
    width, height, theme = LOOKS[name]
    browser.execute_script(f"localStorage.setItem('theme', '{theme}'); paint();")
    browser.set_window_size(width, height)
    browser.execute_script("window.scrollTo(0, 0)")
    browser.save_screenshot(str(folder / f"{name}.png"))


async def main(folder: Path, is_all: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        async with open_local_swarm(Path(root)) as swarm:
            nodes = await swarm.start_many(5, ["--threads", "1"])
            urls = [(await node.wait_ready()).api_url for node in nodes]
            with open_browser(Path(root)) as browser:
                await trio.to_thread.run_sync(browser.get, f"{urls[0]}/#swarm")
                for number in range(18):
                    entry = urls[0] if number % 3 or number < 3 else urls[1 + number % 4]
                    await ask(entry, SHARED[number % len(SHARED)] + f" Question {number}: what comes next?")
                    await trio.sleep(1)
                async with trio.open_nursery() as nursery:  # (so that the page shows running requests)
                    for number in range(4):
                        nursery.start_soon(ask, urls[0], SHARED[number % 3] + f" Tell a story about {number} ships.")
                    await trio.sleep(1.5)
                for name in LOOKS if is_all else [COMMITTED]:
                    await trio.to_thread.run_sync(shoot, browser, folder, name)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1] if len(sys.argv) > 1 else "docs"), len(sys.argv) > 1)
