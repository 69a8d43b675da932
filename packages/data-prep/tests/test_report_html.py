"""The report page: well formed, closed to the world, inert whatever the data holds, and with the numbers in sight."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jumar.data_prep.report_html import report_html
from jumar.data_prep.svg import histogram, ticks

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"' &amp; \x00\x1b[31m\u202e\ud800\u2028"
REPORT: dict[str, Any] = {
    "tool": "jumar-data",
    "command": "sft",
    "version": "0.1.0",
    "output": "data/alpaca",
    "settings": {"tokenizer": "/models/Qwen3-8B", "seq_len": 2048, "pack": True, "seed": None},
    "records": {"read": 52210, "kept": 51820, "rejected": 182, "blank": 3, "truncated": 412, "split": 190, "dropped": 208},
    "rejects": {"not JSON": 3, "no assistant turn": 179},
    "sources": [
        {"name": "b.jsonl", "records": 22, "kept": 20, "rejected": 2, "tokens": 1_230_000, "trained": 610_000, "bytes": 10},
        {"name": "a.jsonl", "records": 30, "kept": 30, "rejected": 0, "tokens": 9_310_221, "trained": 4_010_000, "bytes": 31},
    ],
    "tokens": {"total": 10_540_221, "trained": 4_620_000, "padding": 310_000, "lost": 211_000},
    "lengths": {
        "edges": [0, 1024, 2048, 3072], "counts": [51000, 700, 120],
        "min": 8, "max": 2900, "mean": 369.4, "p50": 268, "p90": 740, "p99": 1738, "seq_len": 2048,
    },
    "label_share": {"edges": [0, 0.5, 1], "counts": [40000, 11820]},
    "packing": {
        "samples": 7676, "sub_samples": 51900, "efficiency": 0.9803, "lower_bound": 7525,
        "per_sample": {"edges": [6, 7, 8], "counts": [4000, 3676]},
    },
    "duplicates": {"records": 521, "share": 0.01, "estimated": True},
    "samples": [{"source": "a.jsonl", "line": 7, "segments": [["<|user|>\n  Hi\tyou ", False], ["Hello<|end|>", True]]}],
}  # fmt: skip
TITLES = {
    "records": "What became of every record",
    "tokens": "What the tokens are for",
    "lengths": "How long samples are",
    "label_share": "How much of a sample is trained on",
    "packing": "How well samples are packed",
    "sources": "Where the tokens come from",
    "rejects": "Why records were left out",
    "duplicates": "Duplicates",
    "samples": "What the model will see",
    "settings": "Settings",
}


class Page(HTMLParser):
    """Reads a page and asserts that every tag is closed where it should be."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ("rect", "line")  # of SVG
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data


def assert_closed(page: str) -> Page:
    """Well formed, nothing of another place, nothing that runs."""
    read = Page(page)
    page.encode("utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a"} & set(read.tags)
    names = {name for _, attributes in read.attributes for name in attributes}
    assert not {n for n in names if n.startswith("on") or n in ("src", "href", "style", "xlink:href", "action")}
    (style,) = re.findall("<style>(.*?)</style>", page, re.DOTALL)
    assert not re.search(r"url\(|@import|//|<", style)
    return read


def test_a_whole_report() -> None:
    page = report_html(REPORT)
    read = assert_closed(page)
    assert not re.search("https?:|//", page)
    assert page == report_html(REPORT)
    for text in TITLES.values():
        assert text in read.text
    for number in (
        "51,820",
        "52,210",
        "10.5\u202fM",
        "4.62\u202fM",
        "43.8%",
        "98.0%",
        "268",
        "1,738",
        "2,900",
        "seq_len 2,048",
        "7,676",
    ):
        assert number in read.text
    for number in (
        "412",
        "190",
        "208",
        "179",
        "310,000",
        "211,000",
        "9.31\u202fM",
        "88.3%",
        "51,000",
        "4,000",
        "521",
        "jumar-data sft",
    ):
        assert number in read.text
    assert read.text.index("a.jsonl") < read.text.index("b.jsonl")
    assert "seed" not in read.text
    charts = [attributes for tag, attributes in read.attributes if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) >= 9
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)


def test_what_the_model_sees_is_marked_and_its_white_space_shown() -> None:
    page = report_html(REPORT)
    assert "&lt;|user|&gt;<i>↵</i>\n<i>··</i>Hi<i>→</i>\tyou<i>·</i><mark>Hello&lt;|end|&gt;</mark>" in page


