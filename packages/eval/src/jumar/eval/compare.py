"""Two runs side by side: differences with their significance, document by document, and which documents flipped."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jumar.eval import pooled, results
from jumar.eval.explain import side_of, why
from jumar.eval.journal import Sample, read_samples
from jumar.eval.metrics import mean, stderr
from jumar.schema.errors import Exit, ToolError


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one score: the values of both runs over the documents that both have, the second less the first.

    error: standard error of the difference, paired; p: how probable so large a difference is by chance; None: no spread
    gained, lost: documents that were wrong and are right now (of texts: that are better), and the reverse
    prompts: of how many the prompt is another; higher: whether more is better
    """

    task: str
    answer: str
    metric: str
    documents: int
    first: float
    second: float
    error: float | None
    p: float | None
    gained: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    prompts: int = 0
    higher: bool = True

    @property
    def change(self) -> float:
        return self.second - self.first


@dataclass(frozen=True, slots=True)
class Compared:
    """differences, and what was not compared."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...] = field(default=())


def compare(first: Path, second: Path) -> Compared:
    """Two directories of results, ours or lm-eval's. Raises ToolError (3) where they have no task in common."""
    found_in = [results.read(path) for path in (first, second)]
    ours, theirs = sample_files(first), sample_files(second)
    both = [name for name in ours if name in theirs]
    lost = [
        f"{path}: samples_{name}.jsonl is missing, and its results name {name}"
        for path, found, files in zip((first, second), found_in, (ours, theirs), strict=True)
        for name in missing(found, files)
    ]
    if lost and not both:
        hint = "score it again with -o; lm-eval writes samples with --log_samples"
        raise ToolError(f"{'; '.join(lost[:3])}", hint=hint)
    if not both:
        raise ToolError(f"{first} and {second} have no task in common", hint=f"the first has {', '.join(ours) or 'no samples'}")
    notes = [f"only in {path}: {', '.join(names)}" for path, names in _alone(first, second, ours, theirs) if names]
    notes += lost
    asked = [side_of(found, "").protocol for found in found_in]
    if asked[0] != asked[1]:
        notes.append(f"asked by the protocol {asked[0]}, then by {asked[1]}: --show says of each document what was otherwise")
    found: list[Difference] = []
    for name in both:
        pairs = [read_samples(files[name]) for files in (ours, theirs)]
        better = {
            **found_in[0].get("higher_is_better", {}).get(name, {}),
            **found_in[1].get("higher_is_better", {}).get(name, {}),
        }
        found += [replace(d, higher=better.get(d.metric, True)) for d in _task(name, pairs[0], pairs[1], notes)]
    return Compared(tuple(found), tuple(notes))


def check_changes(compared: Compared, wanted: Sequence[str], *, names_only: bool = False) -> None:
    """`mmlu.acc=-0.01`: the second run is better than the first by at least that much, which may be less than nothing.

    Raises ToolError: 5 where it is not, unless `names_only`; 2 for a score that was not compared.
    """
    keys: dict[str, list[str]] = {}
    for d in compared.differences:
        keys.setdefault(d.task, []).append(f"{d.metric},{d.answer}")
    for each in wanted:
        task, meant, bound = results.score_keys(each, keys)
        for d in compared.differences if not names_only else ():
            better = d.change if d.higher else -d.change
            if d.task == task and f"{d.metric},{d.answer}" in meant and not better >= bound:
                what = f"{task}.{d.metric},{d.answer} went from {d.first:.4f} to {d.second:.4f}"
                raise ToolError(
                    f"{what}, which is not {bound:g} better",
                    hint="--show 3 names documents that flipped; --fail-under sets the bound",
                    code=Exit.CHECK_FAILED,
                )


def sample_files(out: Path) -> dict[str, Path]:
    """Task -> its newest samples file."""
    found = {}
    for path in sorted(out.glob("**/samples_*.jsonl")):
        name = re.sub(r"_\d{4}-\d\d-\d\dT[\d.:-]+$", "", path.stem.removeprefix("samples_"))
        found[name] = path
    return found


