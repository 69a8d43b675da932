"""runs/demo/index.html: what a run of examples/quickstart.sh made, on one page that needs no network. page.py DIR"""

import base64
import json
import sys
from pathlib import Path

from jumar.schema.page import esc, esc_lines, figures, folded, section, table
from jumar.schema.page import page as framed

SHORT_STEPS = 2  # of JUMAR_DEMO=short
NOTE = (
    "On questions that it was not shown: whether it answers in two lines (manner), and how many bits a byte of the right "
    "answers takes (held_out)."
)
STYLE = """
.steps { padding-left: 24px; font-size: 14px; } .steps li { margin: 4px 0; } .steps small { white-space: nowrap; }
.steps span { display: inline-block; max-width: 100%; }
img { width: 100%; height: auto; display: block; margin-top: 12px; } ul { padding-left: 20px; }
.label { margin: 8px 0 2px; font-size: 13px; color: var(--soft); }
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
        numbers(losses, data, scores),
        section("What was typed", "Commands in their order, with the seconds that each took.", chain(steps)),
        section(loss_title(losses), f"{len(losses)} steps of two processes, a stage each.", picture(folder / "sft/loss.svg")),
        section("What it was trained on", "", of_data(data)),
        section("Before and after", NOTE, changes(scores), answers(folder)),
        section("Files", "", links(folder)),
    ]
    lede = "SmolLM2-135M-Instruct, converted, tuned, asked and scored by jumar."
    return framed(title(losses, scores), sections, about="jumar", kicker="jumar: make demo", lede=lede, style=STYLE, images=True)


def title(losses, scores) -> str:
    """What the run has come to: two steps teach nothing."""
    if len(losses) <= SHORT_STEPS:
        return "A short run: two steps, nothing is learnt"
    learnt = any(task == "manner" and after > before for task, _, before, after in scores)
    return "A model that learnt to answer in two lines" if learnt else "A model before and after tuning"


def loss_title(losses) -> str:
    return "How the loss fell" if len(losses) > SHORT_STEPS and losses[-1] < losses[0] else "The loss"


def both(folder: Path) -> list[tuple[str, str, float, float]]:
    """(task, metric, before, after) of each score."""
    before, after = (json.loads((folder / out / "results.json").read_text())["results"] for out in ("eval-before", "eval-after"))
    return [
        (task, key.partition(",")[0].replace("_", " "), before[task][key], value)
        for task, scores in after.items()
        for key, value in scores.items()
        if "," in key and "_stderr" not in key and key in before.get(task, {})
    ]


def numbers(losses, data, scores) -> str:
    shown = [(f"{losses[0]:.2f} → {losses[-1]:.2f}", "loss", "first and last step")]
    shown += [(f"{before:.2f} → {after:.2f}", esc(task), esc(metric)) for task, metric, before, after in scores]
    shown.append((f"{data['records']['kept']}", "conversations", f"{data['tokens']['total']:,} tokens"))
    return figures(shown)


def chain(steps) -> str:
    """The longest time of each command: a run that was resumed has some twice, the later ones done at once."""
    longest: dict[str, int] = {}
    for seconds, command in steps:
        longest[command] = max(int(seconds), longest.get(command, 0))
    items = "".join(f"<li>{words(command)} <small>{seconds} s</small></li>\n" for command, seconds in longest.items())
    return f'<ol class="steps">\n{items}</ol>\n'


def words(command: str) -> str:
    """As code whose lines end between words only."""
    return "<code>" + " ".join(f"<span>{esc(word)}</span>" for word in command.split(" ")) + "</code>"


def picture(path: Path) -> str:
    return f'<img alt="loss of each step" src="data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode()}">\n'


def of_data(data) -> str:
    records, tokens, packing = data["records"], data["tokens"], data["packing"]
    return (
        f"<p>{records['kept']} of {records['read']} records were kept: {tokens['total']:,} tokens, "
        f"{tokens['trained'] / tokens['total']:.0%} of them trained on, packed into {packing['samples']} samples, "
        f'{packing["efficiency"]:.1%} full. <a href="data/short-answers.report.html">The whole report</a></p>\n'
    )


def changes(scores) -> str:
    rows = [(f"{esc(t)} <small>{esc(metric)}</small>", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}") for t, metric, a, b in scores]
    return table(("task", "before", "after", "change"), rows)


def answers(folder: Path) -> str:
    """What was answered before and after, question by question."""

    def of(out: str) -> dict[int, dict]:
        lines = (folder / out / "samples_manner.jsonl").read_text(encoding="utf-8").splitlines()
        return {sample["doc_id"]: sample for sample in map(json.loads, lines)}

    def said(sample, when: str) -> str:
        text = esc_lines(sample["resps"][0][0])
        return f'<div><p class="label">{when}</p><div class="text" dir="auto">{text}</div></div>\n'

    before, after = of("eval-before"), of("eval-after")
    shown = [
        f'<div class="sample"><h3>{esc(after[i]["doc"]["instruction"])}</h3>\n'
        f'<div class="pair">{said(before[i], "before")}{said(after[i], "after")}</div></div>\n'
        for i in sorted(after)
        if i in before
    ]
    return folded("Answers", *shown, opened=True)


def links(folder: Path) -> str:
    named = {
        "hf": "the model, Hugging Face",
        "megatron-pp2": "the model, Megatron, two stages",
        "sft": "the run: checkpoints, metrics.jsonl, loss.svg",
        "hf-tuned": "the tuned model, Hugging Face",
        "eval-after/report.html": "scores, what has changed, and errors to read one by one",
    }
    items = "".join(f'<li><a href="{path}">{path}</a>: {what}</li>\n' for path, what in named.items() if (folder / path).exists())
    return f"<ul>\n{items}</ul>\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
