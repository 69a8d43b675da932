"""Pages that tools write, in headless Chromium: they ask the network for nothing, fit any width, and every text can be read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import test_report
import test_report_html
from browser import Browser
from jumar.data_prep.report_html import report_html as data_page
from jumar.eval.compare import compare, flips
from jumar.eval.report import report_html as eval_page
from jumar.eval.report_compare import Against

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FAINT = """
(() => {
  const parts = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (c) => 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  const line = (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const linear = (text) => light(parts(text).slice(0, 3).map((v) => line(v / 255)));
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (!/^rgba\\(0, 0, 0, 0\\)|^color/.test(colour)) return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  const found = [];
  for (const one of document.querySelectorAll('main *')) {
    const own = [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || one.closest('svg') || !one.getClientRects().length) continue;
    const [a, b] = [linear(getComputedStyle(one).color), linear(behind(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) found.push(one.outerHTML.slice(0, 100));
  }
  return found;
})()
"""
"""Texts whose contrast is below 4.5, WCAG 2's bound for normal text (https://www.w3.org/TR/WCAG22/#contrast-minimum)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = Browser()
    yield found
    found.close()


def assert_is_read_anywhere(browser: Browser, page: Path) -> None:
    browser.requested.clear()
    for width, dark in ((1000, False), (1000, True), (390, False), (320, True)):
        browser.open(page.as_uri(), width=width, dark=dark)
        browser.js("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert browser.js("document.documentElement.scrollWidth") <= width
        assert browser.js(FAINT) == []
    assert {url for url in browser.requested if not url.startswith("data:")} == {page.as_uri()}
    assert browser.said == []


def test_the_report_of_a_dataset(browser: Browser, tmp_path: Path) -> None:
    report = test_report_html.REPORT
    source = {**report["sources"][0], "name": "part-" * 40}
    more = {"output": "data/" + "long" * 30, "sources": [*report["sources"], source], "rejects": {"x" * 200: 9}}
    page = tmp_path / "data.html"
    page.write_text(data_page({**report, **more, "settings": {"s" * 60: "v" * 300}}), encoding="utf-8")
    assert_is_read_anywhere(browser, page)


def test_the_report_of_a_run(browser: Browser, tmp_path: Path) -> None:
    samples = [
        [test_report.choice(i, right=i != wrong, prompt="w" * 300 + "\n\n" + "Up? " * 200, text="t" * 200) for i in range(4)]
        for wrong in (1, 2)
    ]
    said = [test_report.said(0, "a" * 300, "strict-match", "[invalid]")]
    before, after = (
        test_report.written(tmp_path / name, rows) for name, rows in zip(("before" * 9, "after"), samples, strict=True)
    )
    needles = [
        {
            "doc_id": i,
            "doc": {"depth": i, "length": 10**i, "unit": "tokens"},
            "filter": "none",
            "metrics": ["keywords"],
            "keywords": 0.5,
        }
        for i in range(9)
    ]
    against = Against(str(before), compare(before, after), flips(before, after, compare(before, after), 9))
    found = {**test_report.FOUND, "model_name": "model-" * 20}
    page = tmp_path / "eval.html"
    page.write_text(eval_page(found, {"exam_ropes": samples[1], "texts": said, "needle": needles}, against=against))
    assert_is_read_anywhere(browser, page)
