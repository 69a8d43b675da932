"""How the report looks: on paper, on a phone, in the dark. One accent, two warnings, the rest is ink."""

STYLE = """
:root { color-scheme: light dark; --paper: #fdfcf9; --ink: #23211d; --soft: #69645a; --rule: #dfdace; --faint: #f3f0e8;
  --main: #2c6a96; --main-soft: #b3cddf; --second: #7b9e87; --warn: #cf7f35; --bad: #a8434a; --mark: #dcebf5; --mark-line:
  #2c6a96; }
@media (prefers-color-scheme: dark) { :root { --paper: #17191c; --ink: #e8e4db; --soft: #a39d92; --rule: #35383c; --faint:
  #1f2226;
  --main: #6aaedb; --main-soft: #2f5068; --second: #86a890; --warn: #dd9654; --bad: #d9757a; --mark: #20405a; --mark-line:
  #6aaedb; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", "Source Han Sans SC",
  "WenQuanYi Micro Hei", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 940px; margin: 0 auto; padding: 40px 24px 64px; }
h1, h2, .figure b { font-family: Charter, "Iowan Old Style", Georgia, "Times New Roman", "Songti SC", "Noto Serif CJK SC",
  "Source Han Serif SC", SimSun, serif; font-weight: 600; }
h1 { font-size: clamp(28px, 5vw, 42px); line-height: 1.15; margin: 4px 0 10px; letter-spacing: -.01em; overflow-wrap:
  anywhere; }
.long { font-size: 22px; }
h2 { font-size: 22px; line-height: 1.25; margin: 0 0 2px; }
.kicker { margin: 0; color: var(--main); font-size: 13px; font-weight: 600; letter-spacing: .04em; }
.lede { font-size: 18px; line-height: 1.5; max-width: 40em; margin: 0; overflow-wrap: anywhere; }
.note { color: var(--soft); font-size: 14px; margin: 0 0 14px; max-width: 46em; overflow-wrap: anywhere; }
section { border-top: 1px solid var(--rule); padding: 22px 0 0; margin: 30px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); gap: 18px 20px; border-top: 3px
  solid var(--ink);
  padding-top: 16px; margin-top: 28px; }
.figure b { display: block; font-size: 30px; line-height: 1.1; letter-spacing: -.01em; }
.figure span { display: block; font-size: 14px; margin-top: 4px; }
.figure small { display: block; font-size: 13px; color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); column-gap: 44px; }
svg { display: block; overflow: visible; }
svg.bar { overflow: hidden; border-radius: 2px; }
svg text { font-size: 12px; fill: var(--soft); }
svg .peak { fill: var(--ink); font-weight: 600; }
svg rect { stroke: var(--paper); stroke-width: 1px; }
svg .grid { stroke: var(--rule); } svg .axis { stroke: var(--soft); }
svg .limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 4 3; } svg .limit-name { fill: var(--bad);
  font-weight: 600; }
.fill-main { fill: var(--main); } .fill-main-soft { fill: var(--main-soft); } .fill-second { fill: var(--second); }
.fill-warn { fill: var(--warn); } .fill-bad { fill: var(--bad); } .fill-rule { fill: var(--rule); }
.fill-bad-2 { fill: var(--bad); fill-opacity: .78; } .fill-bad-3 { fill: var(--bad); fill-opacity: .6; }
.fill-bad-4 { fill: var(--bad); fill-opacity: .45; } .fill-bad-5 { fill: var(--bad); fill-opacity: .3; }
.plot { padding: 0 12px 0 48px; } .plot .unit { margin: 0; text-align: center; font-size: 12px; color: var(--soft); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 6px 22px; margin: 12px 0 0; padding: 0; font-size: 14px; }
.legend + .plot { margin-top: 18px; }
.legend li { overflow-wrap: anywhere; } .legend svg { display: inline-block; margin-right: 7px; border-radius: 2px; }
.legend small, .rows small { color: var(--soft); font-size: 13px; }
.rows { list-style: none; margin: 0; padding: 0; display: grid; grid-template-columns: minmax(0, 1fr); gap: 9px; }
.rows div { display: flex; justify-content: space-between; gap: 16px; font-size: 14px; line-height: 1.35; margin-bottom:
  3px; }
.rows span:first-child { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.rows span:last-child { white-space: nowrap; }
.rest span:first-child { color: var(--soft); font-style: italic; }
details { margin-top: 14px; font-size: 14px; } summary { cursor: pointer; color: var(--main); width: fit-content; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; margin-top: 8px; width: 100%; }
th, td { text-align: right; padding: 5px 0 5px 18px; border-bottom: 1px solid var(--rule); white-space: nowrap;
  font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; white-space: normal; }
thead th { color: var(--soft); font-size: 13px; }
.settings th { color: var(--soft); width: 15em; vertical-align: top; }
.settings td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; }
.sample { margin: 18px 0 0; } .sample h3 { font-size: 14px; font-weight: 600; margin: 0 0 6px; overflow-wrap: anywhere; }
.sample h3 small { color: var(--soft); font-weight: 400; font-size: 13px; }
.text, .legend code { font: 13px/1.65 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", "PingFang SC",
  "Microsoft YaHei", "Noto Sans Mono CJK SC", "Noto Sans CJK SC", monospace; }
.text { background: var(--faint); border-left: 3px solid var(--rule); border-radius: 2px; padding: 12px 14px; white-space:
  pre-wrap;
  overflow-wrap: anywhere; unicode-bidi: isolate; }
mark { background: var(--mark); color: inherit; box-shadow: inset 0 -1.5px var(--mark-line); padding: 1px 0;
  -webkit-box-decoration-break: clone; box-decoration-break: clone; }
.text i { font-style: normal; color: var(--soft); opacity: .75; } .text em { color: var(--soft); }
@media (max-width: 560px) { main { padding: 24px 16px 40px; } .figure b { font-size: 26px; } .lede { font-size: 17px; }
  .settings th { width: 9.5em; } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #555; --rule: #ccc; --faint: #f6f6f6;
  --main: #2c6a96;
  --main-soft: #b3cddf; --second: #7b9e87; --warn: #cf7f35; --bad: #a8434a; --mark: #dcebf5; --mark-line: #2c6a96; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } main { max-width: none; padding: 0; }
  .plot, .rows li, .figures, .pair > * { break-inside: avoid; } h2, .note { break-after: avoid; } details { display: none;
  } }
"""