def missing(found: Mapping[str, Any], files: Mapping[str, Path]) -> list[str]:
    """Tasks of results whose documents are nowhere; those that others are grouped in have none."""
    groups = {name for name, members in found.get("group_subtasks", {}).items() if members} | set(found.get("groups", {}))
    return [name for name in found["results"] if name not in groups and name not in files]


def _alone(first: Path, second: Path, ours: Mapping[str, Path], theirs: Mapping[str, Path]) -> list[tuple[Path, list[str]]]:
    return [(first, [n for n in ours if n not in theirs]), (second, [n for n in theirs if n not in ours])]


def _task(name: str, first: Sequence[Sample], second: Sequence[Sample], notes: list[str]) -> list[Difference]:
    ours, theirs = ({(s["filter"], s["doc_hash"], s["doc_id"]): s for s in samples} for samples in (first, second))
    by_number = not any(key in theirs for key in ours)
    if by_number:  # the same documents, written by another tool
        ours, theirs = ({(s["filter"], "", s["doc_id"]): s for s in samples} for samples in (first, second))
    common = [key for key in ours if key in theirs]
    if not common:
        notes.append(f"{name}: no document and answer in common")
        return []
    if len(common) < max(len(ours), len(theirs)):
        notes.append(f"{name}: {len(common)} answers in common, of {len(ours)} and {len(theirs)}")
    out = []
    for answer in dict.fromkeys(key[0] for key in common):
        pairs = [(ours[key], theirs[key]) for key in common if key[0] == answer]
        for metric in (m for m in pairs[0][0]["metrics"] if m in pairs[0][1]):
            if isinstance(pairs[0][0][metric], int | float):
                out.append(_difference(name, answer, metric, pairs))
            elif metric in pooled.METRICS and (found := _pooled_difference(name, answer, metric, pairs)):
                out.append(found)
            else:
                notes.append(f"{name}: {metric} is not compared" + ", it is beyond all numbers" * (metric in pooled.METRICS))
    return out


def _difference(name: str, answer: str, metric: str, pairs: Sequence[tuple[Sample, Sample]]) -> Difference:
    first, second = ([float(s[metric]) for s in side] for side in zip(*pairs, strict=True))
    changes = [b - a for a, b in zip(first, second, strict=True)]
    error = stderr(changes)
    p = chance(changes, error)
    return Difference(name, answer, metric, len(pairs), mean(first), mean(second), error, p, *_flipped(changes, pairs))


def _pooled_difference(name: str, answer: str, metric: str, pairs: Sequence[tuple[Sample, Sample]]) -> Difference | None:
    """Of sums over sums; None where one is infinite. Documents gain and lose by their own ratio."""
    how = pooled.METRICS[metric]
    first, second = ([pooled.pair_of(s[metric]) for s in side] for side in zip(*pairs, strict=True))
    changes = [_ratio(metric, b) - _ratio(metric, a) for a, b in pairs]
    values = [how.of(pooled.ratio(side)) for side in (first, second)]
    if not all(map(math.isfinite, values)):
        return None
    error = pooled.difference_stderr(how, first, second)
    p = normal_chance(values[1] - values[0], error) if any(changes) else 1.0
    return Difference(name, answer, metric, len(pairs), values[0], values[1], error, p, *_flipped(changes, pairs))


