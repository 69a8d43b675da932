"""How pages look: on paper, on a phone, in the dark. One accent, two warnings, the rest is ink."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #23211d; --soft: #69645a; --rule: #dfdace; --faint: #f3f0e8;
  --main: #2c6a96; --main-soft: #b3cddf; --second: #7b9e87; --warn: #cf7f35; --bad: #a8434a; --bad-soft: #f0d0cc;
  --mark: #dcebf5; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #e8e4db; --soft: #a39d92; --rule: #35383c;
  --faint: #1f2226; --main: #6aaedb; --main-soft: #2f5068; --second: #86a890; --warn: #dd9654; --bad: #e28388;
  --bad-soft: #5c2f33; --mark: #20405a; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC",
  "WenQuanYi Micro Hei", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 940px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, .figure b { font-family: Charter, "Iowan Old Style", Georgia, "Times New Roman", "Songti SC", "Noto Serif CJK SC",
  "Source Han Serif SC", SimSun, serif; font-weight: 600; }
h1 { font-size: clamp(28px, 5vw, 42px); line-height: 1.15; margin: 4px 0 10px; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
.long { font-size: 22px; }
h2 { font-size: 22px; line-height: 1.25; margin: 0 0 2px; overflow-wrap: anywhere; }
h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
small { color: var(--soft); font-weight: 400; font-size: 13px; }
a, summary { color: var(--main); }
code { overflow-wrap: anywhere; }
.kicker { margin: 0; color: var(--main); font-size: 13px; font-weight: 600; letter-spacing: .04em; overflow-wrap: anywhere; }
.lede { font-size: 18px; line-height: 1.5; max-width: 40em; margin: 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 14px; margin: 0 0 14px; max-width: 46em; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--rule); padding: 22px 0 0; margin: 30px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 18px 20px; padding-top: 16px;
  border-top: 3px solid var(--ink); margin-top: 28px; }
.figure { min-width: 0; overflow-wrap: anywhere; }
.figure b { display: block; font-size: 30px; line-height: 1.1; letter-spacing: -.01em; }
.figure span { display: block; font-size: 14px; margin-top: 4px; }
.figure small { display: block; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 9px 32px; }
.pair > * { min-width: 0; }
svg { display: block; overflow: visible; }
svg.bar { overflow: hidden; border-radius: 2px; }
svg rect { stroke: var(--paper); stroke-width: 1px; }
.fill-main { fill: var(--main); } .fill-main-soft { fill: var(--main-soft); } .fill-second { fill: var(--second); }
.fill-warn { fill: var(--warn); } .fill-bad { fill: var(--bad); } .fill-rule { fill: var(--rule); }
.fill-bad-2 { fill: var(--bad); fill-opacity: .78; } .fill-bad-3 { fill: var(--bad); fill-opacity: .6; }
.fill-bad-4 { fill: var(--bad); fill-opacity: .45; } .fill-bad-5 { fill: var(--bad); fill-opacity: .3; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 12px 0 0; padding: 0; font-size: 14px; }
.legend li { overflow-wrap: anywhere; } .legend svg { display: inline-block; margin-right: 7px; border-radius: 2px; }
.rows { list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: minmax(0, 1fr); gap: 9px 44px; }
.rows > li > div { display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 14px; line-height: 1.35; margin-bottom: 3px; }
.rows > li > div > span { min-width: 0; overflow-wrap: anywhere; }
.rows > li > div > span:last-child { margin-left: auto; text-align: right; }
.rest span:first-child { color: var(--soft); font-style: italic; }
details { margin-top: 14px; font-size: 14px; } summary { cursor: pointer; width: fit-content; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin-top: 8px; width: 100%; }
th, td { text-align: right; padding: 5px 0 5px 18px; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-weight: 400; vertical-align: top; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; white-space: normal;
  min-width: 9em; }
thead th { color: var(--soft); font-size: 13px; }
.settings th { color: var(--soft); width: 15em; }
.settings td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { margin: 18px 0 0; }
.text, code { font: 13px/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "PingFang SC",
  "Microsoft YaHei", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", monospace; }
.text { background: var(--faint); border-left: 3px solid var(--rule); border-radius: 2px; padding: 12px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { background: var(--mark); color: inherit; box-shadow: inset 0 -1.5px var(--main); padding: 1px 0;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
@media (max-width: 560px) { main { padding: 24px 16px 40px; } .figure b { font-size: 26px; } .lede { font-size: 17px; }
  .settings th { width: 9.5em; min-width: 0; } th, td { padding-left: 12px; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #555; --rule: #ccc; --faint: #f6f6f6;
  --main: #2c6a96; --main-soft: #b3cddf; --second: #7b9e87; --warn: #cf7f35; --bad: #a8434a; --bad-soft: #f0d0cc;
  --mark: #dcebf5; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } main { max-width: none; padding: 0; }
  .rows li, .figures, .pair > *, .sample { break-inside: avoid; } h2, h3, .note { break-after: avoid; }
  details:not([open]) { display: none; } }
"""
