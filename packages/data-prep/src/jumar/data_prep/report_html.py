"""The report of a run as one page that needs nothing else: no script, no network, no fonts of its own.

It shows PREFIX.report.json. What is absent or None there has no section here. `records.kept` counts what was truncated or
split too; `tokens.total` counts neither padding nor what was lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jumar.data_prep.svg import STYLE as CHARTS
from jumar.data_prep.svg import bar, histogram, stacked
from jumar.schema import page
from jumar.schema.page import esc, folded, num, row, rows, section, share, table

Facts = Mapping[str, Any]
Part = tuple[str, float, str]

MOST_ROWS = 20
"""Sources and reasons that have a row of their own."""
MOST_CHARS = 6000
"""Characters of a sample that are shown."""
STYLE = """
.sample .text i { font-style: normal; color: var(--soft); opacity: .75; } .text em { color: var(--soft); }
"""
SPACES = re.compile(r"^ +| +$| {2,}", re.MULTILINE)


def report_html(report: Facts) -> str:
    """The page. The same report gives the same bytes; no text of it is taken for markup."""
    made = " ".join(esc(report[key]) for key in ("tool", "command", "version") if report.get(key))
    sections: tuple[Callable[[Facts], str], ...] = (
        _figures, _records, _tokens, _lengths, _packing, _label_share, _sources, _rejects, _duplicates, _samples, _settings,
    )  # fmt: skip
    return page.page(
        esc(report.get("output", "dataset")),
        [made_of(report) for made_of in sections],
        about="data report",
        kicker=made,
        lede=_lede(report),
        style=CHARTS + STYLE,
    )


def _of(report: Facts, key: str) -> dict[str, Any]:
    return dict(report.get(key) or {})


def _lede(report: Facts) -> str:
    records, tokens, packing = (_of(report, key) for key in ("records", "tokens", "packing"))
    if not records.get("read"):
        return "No records were read."
    kept, read = records.get("kept", 0), records["read"]
    text = (
        f"{'All' if kept == read else num(kept) + ' of'} {num(read)} records were kept"
        if read > 1
        else f"{kept} of 1 record was kept"
    )
    if packing.get("samples"):
        seq_len = _of(report, "lengths").get("seq_len")
        text += f", packed into {num(packing['samples'])} samples" + (f" of {seq_len:,} tokens" if seq_len else "")
    if tokens.get("total"):
        text += f": {num(tokens['total'])} tokens, {share(tokens.get('trained', 0), tokens['total'])} of them trained on"
    return f"{text}."


def _figures(report: Facts) -> str:
    """The row of numbers that one looks at first."""
    records, tokens, packing, lengths = (_of(report, key) for key in ("records", "tokens", "packing", "lengths"))
    shown: list[tuple[str, str, str]] = []
    if records:
        kept, read = records.get("kept", 0), records.get("read", 0)
        shown.append((num(kept), "records kept", f"{share(kept, read)} of {num(read)} read"))
        if records.get("rejected"):
            rejected = records["rejected"]
            shown.append((num(rejected), "records rejected", f"{share(rejected, read)} of those read"))
    if tokens:
        total, trained = tokens.get("total", 0), tokens.get("trained", 0)
        shown.append((num(total), "tokens", f"{num(trained)} trained on"))
        if trained < total:
            shown.append((share(trained, total), "of tokens trained on", f"{num(total - trained)} are context only"))
    if packing:
        shown.append((share(packing.get("efficiency", 0), 1), "of packed samples filled", f"{num(packing['samples'])} samples"))
    if lengths.get("p50") is not None:
        shown.append((num(lengths["p50"]), "tokens in the median sample", f"the longest has {num(lengths.get('max', 0))}"))
    return page.figures(shown)


def _parts(label: str, parts: Sequence[Part], *, shares: bool = False) -> str:
    """A stacked bar with the numbers below it; of mere shares there are no counts."""
    there = [part for part in parts if part[1] > 0]
    total = sum(value for _, value, _ in there)
    items = "".join(
        f'<li><svg width="12" height="12" aria-hidden="true"><rect class="{colour}" width="12" height="12"/></svg>{esc(name)} '
        + (f"<b>{share(value, total)}</b>" if shares else f"<b>{num(value)}</b> <small>{share(value, total)}</small>")
        + "</li>\n"
        for name, value, colour in there
    )
    return f'{stacked(label, parts, shares=shares)}\n<ul class="legend">\n{items}</ul>\n'


def _records(report: Facts) -> str:
    records, rejects = _of(report, "records"), _of(report, "rejects")
    read = records.get("read", 0)
    if not read:
        return ""
    kept, cut, split = (records.get(key, 0) for key in ("kept", "truncated", "split"))
    dropped, rejected, blank = (records.get(key, 0) for key in ("dropped", "rejected", "blank"))
    counted = kept + dropped + rejected
    reasons, word = _largest(rejects), "rejected"
    if sum(n for _, n in reasons) > rejected:  # they tell of what was dropped too
        rejected, dropped, word = rejected + dropped, 0, "left out"
    parts: list[Part] = [
        ("kept whole", max(kept - cut - split, 0), "fill-main"),
        ("kept, truncated", cut, "fill-main-soft"),
        ("kept, split", split, "fill-second"),
        ("dropped", dropped, "fill-warn"),
    ]
    paints = ("fill-bad", "fill-bad-2", "fill-bad-3", "fill-bad-4")
    parts += [(f"{word}: {reason}", n, paint) for (reason, n), paint in zip(reasons, paints, strict=False)]
    others = max(rejected - sum(n for _, n in reasons[:4]), 0)
    parts.append((f"{word}: other reasons" if reasons else word, others, "fill-bad-5"))
    parts.append(("not accounted for", max(read - counted - blank, 0), "fill-rule"))
    if counted + blank <= read:
        parts.append(("blank", blank, "fill-rule"))
        blank = 0
    note = ("1 record was read" if read == 1 else f"{read:,} records were read") + (
        f", and {blank:,} blank lines passed over." if blank else "."
    )
    return section("What became of every record", note, _parts("Records", parts))


def _tokens(report: Facts) -> str:
    tokens = _of(report, "tokens")
    total, trained, padding, lost = (tokens.get(key, 0) for key in ("total", "trained", "padding", "lost"))
    if not total + padding:
        return ""
    parts: list[Part] = [
        ("trained on", trained, "fill-main"),
        ("context, not trained on", max(total - trained, 0), "fill-main-soft"),
        ("padding", padding, "fill-rule"),
    ]
    note = f"{num(total + padding)} tokens are in the files" + (f"; {num(lost)} more were cut off and lost." if lost else ".")
    return section("What the tokens are for", note, _parts("Tokens", parts))


def _lengths(report: Facts) -> str:
    lengths = _of(report, "lengths")
    if not any(lengths.get("counts") or ()):
        return ""
    names = (
        ("min", "shortest"),
        ("p50", "median"),
        ("mean", "mean"),
        ("p90", "90% up to"),
        ("p99", "99% up to"),
        ("max", "longest"),
    )
    facts = [f"{name} {num(lengths[key])}" for key, name in names if lengths.get(key) is not None]
    seq_len = lengths.get("seq_len")
    if seq_len and seq_len > lengths["edges"][-1]:
        facts.append(f"seq_len {seq_len:,} lies beyond the chart")
    chart = histogram(
        "Samples by length", lengths["edges"], lengths["counts"], x_title="length of a sample, tokens", y_title="samples",
        line=(seq_len, f"seq_len {seq_len:,}") if seq_len else None,
    )  # fmt: skip
    numbers = _numbers(lengths["edges"], lengths["counts"], "length, tokens", "samples")
    return section("How long samples are", " · ".join(facts), chart, numbers)


def _numbers(edges: Sequence[float], counts: Sequence[int], x: str, y: str, *, percent: bool = False) -> str:
    """A chart's numbers, folded away."""

    def span(a: float, b: float) -> str:
        return f"{100 * a:,.5g} – {100 * b:,.5g}" if percent else f"{a:,} – {b:,}"

    shown = [(span(a, b), f"{n:,}") for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True) if n]
    return folded("The numbers", table((x, y), shown))


