"""Small benchmarks in the layouts that MindSpeed-LLM reads, and what its protocol makes of them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jumar.eval.data import find
from jumar.eval.items import How, Unit, unit_of
from jumar.eval.task import load_task

QUESTION = {"question": "Which rope?", "A": "red", "B": "blue", "C": "2.50", "D": "None", "answer": "B"}


def write_all(root: Path) -> None:
    """One document of each benchmark; two subjects of MMLU, two tasks of BIG-Bench Hard, two sets of AGIEval."""

    def table(path: str, *rows: Sequence[str]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write(path, text.getvalue())

    def write(path: str, text: str) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")

    head, row = list(QUESTION), list(QUESTION.values())
    shots = [[f"Knot {i}?", "one", "two", "three", "None", "ABCDA"[i]] for i in range(5)]
    for subject in ("high_school_physics", "anatomy"):
        table(f"mmlu/test/{subject}_test.csv", row)
        table(f"mmlu/dev/{subject}_dev.csv", *shots)
    table("ceval/val/law_val.csv", ["id", *head], ["0", *row])
    numbered = [[str(i), *shot] for i, shot in enumerate(shots)]
    table("ceval/dev/law_dev.csv", ["id", *head, "explanation"], *([*shot, ""] for shot in numbered))
    chinese = ["", "Question", "A", "B", "C", "D", "Answer"]
    table("cmmlu/test/arts.csv", chinese, ["0", *row])
    table("cmmlu/dev/arts.csv", chinese, *numbered)
    rows: list[dict[str, Any]] = [
        {"question": f"is {x} up", "title": "T", "passage": f"About {x}.", "answer": x == "a"} for x in "abc"
    ]
    write("boolq/dev/dev.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write("bbh/test/web_of_lies.json", json.dumps({"examples": [{"input": "Who lies?", "target": "Yes"}]}))
    write("bbh/test/snarks.json", json.dumps({"examples": [{"input": "Which?\n(A) x\n(B) y", "target": "(B)"}]}))
    steps = "Q: {}?\nA: Let's think step by step.\n{}. So the answer is {{}}.\n"
    worked = "\n".join(steps.format(question, x) for question, x in zip(("First", "Second", "Third"), "xyz", strict=True))
    for subject, answers in (("web_of_lies", "Yes No Yes"), ("snarks", "(A) (B) (A)")):
        write(f"bbh/cot-prompts/{subject}.txt", "Not for training.\n-----\nSay which.\n\n" + worked.format(*answers.split()))
    physics = {
        "passage": "Seen from above.",
        "question": "Which?",
        "options": ["(A)up", "(B)down"],
        "label": ["A", "B"],
        "answer": None,
    }
    physics |= {"answer": None}
    write("agieval/gaokao-physics.jsonl", "".join(json.dumps(physics | {"question": q}) + "\n" for q in ("Which?", "What?")))
    sums = [
        {"passage": None, "question": q, "options": None, "label": None, "answer": a} for q, a in (("1+1?", "$2$"), ("2+2?", "4"))
    ]
    write("agieval/math.jsonl", "".join(json.dumps(row) + "\n" for row in sums))
    write("gsm8k/gsm8k_test.jsonl", json.dumps({"question": "How many?", "answer": "6*7\n#### 42"}) + "\n")
    write(
        "hellaswag/hellaswag.jsonl",
        json.dumps({"query": "Climb: He goes", "choices": ["up", "down", "in", "out"], "gold": 1}) + "\n",
    )


def units(data: Path, name: str, **how: Any) -> list[Unit]:
    task = load_task(name, "mindspeed")
    return [unit_of(task, found, How(**how)) for found in find(task, data)]


def prompts(data: Path, name: str, **how: Any) -> list[str]:
    return [item.requests[0].context for unit in units(data, name, **how) for item in unit.items]
