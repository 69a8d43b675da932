"""Pages: closed to the world, inert whatever they are given, and how numbers are written."""

from __future__ import annotations

import re

import pytest

from jumar.schema.page import esc, esc_lines, figures, folded, num, page, section, share, table

HOSTILE = "</script></style><script>alert(1)</script><img src=x onerror=alert(1)>\"' &amp; \x00\x1b[31m\u202e\ud800\u2028"


def whole(**words: object) -> str:
    body = [section("Scores", "", figures([("1", "a", "")]), folded("more", table(("a", "b"), [("c", "1")]))), ""]
    return page("title", body, about="scores", **words)  # type: ignore[arg-type]


def test_the_same_page_twice() -> None:
    assert whole() == whole()
    assert "<title>title: scores</title>" in whole()
    assert '<p class="lede">' not in whole()
    assert '<p class="lede">so</p>' in whole(lede="so")
    assert '<h1 class="long">' in page("t" * 61, [], about="a")


@pytest.mark.parametrize("images", [False, True])
def test_nothing_of_another_place_is_asked_for(images: bool) -> None:
    found = whole(images=images)
    assert not re.search(r"https?:|url\(|@import|<script|<link", found)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', found)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'" + "; img-src data:" * images


@pytest.mark.parametrize(
    ("value", "text", "tick"),
    [
        (0, "0", "0"), (1.25, "1.25", "1.25"), (999_999, "999,999", "1\u202fM"), (1_000_000, "1\u202fM", "1\u202fM"),
        (1_234_567, "1.23\u202fM", "1.23\u202fM"), (3.4e9, "3.4\u202fB", "3.4\u202fB"), (999_999_999, "1\u202fB", "1\u202fB"),
        (15_000, "15,000", "15\u202fk"), (5e18, "5,000\u202fP", "5,000\u202fP"),
    ],
)  # fmt: skip
def test_numbers(value: float, text: str, tick: str) -> None:
    assert (num(value), num(value, tick=True)) == (text, tick)


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [(0, 5, "0%"), (5, 5, "100%"), (1, 10**6, "under 0.1%"), (10**6 - 1, 10**6, "over 99.9%"), (1, 3, "33.3%"), (1, 0, "0%")],
)
def test_shares(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert esc("a\x7f\x85\u200bb<") == "a␡\\u0085\\u200bb&lt;"


def test_lines_and_tabs_of_a_text_stay() -> None:
    assert esc_lines("a\n\tb\r\x00<") == "a\n\tb␍␀&lt;"
    for text in (esc(HOSTILE), esc_lines(HOSTILE)):
        assert not re.search("[<>\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff]", text)
