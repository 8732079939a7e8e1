"""The chat of the page, in a real browser: with real nodes, and with answers made up inside the browser."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mycelia.node.local_swarm.processes import LocalSwarm
from tests.e2e.browser import CHROMIUM, DRIVER, browser_at, text, until
from tests.e2e.conftest import DEADLINE_S

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None or DRIVER is None, reason="no chromium and chromedriver: make installs them"),
]

PROMPT = "Tell me about the sea and its ships. " * 12
MADE_UP = """
const [status, headers, blocks, mode] = arguments;
window.asked = [];
const real = window.real || (window.real = window.fetch);
window.fetch = async (path, options) => {
  if (path !== "/v1/chat/completions") return real(path, options);
  window.asked.push(JSON.parse(options.body));
  if (mode === "unreachable") throw new TypeError("Failed to fetch");
  const body = new ReadableStream({ start(out) {
    for (const block of blocks) out.enqueue(new TextEncoder().encode(block));
    if (mode !== "open") { out.close(); return; }
    options.signal.addEventListener("abort", () => out.error(new DOMException("aborted", "AbortError")));
  } });
  return new Response(body, { status, headers });
};
"""
"""Replaces the page's way to the node for prompts. mode ``open``: the answer stays open until it is stopped."""
TRICKY = """<img src=x onerror="document.title='taken'"> <script>document.title='taken'</script>

[link](javascript:alert(1)) and **bold**, *thin*, `co<b>de`, 2 * 3 * 4, **open

```html
<script>document.title='taken'</script>
```
1. one
   - two
| a | b |
|---|---|
| 1 | 2 |"""


def event(**delta: str) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"


END = 'data: {"choices":[{"index":0,"delta":{},"finish_reason":"%s"}]}\n\n'
DONE = "data: [DONE]\n\n"


FAILURES: list[tuple[dict[str, Any], str]] = [
    (
        {"blocks": ['{"error":{"message":"all nodes are busy"}}'], "status": 429, "retry_after": "4"},
        "All nodes are busy. Try again in 4 s.",
    ),
    (
        {"blocks": ['{"error":{"message":"x","code":"context_length_exceeded"}}'], "status": 400},
        "longer than this model can read",
    ),
    ({"blocks": [], "mode": "unreachable"}, "The node does not answer"),
    (
        {"blocks": [event(content="Half"), 'data: {"error":{"message":"no node could answer"}}\n\n']},
        "No node could answer.",
    ),
    ({"blocks": [event(content="Half")]}, "broke before the answer ended"),
]
"""What is made up, and the words that the user sees."""


def make_up(browser: Chrome, blocks: list[str], status: int = 200, mode: str = "", **headers: str) -> None:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    browser.execute_script(MADE_UP, status, named, blocks, mode)


def say(browser: Chrome, words: str) -> None:
    browser.find_element(By.ID, "prompt").send_keys(words + Keys.ENTER)


def state(browser: Chrome) -> str:
    """The state of the last turn; empty: there is none."""
    found = browser.execute_script("return [...document.querySelectorAll('.turn')].at(-1)?.dataset.state")
    return str(found or "")


def last(browser: Chrome, selector: str) -> str:
    script = "return [...document.querySelectorAll('.turn')].at(-1)?.querySelector(arguments[0])?.innerText"
    return str(browser.execute_script(script, selector) or "")


def is_shown(browser: Chrome, name: str) -> bool:
    return browser.find_element(By.ID, name).is_displayed()


