"""jumar-eval against lm-eval with its Hugging Face model, one thread, in one process; times are of the processor.

    python benchmarks/eval.py [MODEL] [--items 300]        default: runs/demo/hf, SmolLM2-135M-Instruct (make demo)

Each line is a ratio of documents per second: more than 1 is faster than lm-eval. Documents are made of the sentences of docs/,
the same for both, in the layouts and with the prompts of the tasks they are named after; every score is compared. Models are
loaded before; making prompts and tokens counts.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

import _lm_eval as peer
from jumar.eval import Settings, evaluate
from jumar.eval.local import LocalModel, Opening

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="runs/demo/hf", type=Path)
    parser.add_argument("--items", type=int, default=300, help="documents of the MMLU format; of the others a part of it")
    parser.add_argument("--only", help="one of mmlu, boolq, gsm8k_first, gsm8k_random")
    asked = parser.parse_args()
    if not asked.model.exists():
        print(f"skipped: {asked.model} is not here (make demo)")
        return
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(asked.model), device="cpu", dtype="float32", batch_size=BATCH)
    ours = LocalModel(asked.model, Opening(device="cpu", max_batch=BATCH))
    print(f"{asked.model}: lm-eval with batches of {BATCH}; 1 thread, seconds of the processor", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        make = Maker(Path(folder), asked.items)
        for name, task, shots in (make.mmlu(), make.boolq(), make.gsm8k("first"), make.gsm8k("random")):
            if asked.only not in (None, name):
                continue
            settings = Settings(tasks=(task,), data=Path(folder), out=Path(folder) / f"out-{name}", shots=shots)
            mine, of_mine = timed(lambda settings=settings: evaluate(lambda: ours, settings))
            other, of_other = timed(
                lambda name=name, shots=shots: peer.evaluate(asked.model, Path(folder), [name], shots=shots, model=theirs)
            )
            samples = [json.loads(line) for path in settings.out.glob("samples_*.jsonl") for line in path.open()]
            difference = compare(samples, of_other["samples"][f"peer_{name}"])
            count = sum(n["effective"] for n in of_mine["n-samples"].values())
            print(
                f"{name:14} {other / mine:5.2f} x lm-eval   {count} documents, {mine:.1f} s and {other:.1f} s; {difference}",
                flush=True,
            )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


def compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
    """How far the two are apart."""
    keyed = {(s["filter"], s["doc_id"]): s for s in theirs}
    worst, texts, differing = 0.0, 0, 0
    for sample in ours:
        other = keyed[sample["filter"], sample["doc_id"]]
        for (a,), (b,) in zip(sample["resps"], other["resps"], strict=True):
            if isinstance(a, str):
                texts, differing = texts + 1, differing + (a != b)
            else:
                worst = max(worst, abs(a[0] - b[0]))
    return f"{texts - differing} of {texts} texts equal" if texts else f"log-likelihoods differ by {worst:.0e} at most"


class Maker:
    """Benchmarks of the sentences of our own pages."""

    def __init__(self, folder: Path, items: int) -> None:
        pages = (page.read_text() for page in sorted(ROOT.glob("docs/*.md")))
        text = " ".join(re.sub(r"^```.*?^```|^[|#][^\n]*", "", page, flags=re.MULTILINE | re.DOTALL) for page in pages)
        self.sentences = [s for s in re.split(r"(?<=[.:;])\s+", re.sub(r"[`*]", "", text)) if 5 < len(s.split()) < 40]
        self.folder, self.items, self.random = folder, items, random.Random(0)

    def some(self, least: int, most: int) -> str:
        return " ".join(self.random.sample(self.sentences, self.random.randint(least, most)))

    def few_words(self) -> str:
        return " ".join(self.random.choice(self.sentences).split()[: self.random.randint(2, 9)])

    def lines(self, path: str, rows: list[dict[str, Any]]) -> Path:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return target

    def mmlu(self) -> tuple[str, str, int]:
        files = {}
        for split, count in (("test", self.items), ("dev", 5)):
            rows = [
                {"question": self.some(1, 3), "choices": [self.few_words() for _ in "ABCD"], "answer": self.random.randrange(4)}
                for _ in range(count)
            ]
            files[split] = self.lines(f"{split}.jsonl", rows)
            path = self.folder / f"mmlu/{split}/ropes_{split}.csv"
            path.parent.mkdir(parents=True)
            with path.open("w", newline="") as file:
                csv.writer(file).writerows([r["question"], *r["choices"], "ABCD"[r["answer"]]] for r in rows)
        about = "The following are multiple choice questions (with answers) about ropes.\n\n"
        peer.write_task(self.folder, "mmlu", "mmlu/default/_default_template_yaml", files, description=about)
        return "mmlu", "mmlu", 5

    def boolq(self) -> tuple[str, str, int]:
        rows = [
            {"passage": self.some(3, 8), "question": self.few_words(), "answer": self.random.random() < 0.5}
            for _ in range(self.items // 2)
        ]
        self.lines("boolq/dev.jsonl", rows)
        theirs = self.lines("boolq.jsonl", [{**row, "label": int(row["answer"])} for row in rows])
        peer.write_task(self.folder, "boolq", "super_glue/boolq/default.yaml", {"train": theirs, "validation": theirs})
        return "boolq", "boolq", 0

    def gsm8k(self, sampler: str) -> tuple[str, str, int]:
        """sampler: whether worked examples are drawn for every document, as lm-eval's task does, or are the same."""
        files = {}
        for split, count in (("test", self.items // 15), ("train", 12)):
            rows = [
                {"question": self.some(1, 3), "answer": f"{self.some(2, 4)}\n#### {self.random.randint(1, 99)}"}
                for _ in range(count)
            ]
            files[split] = self.lines(f"gsm8k/{split}.jsonl", rows)
        name = f"gsm8k_{sampler}"
        changes = {"fewshot_config": {"sampler": "first_n"}} if sampler == "first" else {}
        peer.write_task(self.folder, name, "gsm8k/gsm8k.yaml", files, **changes)
        own = yaml.safe_load((ROOT / "packages/eval/src/jumar/eval/tasks/gsm8k.yaml").read_text())
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**own, "task": name, "fewshot": sampler}))
        return name, str(path), 5


if __name__ == "__main__":
    main()