def _label_share(report: Facts) -> str:
    shares = _of(report, "label_share")
    if not any(shares.get("counts") or ()):
        return ""
    x = "trained tokens in a sample, %"
    chart = histogram("Samples by trained share", shares["edges"], shares["counts"], x_title=x, y_title="samples", percent=True)
    numbers = _numbers(shares["edges"], shares["counts"], x, "samples", percent=True)
    note = "A sample far to the left costs time and teaches little; one at 100% has no prompt that is masked."
    return section("How much of a sample is trained on", note, chart, numbers)


def _packing(report: Facts) -> str:
    packing = _of(report, "packing")
    if not packing.get("samples"):
        return ""
    samples, parts, least = packing["samples"], packing.get("sub_samples", 0), packing.get("lower_bound")
    fill = float(packing.get("efficiency", 0))
    note = f"{num(parts)} sub-samples lie in {num(samples)} packed samples, {num(parts / samples)} in each on average."
    if least:
        over = f"{num(samples - least)} more than" if samples > least else "which is"
        note += f" That is {over} the least possible number, {num(least)}."
    out = _parts("Packing", [("filled", fill, "fill-main"), ("padding", 1 - fill, "fill-rule")], shares=True)
    each = packing.get("per_sample") or {}
    if any(each.get("counts") or ()):
        x = "sub-samples in a packed sample"
        out += histogram(
            "Packed samples by sub-samples", each["edges"], each["counts"], x_title=x, y_title="packed samples", discrete=True
        )
        out += _numbers(each["edges"], each["counts"], x, "packed samples")
    return section("How well samples are packed", note, out)


