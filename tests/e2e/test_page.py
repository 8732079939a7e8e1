"""The page of real nodes in a real browser."""

from pathlib import Path

import httpx
import pytest
import trio
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.browser import CHROMIUM, DRIVER, browser_at, open_browser, text, until
from tests.e2e.conftest import DEADLINE_S

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver: make installs them"),
]

CHAT = {"messages": [{"role": "user", "content": "Tell me about the sea. " * 20}], "max_tokens": 8}


def num_peers(browser: Chrome) -> int:
    return len(browser.find_elements(By.CSS_SELECTOR, "#map .peer"))


async def test_the_page_shows_the_swarm_and_what_becomes_of_it(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        nodes = await swarm.start_many(4, ["--model", "fake"])
        url = (await nodes[0].wait_ready()).api_url
        async with browser_at(f"{url}/#swarm", tmp_path) as browser:
            await until(browser, lambda b: num_peers(b) == 3)
            await until(browser, lambda b: text(b, "[data-fact=Peers] dd") == "3")
            assert text(browser, "#link") == "live"
            assert len(browser.find_elements(By.CSS_SELECTOR, "#peers tbody tr")) == 3
            await until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, "#map .theirs")) == 3)

            async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=DEADLINE_S) as http:
                answered = await http.post("/v1/chat/completions", json=CHAT)
            row = f"#requests [data-id='{answered.headers['x-request-id']}']"
            await until(browser, lambda b: "answered" in text(b, row))
            await until(browser, lambda b: b.find_elements(By.CSS_SELECTOR, "#tree li"))
            assert browser.find_elements(By.CSS_SELECTOR, "#ttft circle")

            nodes[3].kill()
            await until(browser, lambda b: num_peers(b) == 2)
            await until(browser, lambda b: text(b, "[data-fact=Peers] dd") == "2")

            before = browser.execute_script("return document.documentElement.dataset.theme")
            browser.find_element(By.ID, "theme").click()
            assert browser.execute_script("return document.documentElement.dataset.theme") != before
            for width in (360, 800, 1280):
                browser.execute_cdp_cmd(
                    "Emulation.setDeviceMetricsOverride",
                    {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
                )
                wide = browser.execute_script("return document.scrollingElement.scrollWidth - innerWidth")
                assert wide <= 0, f"wider than {width} pixels"


async def test_the_page_asks_for_the_key_and_says_when_the_node_is_gone(swarm: LocalSwarm, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    with trio.fail_after(2 * DEADLINE_S), open_browser(tmp_path) as browser:
        node = await swarm.start("locked", options=["--model", "fake", "--api-key-file", str(tmp_path / "keys")])
        await trio.to_thread.run_sync(browser.get, (await node.wait_ready()).api_url)
        await until(browser, lambda b: b.find_element(By.ID, "key").is_displayed())
        for key in ("a wrong one", "0123456789abcdef"):
            await until(browser, lambda b: b.find_element(By.ID, "key").is_displayed())
            browser.find_element(By.ID, "key").send_keys(key + "\n")
        await until(browser, lambda b: text(b, "#link") == "live")
        await until(browser, lambda b: "bootstrap nodes: none is known" in text(b, "#tried"))
        await node.stop()
        await until(browser, lambda b: text(b, "#link") == "the node is gone")