def _flipped(changes: Sequence[float], pairs: Sequence[tuple[Sample, Sample]]) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(documents that are better, those that are worse, how many prompts differ)."""
    gained = tuple(s["doc_id"] for (s, _), change in zip(pairs, changes, strict=True) if change > 0)
    lost = tuple(s["doc_id"] for (s, _), change in zip(pairs, changes, strict=True) if change < 0)
    return gained, lost, sum(a.get("prompt_hash") != b.get("prompt_hash") for a, b in pairs)


def chance(changes: Sequence[float], error: float | None) -> float | None:
    """Two-sided p: of flips of right and wrong exact (McNemar's test, binomial), else by the normal distribution."""
    if not any(changes):
        return 1.0 if changes else None
    if all(change in (-1.0, 0.0, 1.0) for change in changes):
        up, down = changes.count(1.0), changes.count(-1.0)
        count, least = up + down, min(up, down)
        if count < 1000:
            return float(min(1.0, 2 * sum(math.comb(count, k) for k in range(least + 1)) / 2**count))
    return normal_chance(mean(changes), error)


def normal_chance(change: float, error: float | None) -> float | None:
    """Two-sided p of a change by its standard error; None where there is none."""
    return math.erfc(abs(change) / error / math.sqrt(2)) if error else None


def table(compared: Compared) -> list[tuple[str, ...]]:
    """A row for each difference, as people read it."""
    out: list[tuple[str, ...]] = []
    for d in compared.differences:
        error = "" if d.error is None else f"±{d.error:.4f}"
        p = "" if d.p is None else f"{d.p:.3f}" if d.p >= 0.001 else "<0.001"
        flips = f"+{len(d.gained)} -{len(d.lost)}"
        out.append(
            (
                d.task,
                d.answer,
                d.metric,
                str(d.documents),
                f"{d.first:.4f}",
                f"{d.second:.4f}",
                f"{d.change:+.4f}",
                error,
                p,
                flips,
            )
        )
    return out


def flips(first: Path, second: Path, compared: Compared, most: int) -> list[dict[str, Any]]:
    """Documents whose score changed, with both answers and why; at most `most` of each score, those that changed most first."""
    found = [results.read(path) for path in (first, second)]
    ours, theirs = sample_files(first), sample_files(second)
    out = []
    for d in compared.differences:
        sides = [{(s["filter"], s["doc_id"]): s for s in read_samples(files[d.task])} for files in (ours, theirs)]
        runs = (side_of(found[0], d.task), side_of(found[1], d.task))
        flipped = [(_change(d, sides, number), number) for number in (*d.gained, *d.lost)]
        for _, number in sorted(flipped, key=lambda one: (-one[0], one[1]))[:most]:
            a, b = (side[d.answer, number] for side in sides)
            values = [_own(d.metric, sample) for sample in (a, b)]
            rolling = d.metric in pooled.OF_TEXTS  # what is scored is the text itself: there is no right one
            answers = [_shown(value) for value in values] if rolling else [answer_of(a), answer_of(b)]
            row = {"task": d.task, "answer": d.answer, "doc_id": number, "metric": d.metric, "why": why(a, b, runs)}
            row |= {"first": values[0], "second": values[1], "target": "" if rolling else a["target"], "answers": answers}
            out.append(row)
    return out


def _ratio(metric: str, sample: Sample) -> float:
    """A document's own, by which it is better or worse; of other metrics its value."""
    return pooled.ratio([pooled.pair_of(sample[metric])]) if metric in pooled.METRICS else float(sample[metric])


def _own(metric: str, sample: Sample) -> float | None:
    """A document's own score; None where it is infinite."""
    found = _ratio(metric, sample)
    found = pooled.METRICS[metric].of(found) if metric in pooled.METRICS else found
    return found if math.isfinite(found) else None


def _shown(value: float | None) -> str:
    return "beyond all numbers" if value is None else f"{value:.4f}"


def _change(d: Difference, sides: Sequence[Mapping[tuple[str, int], Sample]], number: int) -> float:
    first, second = (_ratio(d.metric, side[d.answer, number]) for side in sides)
    return abs(second - first)


def answer_of(sample: Sample) -> str:
    """What was answered: the text, or the most probable choice with how much more probable it is than the next."""
    read = sample["filtered_resps"]
    if read and isinstance(read[0], list):
        order = sorted(range(len(read)), key=lambda i: -float(read[i][0]))
        lead = float(read[order[0]][0]) - float(read[order[1]][0]) if len(order) > 1 else 0.0
        return f"choice {order[0]}, by {lead:.3f}"
    return str(read[0]) if read else ""