def _largest(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(((name, n) for name, n in counts.items() if n), key=lambda pair: (-pair[1], pair[0]))


def _row(
    name: str, value: int, top: int, text: str, *, inner: int | None = None, colour: str = "main", rest: bool = False
) -> str:
    label = re.sub("<[^>]*>", "", f"{name}: {text}")
    drawn = "" if rest else bar(label, value, top, inner=inner, colour=colour)  # on the scale of one, many would fill the page
    return row(esc(name), text, drawn, kind="rest" if rest else "")


def _sources(report: Facts) -> str:
    sources = [s for s in report.get("sources") or () if s]
    if not sources:
        return ""
    keys = ("records", "kept", "rejected", "tokens", "trained", "bytes")
    ranked = sorted(sources, key=lambda s: (-s.get("tokens", 0), str(s.get("name", ""))))
    most, rest = ranked[:MOST_ROWS], ranked[MOST_ROWS:]
    shown = [({"name": str(s.get("name", "?"))} | {key: s.get(key, 0) for key in keys}, False) for s in most]
    if rest:
        name = f"{len(rest):,} smaller sources" if len(rest) > 1 else "1 smaller source"
        shown.append(({"name": name} | {key: sum(s.get(key, 0) for s in rest) for key in keys}, True))
    total, top = sum(s["tokens"] for s, _ in shown), most[0].get("tokens", 0)
    drawn = [
        _row(s["name"], s["tokens"], top, f"<b>{num(s['tokens'])}</b> <small>{share(s['tokens'], total)}</small>",
             inner=s["trained"], rest=is_rest)
        for s, is_rest in shown
    ]  # fmt: skip
    numbers = table(("source", *keys), [(esc(s["name"]), *(num(s[key]) for key in keys)) for s, _ in shown])
    count = f"{len(sources):,} sources" if len(sources) > 1 else "1 source"
    note = f"Tokens of {count}, with their share of all; the part in full colour is trained on."
    return section("Where the tokens come from", note, rows(drawn), folded("The numbers", numbers))


def _rejects(report: Facts) -> str:
    reasons = _largest(_of(report, "rejects"))
    if not reasons:
        return ""
    most, rest = reasons[:MOST_ROWS], reasons[MOST_ROWS:]
    total = sum(n for _, n in reasons)
    shown = [(name, n, False) for name, n in most]
    if rest:
        shown.append((f"{len(rest):,} rarer reasons", sum(n for _, n in rest), True))
    top = most[0][1]
    drawn = [
        _row(name, n, top, f"<b>{num(n)}</b> <small>{share(n, total)}</small>", colour="bad", rest=is_rest)
        for name, n, is_rest in shown
    ]
    note = f"{num(total)} in all, by the first thing that was wrong with each."
    return section("Why records were left out", note, rows(drawn))


def _duplicates(report: Facts) -> str:
    found = _of(report, "duplicates")
    if not found:
        return ""
    n, part = found.get("records", 0), float(found.get("share", 0))
    about = "An estimated " if found.get("estimated") else ""
    if not n:
        return section("Duplicates", "No record is a copy of another" + (", as far as was estimated." if about else "."))
    copies = "record is a copy" if n == 1 else "records are copies"
    note = f"{about}{num(n)} {copies} of an earlier one: {share(part, 1)} of all. They were counted, not removed."
    parts: list[Part] = [("copies", part, "fill-warn"), ("the first of their kind", 1 - part, "fill-main-soft")]
    return section("Duplicates", note, _parts("Records", parts, shares=True))


def _visible(text: str) -> str:
    """Text with its white space to be seen: line ends, tabs, and spaces at edges or in runs."""
    lines = []
    for line in text.split("\n"):
        shown, at = "", 0
        for found in SPACES.finditer(line):
            shown += esc(line[at : found.start()]) + f"<i>{'·' * len(found[0])}</i>"
            at = found.end()
        lines.append((shown + esc(line[at:])).replace("␉", "<i>→</i>\t"))
    return "<i>↵</i>\n".join(lines)


def _samples(report: Facts) -> str:
    samples = report.get("samples") or ()
    shown = []
    for sample in samples:
        out, left = "", MOST_CHARS
        for text, trained in sample.get("segments") or ():
            piece = _visible(text[:left])
            out += f"<mark>{piece}</mark>" if trained and piece else piece
            left -= min(len(text), left)
        more = sum(len(text) for text, _ in sample.get("segments") or ()) - MOST_CHARS
        out += f"<em> … {more:,} more characters</em>" if more > 0 else ""
        line = f" <small>line {sample['line']:,}</small>" if sample.get("line") is not None else ""
        head = f"<h3>{esc(sample.get('source', ''))}{line}</h3>"
        shown.append(f'<div class="sample">\n{head}\n<div class="text" dir="auto">{out}</div>\n</div>\n')
    if not shown:
        return ""
    legend = (
        '<ul class="legend"><li><code><mark>trained on</mark></code></li><li><code>context, not trained on</code></li>'
        "<li><code>↵</code> line end</li><li><code>→</code> tab</li><li><code>·</code> space at an edge or in a run</li></ul>\n"
    )
    return section("What the model will see", "Samples as they were rendered, special tokens and all.", legend, *shown)


def _settings(report: Facts) -> str:
    return page.settings((name, _plain(value)) for name, value in _of(report, "settings").items() if value is not None)


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
