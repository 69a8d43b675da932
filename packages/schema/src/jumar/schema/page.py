"""Pages that tools write: one HTML file that needs nothing else. No script, no network, no fonts of its own.

A page is a header and sections. Texts of others go through `esc`; titles and notes of a page's own are markup already.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence

from jumar.schema.page_style import STYLE

Number = float | int

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff0-\uffff]")
LONG_TITLE = 60
"""Characters from which on a title is set smaller."""


def page(
    title: str, body: Iterable[str], *, about: str, kicker: str = "", lede: str = "", style: str = "", images: bool = False
) -> str:
    """The whole file; the same arguments give the same bytes.

    title: above the page and, with `about`, of the browser's tab; kicker: a line over it, lede: a paragraph under it
    body: sections, empty ones left out; style: more rules than the shared ones; images: those that the page itself holds
    """
    small = ' class="long"' if len(title) > LONG_TITLE else ""
    policy = POLICY + "; img-src data:" * images
    under = f'<p class="lede">{lede}</p>\n' if lede else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: {about}</title>\n<style>{STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="kicker">{kicker}</p>\n<h1{small}>{title}</h1>\n{under}</header>\n'
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, note: str, *body: str) -> str:
    """A part of the page. note: what its figures mean, in a sentence or two."""
    head = f"<h2>{title}</h2>\n" + (f'<p class="note">{note}</p>\n' if note else "")
    return f"<section>\n{head}{''.join(body)}\n</section>"


def figures(shown: Sequence[tuple[str, str, str]]) -> str:
    """The row of numbers that one looks at first: (number, what it is, more about it)."""
    cells = "".join(
        f'<div class="figure"><b>{number}</b><span>{what}</span>' + (f"<small>{more}</small>" if more else "") + "</div>\n"
        for number, what, more in shown
    )
    return f'<div class="figures">\n{cells}</div>' if shown else ""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are markup; the first column is text, others are numbers. On a narrow screen it scrolls by itself."""
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    names = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def folded(summary: str, *body: str, opened: bool = False, kind: str = "") -> str:
    """What is there for who asks for it. kind: its class."""
    own = f' class="{kind}"' if kind else ""
    return f"<details{own}{' open' * opened}><summary>{summary}</summary>{''.join(body)}</details>\n"


def row(name: str, said: str, drawn: str = "", *, kind: str = "") -> str:
    """Of a list of class "rows": a name and what is said of it (markup), above what is drawn. kind: the row's class."""
    own = f' class="{kind}"' if kind else ""
    return f"<li{own}><div><span>{name}</span><span>{said}</span></div>{drawn}</li>\n"


def rows(made: Iterable[str], kind: str = "rows") -> str:
    return f'<ol class="{kind}">\n{"".join(made)}</ol>\n'


def settings(shown: Iterable[tuple[str, str]]) -> str:
    """The last section: names and values, as texts."""
    body = "".join(f'<tr><th scope="row">{esc(name)}</th><td>{esc(value)}</td></tr>\n' for name, value in shown)
    return section("Settings", "", f'<table class="settings"><tbody>\n{body}</tbody></table>') if body else ""


# --- texts and numbers


def esc(text: object) -> str:
    """Any text as inert HTML; what cannot be seen (control characters, marks of direction, half surrogates) is spelled out."""
    return html.escape(UNSEEN.sub(_picture, str(text)))


def esc_lines(text: object) -> str:
    """As `esc`, of a text whose lines and tabs are shown as such."""
    return "\n".join("\t".join(map(esc, line.split("\t"))) for line in str(text).split("\n"))


def _picture(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else f"\\u{code:04x}"


def num(value: Number, *, tick: bool = False) -> str:
    """12345 -> "12,345"; from a million on, and on axes from ten thousand on, three digits and a letter: "1.23 M"."""
    if abs(value) < (10_000 if tick else 1_000_000):
        return f"{value:,.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.3g}"
    for unit in ("k", "M", "B", "T", "P"):
        value /= 1000
        if abs(value) < 999.5 or unit == "P":
            break
    return f"{value:.3g}\u202f{unit}" if abs(value) < 999.5 else f"{value:,.0f}\u202f{unit}"


def share(part: Number, whole: Number) -> str:
    """A share in per cent; what is there is never shown as nothing, and what is not all never as all."""
    percent = 100 * part / whole if whole else 0.0
    if 0 < percent < 0.1:
        return "under 0.1%"
    if 99.9 < percent < 100:
        return "over 99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) else f"{percent:.1f}%"
