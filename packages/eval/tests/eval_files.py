"""Small benchmarks in the layouts in which they are published: our own sentences, made of a few words, right answers drawn."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORDS = "rope rock knot wall foot hand cloud ridge snow path lamp tent stone river map night wind camp peak ice".split()
Rows = list[dict[str, Any]]


class Maker:
    """Writes benchmarks below a directory; the same seed gives the same files."""

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self.folder, self.random = folder, random.Random(seed)

    def words(self, least: int = 2, most: int = 6) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(least, most)))

    def lines(self, path: str, rows: Rows) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return target

    def rows(self, count: int, make: Callable[[], dict[str, Any]]) -> Rows:
        return [make() for _ in range(count)]

    def mmlu(self, subject: str = "anatomy", count: int = 8) -> dict[str, Rows]:
        """CSV without header, as its authors publish it. Returns the rows as the hub has them."""

        def row() -> dict[str, Any]:
            choices = [self.words(1, 3) for _ in range(4)]
            return {"question": f" {self.words(4, 9)}? ", "choices": choices, "answer": self.random.randrange(4)}

        made = {"test": self.rows(count, row), "dev": self.rows(5, row)}
        for split, rows in made.items():
            path = self.folder / f"mmlu/{split}/{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.writer(file)
                writer.writerows([r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows)
        return made

    def boolq(self, count: int = 6) -> Rows:
        rows = self.rows(
            count,
            lambda: {
                "passage": self.words(8, 30) + ".",
                "question": self.words(3, 6),
                "answer": self.random.random() < 0.5,
            },
        )
        self.lines("boolq/dev.jsonl", rows)
        return rows

    def piqa(self, count: int = 6) -> Rows:
        rows = self.rows(
            count,
            lambda: {"goal": self.words(), "sol1": self.words(1, 9), "sol2": self.words(1, 9), "label": self.random.randrange(2)},
        )
        self.lines("piqa/valid.jsonl", rows)
        return rows

    def hellaswag(self, count: int = 5) -> Rows:
        rows = self.rows(
            count,
            lambda: {
                "activity_label": self.words(1, 2).title(),
                "ctx_a": f"[header] {self.words()} [title] {self.words()}",
                "ctx_b": self.words(1, 3),
                "endings": [f"{self.words(2, 9)} [step]  {self.words(1, 2)}." for _ in range(4)],
                "label": str(self.random.randrange(4)),
            },
        )
        self.lines("hellaswag/hellaswag_val.jsonl", rows)
        return rows

    def winogrande(self, count: int = 5) -> Rows:
        rows = self.rows(
            count,
            lambda: {
                "sentence": f"{self.words()} because _ {self.words()}.",
                "option1": self.words(1, 1),
                "option2": self.words(1, 2),
                "answer": str(self.random.randint(1, 2)),
            },
        )
        self.lines("winogrande/dev.jsonl", rows)
        return rows

    def arc(self, count: int = 5) -> Rows:
        """As its authors publish it. Returns the rows as the hub has them."""

        def row() -> dict[str, Any]:
            labels = self.random.choice((list("ABC"), list("ABCD"), list("1234")))
            texts = [self.words(1, 4) for _ in labels]
            return {
                "question": self.words(4, 8) + "?",
                "choices": {"text": texts, "label": labels},
                "answerKey": self.random.choice(labels),
            }

        rows = self.rows(count, row)
        published = [
            {
                "question": {
                    "stem": r["question"],
                    "choices": [{"text": t, "label": x} for t, x in zip(*r["choices"].values(), strict=True)],
                },
                "answerKey": r["answerKey"],
            }
            for r in rows
        ]
        self.lines("ARC-Easy/ARC-Easy-Test.jsonl", published)
        return rows

    def truthfulqa(self, count: int = 4) -> Rows:
        def row() -> dict[str, Any]:
            first = {"choices": [self.words() for _ in range(3)], "labels": [1, 0, 0]}
            second = {"choices": [self.words() for _ in range(4)], "labels": [1, 1, 0, 0]}
            return {"question": self.words() + "?", "mc1_targets": first, "mc2_targets": second}

        rows = self.rows(count, row)
        self.lines("truthfulqa/validation.jsonl", rows)
        return rows

    def gsm8k(self, count: int = 4) -> dict[str, Rows]:
        def row() -> dict[str, Any]:
            a, b = self.random.randint(1, 9), self.random.randint(1, 99)
            return {"question": f"{a} {self.words()}?", "answer": f"{self.words()} <<{a}*{b}={a * b}>>\n#### {a * b:,}"}

        made = {"test": self.rows(count, row), "train": self.rows(7, row)}
        for split, rows in made.items():
            self.lines(f"gsm8k/{split}.jsonl", rows)
        return made

    def texts(self, lengths: tuple[int, ...] = (20, 300)) -> Rows:
        rows = [{"text": self.words(n, n) + "."} for n in lengths]
        self.lines("perplexity/texts.jsonl", rows)
        return rows

    def bbh(self, subject: str = "web_of_lies", count: int = 3) -> Rows:
        examples = self.rows(count, lambda: {"input": self.words() + "?", "target": self.random.choice(("Yes", "No"))})
        path = self.folder / f"bbh/bbh/{subject}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"examples": examples}))
        shots = self.folder / f"bbh/cot-prompts/{subject}.txt"
        shots.parent.mkdir(parents=True, exist_ok=True)
        worked = [
            f"Q: {self.words()}?\nA: Let's think step by step.\n{self.words()}.\n\nSo the answer is {a}."
            for a in ("Yes", "No", "Yes")
        ]
        shots.write_text("Not for training.\n-----\nSay who lies.\n\n" + "\n\n".join(worked) + "\n")
        return examples