async def test_a_first_visitor_asks_with_one_text_and_one_key(swarm: LocalSwarm, tmp_path: Path) -> None:
    with trio.fail_after(2 * DEADLINE_S):
        nodes = await swarm.start_many(2, ["--model", "fake"])
        url = (await nodes[0].wait_ready()).api_url
        async with browser_at(url, tmp_path) as browser:
            await until(browser, lambda b: is_shown(b, "prompt"))
            browser.switch_to.active_element.send_keys(PROMPT + Keys.ENTER)
            await until(browser, lambda b: state(b) == "done")
            assert last(browser, ".answer")
            await until(browser, lambda b: "prompt tokens cached" in last(b, ".facts"))
            assert "served by" in last(browser, ".facts") and "fake" in last(browser, ".facts")
            assert browser.find_elements(By.CSS_SELECTOR, "#model option")

            say(browser, "And what is under it?")
            await until(browser, lambda b: len(b.find_elements(By.CSS_SELECTOR, ".turn")) == 2 and state(b) == "done")
            await until(browser, lambda b: "prompt tokens cached" in last(b, ".facts"))
            assert not last(browser, ".facts").split(" · ")[1].startswith("0 of")
            answers = [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".answer")]

            await trio.to_thread.run_sync(browser.refresh)
            await until(browser, lambda b: is_shown(b, "prompt"))
            assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".answer")] == answers
            browser.find_element(By.ID, "forget").click()
            browser.switch_to.alert.accept()
            await until(browser, lambda b: is_shown(b, "welcome"))
            assert browser.execute_script("return localStorage.getItem('chat')") is None

            browser.find_element(By.CSS_SELECTOR, "#views a[href='#swarm']").click()
            await until(browser, lambda b: is_shown(b, "map"))
            assert not is_shown(browser, "prompt")
            await trio.to_thread.run_sync(browser.get, url)
            await until(browser, lambda b: is_shown(b, "map"))  # (a visit begins where the last one ended)


