"""The server's chat page, driven in headless Chromium as a person drives it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import infer_models
from browser import Browser
from serving import KEY, Running, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HTML = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
CODE = "def knot(rope):  # " + "wide " * 80
CHAINS = {
    "hello": ["A jumar", " goes up", " and never", " slips back."],
    "html": [HTML, "\n", "<b>That</b> was HTML."],
    "code": ["So: ", "`loop`", " and ", "**pull**", ".\n```python\n", CODE, "\n```\n", "Done."],
    "long": [f"{'x' * 300}{i}\n" for i in range(60)],
    "forever": ["on ", "and ", "on "],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("page")
    infer_models.talker(home / "hf", CHAINS, max_position_embeddings=100_000)
    return home / "hf"


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Iterator[Running]:
    running = start(model, tmp_path, "--max-tokens", "90000", "--cache-tokens", "100000")
    yield running
    running.process.kill()
    running.process.wait()


@pytest.fixture
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


def ask(browser: Browser, text: str, *, wait: bool = True) -> None:
    notes = len(browser.text(".note"))
    browser.click("#text")
    browser.type(text)
    browser.press("Enter")
    if wait:
        browser.until(lambda: len(browser.text(".note")) > notes and browser.text("#send") == ["Send"])


def test_a_conversation(server: Running, browser: Browser, tmp_path: Path) -> None:
    browser.open(server.url)
    browser.until(lambda: browser.text(".error") == ["the API key is wrong or missing"])
    browser.until(lambda: browser.js("document.activeElement.id") == "key")
    browser.type(KEY)
    browser.press("Escape")
    browser.click("#text")
    browser.press("Enter", shift=True)
    assert browser.js("document.querySelector('#text').value") == "\n"
    ask(browser, "hello")
    assert browser.text("article") == ["hello", "A jumar goes up and never slips back."]
    assert browser.js("document.title") == "tiny"
    assert not browser.text(".error")
    ask(browser, "html")
    assert browser.text("article")[-1] == f"{HTML}\n<b>That</b> was HTML."
    assert browser.js("document.title") == "tiny"
    assert browser.js("document.querySelectorAll('main img, main script, main b').length") == 0
    ask(browser, "code")
    assert browser.text("article code") == ["loop", CODE]
    assert browser.text("article strong") == ["pull"]
    browser.screenshot(tmp_path / "talk.png")
    browser.press("Tab")
    browser.press("Enter")  # on Send, with nothing to send
    assert len(browser.text("article")) == 6
    browser.click("#clear")
    assert browser.text("main > *") == []
    ask(browser, "hello")
    assert server.metric("prompt_tokens_total") == 4  # the template takes the last message alone
    assert {urlsplit(url).netloc for url in browser.requested} == {urlsplit(server.url).netloc}
    assert [said for said in browser.said if "401" not in said] == []


def test_stop_and_errors(server: Running, browser: Browser) -> None:
    browser.open(server.url)
    browser.until(lambda: browser.text(".error"))
    browser.type("wrong")
    ask(browser, "hello", wait=False)
    browser.until(lambda: browser.text("#send") == ["Send"] and browser.text(".error"))
    assert browser.js("document.querySelector('#text').value") == "hello"
    assert browser.text("article") == []
    browser.js(f"key.value = '{KEY}', longest.value = 90000")
    for how in ("button", "key", "clear"):
        browser.js("document.querySelector('#text').value = ''")
        ask(browser, "forever", wait=False)
        browser.until(lambda: len((browser.text("article") or [""])[-1]) > 60)
        assert browser.js("talk.getAttribute('aria-busy')") == "true"
        assert server.metric("requests_running") == 1
        browser.press("Escape") if how == "key" else browser.click("#send" if how == "button" else "#clear")
        browser.until(lambda: browser.text("#send") == ["Send"])
        server.settles()
        if how == "clear":
            assert browser.text("main > *") == []
        else:
            assert browser.text(".note")[-1] == "stopped"
            assert not browser.text(".error")
    ask(browser, "forever", wait=False)
    browser.until(lambda: len(browser.text("article")[-1:]) == 1 and len(browser.text("article")[-1]) > 60)
    server.process.kill()
    browser.until(lambda: browser.text(".error"))
    assert browser.text(".note")[-1].endswith("broken off")
    ask(browser, "hello", wait=False)
    browser.until(lambda: browser.text(".error") == ["The server cannot be reached. Is it still running?"])
    assert browser.js("document.querySelector('#text').value") == "hello"


@pytest.mark.parametrize("width, dark", ((320, True), (1400, False)))
def test_nothing_is_wider_than_the_window(server: Running, browser: Browser, tmp_path: Path, width: int, dark: bool) -> None:
    browser.open(server.url, width=width, dark=dark)
    browser.until(lambda: browser.text(".error"))
    browser.type(KEY)
    for text in ("long", "code", "hello"):
        ask(browser, text)
    browser.screenshot(tmp_path / "page.png")
    assert browser.js("document.documentElement.scrollWidth") == width
    assert browser.js("talk.scrollHeight - talk.scrollTop - talk.clientHeight") < 2
    ground = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 150) == dark
    browser.js("talk.scrollTop = 0")
    ask(browser, "forever", wait=False)
    browser.until(lambda: browser.js("talk.getAttribute('aria-busy')") == "true")
    browser.js("talk.scrollTop = 0")  # who reads further up is left there
    browser.until(lambda: len(browser.text("article")[-1]) > 300)
    assert browser.js("talk.scrollTop") == 0
