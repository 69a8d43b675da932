"""runs/demo/index.html: what a run of examples/quickstart.sh made, on one page that needs no network. page.py DIR"""

import base64
import json
import sys
from pathlib import Path

from jumar.eval.report import esc
from jumar.eval.report_style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
NOTE = (
    "On questions that it was not shown: whether it answers in two lines (manner), and how many bits a byte of the right "
    "answers takes (held_out)."
)
MORE = """
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1rem; margin: 2rem 0; }
.figures b { display: block; font-size: 1.8rem; line-height: 1.2; } .figures span { color: var(--soft); }
.steps { padding-left: 1.25rem; } .steps code { overflow-wrap: anywhere; } .steps small { white-space: nowrap; }
img { width: 100%; height: auto; display: block; margin-top: .75rem; }
td pre { margin: 0; } .answers { table-layout: fixed; } .answers th:first-child { width: 18%; } a { color: var(--main); }
@media (max-width: 40rem) { .answers thead { display: none; } .answers td { display: block; border: 0; } }
"""


def main(folder: Path) -> None:
    target = folder / "index.html"
    target.write_text(page(folder), encoding="utf-8")
    print(f"\n{target.resolve()}")


def page(folder: Path) -> str:
    steps = [line.split("\t", 1) for line in (folder / "commands.tsv").read_text(encoding="utf-8").splitlines()]
    losses = [json.loads(line)["loss"] for line in (folder / "sft/metrics.jsonl").read_text().splitlines()]
    data = json.loads((folder / "data/short-answers.report.json").read_text())
    scores = both(folder)
    sections = [
        figures(losses, data, scores),
        section("What was typed", "Commands in their order, with the seconds that each took.", chain(steps)),
        section("How the loss fell", f"{len(losses)} steps of two processes, a stage each.", picture(folder / "sft/loss.svg")),
        section("What it was trained on", "", of_data(data)),
        section("Before and after", NOTE, table(scores) + answers(folder)),
        section("Files", "", links(folder)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>SmolLM2-135M through jumar</title>\n'
        f'<style>{STYLE}{MORE}</style>\n</head>\n<body>\n<main>\n<p class="kicker">jumar: make demo</p>\n'
        f"<h1>A model that learnt to answer in two lines</h1>\n{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def both(folder: Path) -> list[tuple[str, str, float, float]]:
    """(task, metric, before, after) of each score."""
    before, after = (json.loads((folder / out / "results.json").read_text())["results"] for out in ("eval-before", "eval-after"))
    return [
        (task, key.partition(",")[0].replace("_", " "), before[task][key], value)
        for task, scores in after.items()
        for key, value in scores.items()
        if "," in key and "_stderr" not in key and key in before.get(task, {})
    ]


def section(title: str, note: str, body: str) -> str:
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{body}</section>\n'


def figures(losses, data, scores) -> str:
    shown = [(f"{losses[0]:.2f} → {losses[-1]:.2f}", "loss, first and last step")]
    shown += [(f"{before:.2f} → {after:.2f}", f"{task}: {metric}") for task, metric, before, after in scores]
    shown.append((f"{data['records']['kept']}", f"conversations, {data['tokens']['total']:,} tokens"))
    cells = "".join(f"<div><b>{esc(n)}</b><span>{esc(what)}</span></div>\n" for n, what in shown)
    return f'<div class="figures">\n{cells}</div>\n'


def chain(steps) -> str:
    """The newest time of each command: a run that was resumed has some twice, the later ones at once."""
    longest: dict[str, int] = {}
    for seconds, command in steps:
        longest[command] = max(int(seconds), longest.get(command, 0))
    items = "".join(f"<li><code>{esc(command)}</code> <small>{seconds} s</small></li>\n" for command, seconds in longest.items())
    return f'<ol class="steps">\n{items}</ol>\n'


def picture(path: Path) -> str:
    return f'<img alt="loss of each step" src="data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}">\n'


def of_data(data) -> str:
    records, tokens, packing = data["records"], data["tokens"], data["packing"]
    return (
        f"<p>{records['kept']} of {records['read']} records were kept: {tokens['total']:,} tokens, "
        f"{tokens['trained'] / tokens['total']:.0%} of them trained on, packed into {packing['samples']} samples, "
        f'{packing["efficiency"]:.1%} full. <a href="data/short-answers.report.html">The whole report</a></p>\n'
    )


def table(scores) -> str:
    rows = "".join(
        f"<tr><td>{esc(task)}</td><td>{esc(metric)}</td>"
        f"<td>{before:.4f}</td><td>{after:.4f}</td><td>{after - before:+.4f}</td></tr>\n"
        for task, metric, before, after in scores
    )
    head = "".join(f"<th>{name}</th>" for name in ("task", "metric", "before", "after", "change"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>\n"


def answers(folder: Path) -> str:
    """What was answered before and after, question by question."""

    def of(out: str) -> dict[int, dict]:
        lines = (folder / out / "samples_manner.jsonl").read_text(encoding="utf-8").splitlines()
        return {sample["doc_id"]: sample for sample in map(json.loads, lines)}

    before, after = of("eval-before"), of("eval-after")
    rows = "".join(
        f"<tr><td>{esc(after[i]['doc']['instruction'])}</td><td><pre>{esc(before[i]['resps'][0][0])}</pre></td>"
        f"<td><pre>{esc(after[i]['resps'][0][0])}</pre></td></tr>\n"
        for i in sorted(after)
        if i in before
    )
    return (
        '<details open><summary>Answers</summary>\n<table class="answers">'
        "<thead><tr><th>question</th><th>before</th><th>after</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></details>\n"
    )


def links(folder: Path) -> str:
    named = {
        "hf": "the model, Hugging Face",
        "megatron-pp2": "the model, Megatron, two stages",
        "sft": "the run: checkpoints, metrics.jsonl, loss.svg",
        "hf-tuned": "the tuned model, Hugging Face",
        "eval-after/report.html": "scores, and errors to read one by one",
    }
    items = "".join(f'<li><a href="{path}">{path}</a>: {what}</li>\n' for path, what in named.items() if (folder / path).exists())
    return f"<ul>\n{items}</ul>\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