async def test_the_chat_uses_the_key_and_asks_again_for_a_wrong_one(swarm: LocalSwarm, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("0123456789abcdef\n")
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("locked", options=["--model", "fake", "--api-key-file", str(tmp_path / "keys")])
        async with browser_at((await node.wait_ready()).api_url, tmp_path, "401") as browser:
            await until(browser, lambda b: is_shown(b, "key"))
            browser.find_element(By.ID, "key").send_keys("0123456789abcdef\n")
            await until(browser, lambda b: is_shown(b, "prompt"))
            browser.execute_script("key = 'another'")
            say(browser, "Hello")
            await until(browser, lambda b: is_shown(b, "key"))
            browser.find_element(By.ID, "key").send_keys("0123456789abcdef\n")
            await until(browser, lambda b: state(b) == "done")
            assert last(browser, ".answer")


async def test_what_the_chat_shows_of_answers(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Thoughts are folded, a stopped answer stays, failures are in words, and text of strangers is only text."""
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("one", options=["--model", "fake"])
        async with browser_at((await node.wait_ready()).api_url, tmp_path) as browser:
            await until(browser, lambda b: is_shown(b, "prompt"))
            title = browser.title
            make_up(
                browser,
                [
                    event(reasoning_content="Hm, "),
                    event(reasoning_content="so."),
                    event(content=TRICKY),
                    END % "stop",
                    DONE,
                ],
            )
            say(browser, "first line" + Keys.SHIFT + Keys.ENTER + Keys.NULL + "second line")
            await until(browser, lambda b: state(b) == "done")
            assert browser.execute_script("return asked[0].messages") == [
                {"role": "user", "content": "first line\nsecond line"}
            ]
            thoughts = browser.find_element(By.CSS_SELECTOR, ".thoughts")
            assert thoughts.text.startswith("Thought")
            assert not thoughts.find_element(By.TAG_NAME, "p").is_displayed()
            thoughts.find_element(By.TAG_NAME, "summary").click()
            assert "Hm, so." in thoughts.text
            shown = browser.find_element(By.CSS_SELECTOR, ".answer")
            assert (
                browser.execute_script("return document.querySelectorAll('.answer :is(img, script, a, b)').length") == 0
            )
            assert browser.title == title
            for kind, words in (
                ("strong", "bold"),
                ("em", "thin"),
                ("p code", "co<b>de"),
                ("td", "1"),
                ("ol li", "one"),
            ):
                assert shown.find_element(By.CSS_SELECTOR, kind).text == words
            assert "2 * 3 * 4, **open" in shown.text and "[link](javascript:alert(1))" in shown.text
            browser.find_element(By.CSS_SELECTOR, ".code-block .copy").click()
            await until(browser, lambda b: "Copied" in text(b, ".code-block .copy"))

            make_up(browser, [event(content="Once upon")], mode="open")
            say(browser, "A story")
            await until(browser, lambda b: last(b, ".answer") == "Once upon")
            assert is_shown(browser, "stop") and not is_shown(browser, "send")
            browser.find_element(By.ID, "prompt").send_keys(Keys.ESCAPE)
            await until(browser, lambda b: state(b) == "stopped")
            assert last(browser, ".answer") == "Once upon" and is_shown(browser, "send")

            for made_up, words in FAILURES:
                make_up(browser, **made_up)
                say(browser, "More")
                await until(browser, lambda b: state(b) == "failed")
                assert words in last(browser, ".problem")
                browser.execute_script("turns.at(-1).state = 'seen'; drawTurn(turns.at(-1))")

            make_up(browser, [event(content="Whole"), END % "length", DONE])
            browser.find_elements(By.CSS_SELECTOR, ".below button:last-child")[-1].click()
            await until(browser, lambda b: state(b) == "length")
            assert last(browser, ".answer") == "Whole"
            sent = browser.execute_script("return asked[0].messages.map((one) => one.content)")
            assert [one for one in sent if one != TRICKY] == [
                "first line\nsecond line",
                "A story",
                "Once upon",
                "More",
                "Half",
                "More",
            ]

            for width in (375, 800, 1280):
                device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
                wide = browser.execute_script("return document.scrollingElement.scrollWidth - innerWidth")
                assert wide <= 0, f"wider than {width} pixels"


async def test_hostile_answers_and_a_full_store_cost_the_page_little(swarm: LocalSwarm, tmp_path: Path) -> None:
    """Marks that never close take linear time; what is kept stays below its limit, and broken entries are ignored."""
    with trio.fail_after(2 * DEADLINE_S):
        node = await swarm.start("one", options=["--model", "fake"])
        url = (await node.wait_ready()).api_url
        async with browser_at(url, tmp_path) as browser:
            await until(browser, lambda b: is_shown(b, "prompt"))
            kinds = ["`", "``x", "*a ", "**a", "> ", "1. ", "|-", "# ", "```", " ", "***", "_", "`a*", "  -"]
            count = (
                "const at = document.createElement('div'); drawMarkdown(at, arguments[0]); return at.textContent.length"
            )
            for kind in kinds:
                for joint in ("", "\n"):
                    hostile = joint.join([kind] * 20_000)
                    assert browser.execute_script(count, hostile) <= 2 * len(hostile)
            for mark in "-#":  # (before: 40 s each)
                assert browser.execute_script(count, mark + " " * 200_000 + "x\rx") > 0
            browser.execute_script(
                "turns = Array.from({ length: 300 }, (_, n) => ({ prompt: `${n}`, answer: 'x'.repeat(30_000) }));"
                "keepTurns()"
            )
            kept = browser.execute_script("return localStorage.getItem('chat')")
            assert 1_000_000 < len(kept) <= 2_000_000 and json.loads(kept)[-1]["prompt"] == "299"
            for broken in ("{", '{"a":1}', '[null, 7, {"prompt": 5}, {"prompt": "kept", "facts": 3}]'):
                browser.execute_script("localStorage.setItem('chat', arguments[0])", broken)
                await trio.to_thread.run_sync(browser.refresh)
                await until(browser, lambda b: is_shown(b, "prompt"))
            assert [one.text for one in browser.find_elements(By.CSS_SELECTOR, ".turn .prompt")] == ["kept"]