@pytest.mark.parametrize("key", TITLES)
@pytest.mark.parametrize("gone", ["absent", "None", "empty"])
def test_what_is_not_there_has_no_section(key: str, gone: str) -> None:
    report = dict(REPORT)
    if gone == "absent":
        del report[key]
    else:
        report[key] = None if gone == "None" else type(REPORT[key])()
    text = assert_closed(report_html(report)).text
    assert TITLES[key] + "\n" not in text
    assert all(title in text for other, title in TITLES.items() if other != key)


def test_nothing_at_all() -> None:
    assert "No records were read." in assert_closed(report_html({})).text
    zero = {"records": {"read": 0, "kept": 0}, "tokens": {"total": 0}, "lengths": {"edges": [0, 64], "counts": [0], "p50": None}}
    assert "NaN" not in report_html(zero)


def test_hostile_texts_are_inert() -> None:
    samples = [{"source": HOSTILE, "line": 1, "segments": [[HOSTILE, False], [HOSTILE, True]]}]
    sources = [{**REPORT["sources"][0], "name": HOSTILE}]
    report = {
        **REPORT, "output": HOSTILE, "command": HOSTILE, "rejects": {HOSTILE: 2}, "sources": sources, "samples": samples,
        "settings": {HOSTILE: HOSTILE, "url": "https://example.com/x", "list": [HOSTILE]},
    }  # fmt: skip
    read = assert_closed(report_html(report))
    assert read.text.count("<script>alert(1)</script>") >= 7
    assert "␀␛[31m\\u202e\\ud800\\u2028" in read.text


@given(st.text(alphabet=st.characters()), st.text(alphabet="<>&\"'/ \n\t\r\x00;script-![]"))
def test_any_text_is_inert(name: str, text: str) -> None:
    samples = [{"source": name, "line": 1, "segments": [[text, False], [name, True]]}]
    assert_closed(report_html({**REPORT, "samples": samples, "settings": {text: name}}))


def test_a_thousand_sources() -> None:
    sources = [
        {"name": f"part-{i:04d}", "records": 1, "kept": 1, "rejected": 0, "tokens": 10**12 - i, "trained": i, "bytes": 9}
        for i in range(1000)
    ]
    text = assert_closed(report_html({**REPORT, "sources": sources})).text
    assert "part-0019" in text
    assert "part-0020" not in text
    assert "980 smaller sources" in text
    assert "980\u202fT" in text


def test_records_that_nobody_accounts_for_are_shown() -> None:
    assert "not accounted for 10" in report_html({**REPORT, "records": {"read": 100, "kept": 80, "dropped": 10}})


def test_what_was_dropped_is_shown_once() -> None:
    records, rejects = {"read": 100, "kept": 80, "dropped": 15, "rejected": 5}, {"longer than --seq-len": 15, "not JSON": 5}
    page = report_html({"records": records, "rejects": rejects})
    assert 'aria-label="Records: kept whole 80; left out: longer than --seq-len 15; left out: not JSON 5"' in page
    page = report_html({"records": records, "rejects": {"not JSON": 5}})
    assert 'aria-label="Records: kept whole 80; dropped 15; rejected: not JSON 5"' in page


def test_a_long_sample_is_cut_and_says_so() -> None:
    samples = [{"source": "a", "line": 1, "segments": [["x" * 5000, False], ["y" * 5000, True]]}]
    page = report_html({**REPORT, "samples": samples})
    assert "y" * 1000 + "</mark><em> … 4,000 more characters" in page
    assert "y" * 1001 not in page


@given(st.integers(1, 10**15))
def test_ticks_are_few_and_reach_the_top(top: int) -> None:
    levels = ticks(top)
    assert levels[0] == 0
    assert 2 <= len(levels) <= 6
    assert levels[-1] >= top
    assert all(float(level).is_integer() for level in levels)


def test_a_histogram_of_many_bars_is_drawn_with_fewer_and_counts_all() -> None:
    drawn = histogram("x", list(range(302)), [1] * 301, x_title="a", y_title="b")
    heights = [int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", drawn)]
    assert len(heights) <= 60
    assert sum(heights) == 301


def test_bars_beyond_the_limit_stand_out() -> None:
    drawn = histogram("x", [0, 10, 20, 30], [3, 2, 1], x_title="a", y_title="b", line=(20, "limit 20"))
    assert re.findall(r'rect class="(\S+)"', drawn) == ["fill-main", "fill-main", "fill-warn"]
    assert 'class="limit" x1="66.67%"' in drawn
