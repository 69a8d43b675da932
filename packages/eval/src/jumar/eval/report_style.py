"""How the report looks, on paper, in light and in dark."""

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1c2430; --soft: #5b6675; --rule: #dfe4ea; --page: #fff; --pale: #f3f6f8;
  --main: #2f6f8f; --mark: #b3472f; --good: #2f7d4f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e8ee; --soft: #98a3b3; --rule: #333c48; --page: #14181d; --pale: #1d232a;
    --main: #5aa3c4; --mark: #e0795f; --good: #6bbf8c;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
.kicker, .note, small { color: var(--soft); margin: 0 0 .75rem; }
h1 { margin: 0; font-size: 2rem; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .25rem; font-size: 1.25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
tr.inner1 td:first-child { padding-left: 1.8rem; }
tr.inner2 td:first-child { padding-left: 3rem; }
.bars { list-style: none; margin: 0; padding: 0; }
.bars li { display: grid; grid-template-columns: minmax(8rem, 16rem) 1fr 3.5rem; gap: .75rem; }
.bars li { align-items: center; padding: .1rem 0; }
.bars span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.bars svg { width: 100%; display: block; }
.bars b { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600; }
.rest { fill: var(--pale); } .value { fill: var(--main); }
.error { stroke: var(--ink); stroke-width: 1.5; } .mean { stroke: var(--mark); stroke-width: 2; }
details { border-bottom: 1px solid var(--rule); padding: .4rem 0; }
summary { cursor: pointer; }
pre { background: var(--pale); padding: .75rem; font-size: .85rem; }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
pre i { color: var(--soft); }
.choices tr.chosen td { color: var(--mark); } .choices tr.right td { color: var(--good); }
.heat td, .heat th { text-align: center; border: 0; padding: .35rem; }
.heat td { --seen: calc(var(--v) * 100%); background: color-mix(in srgb, var(--good) var(--seen), var(--mark)); color: #fff; }
.settings th { width: 16rem; }
@media (max-width: 40rem) { .bars li { grid-template-columns: 7rem 1fr 3rem; } }
@media print { details { break-inside: avoid; } }
"""
