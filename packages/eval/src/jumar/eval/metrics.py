"""What is measured of a document, and how a task's score and its standard error come of it. Definitions are lm-eval 0.4.13's."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jumar.eval.equations import same_answer
from jumar.eval.ifeval import checks_of, loosely, strictly
from jumar.eval.items import Item, Unit
from jumar.eval.sandbox.host import Verdict
from jumar.eval.task import Extract, Match, Task
from jumar.eval.template import value_of
from jumar.schema.errors import ToolError

WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)
Judge = Callable[[Task, Item, str], Verdict]
"""Runs the program that an answer makes."""
Value = float | tuple[float, int] | list[bool]
"""Of one document: a number, a log-likelihood and how many words or bytes it is of, or which of its instructions are followed."""


@dataclass(frozen=True, slots=True)
class Metric:
    """name: in results. of: (task, item, response values) -> Value. higher: whether more is better.

    judged: `of` takes the verdicts on programs
    needs: raises ToolError for a document that cannot be measured
    """

    name: str
    of: Callable[[Task, Item, Sequence[Any]], Value]
    total: Callable[[Sequence[Any]], float]
    higher: bool = True
    judged: bool = False
    needs: Callable[[Mapping[str, Any]], object] | None = None


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def stderr(values: Sequence[float]) -> float | None:
    """Of a mean, with Bessel's correction; None of fewer than two values."""
    if len(values) < 2:
        return None
    middle = mean(values)
    return math.sqrt(sum((v - middle) ** 2 for v in values) / (len(values) - 1)) / math.sqrt(len(values))


def pooled_stderr(stderrs: Sequence[float], sizes: Sequence[int]) -> float | None:
    """Of a mean over several sets of documents, weighted by size; None where too few documents are left.

    https://en.wikipedia.org/wiki/Pooled_variance
    """
    freedom = sum(sizes) - len(sizes)
    if freedom <= 0:
        return None
    variance = sum((size - 1) * error**2 * size for error, size in zip(stderrs, sizes, strict=True)) / freedom
    return math.sqrt(variance / sum(sizes))


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    return sum(a for a, _ in values) / sum(b for _, b in values)


# --- choices


def _best(scores: Sequence[float]) -> int:
    """The number of the first highest."""
    return max(range(len(scores)), key=lambda i: (scores[i], -i))


def _right(task: Task, item: Item, responses: Sequence[Any]) -> float:
    return float(_best([value for value, _ in responses]) in item.targets)


def _by(length: Callable[[str], int]) -> Callable[[Task, Item, Sequence[Any]], float]:
    def right(task: Task, item: Item, responses: Sequence[Any]) -> float:
        scores = [v / length(c) if length(c) else -math.inf for (v, _), c in zip(responses, item.choices, strict=True)]
        return float(_best(scores) in item.targets)

    return right


def _true_mass(task: Task, item: Item, responses: Sequence[Any]) -> float:
    """The share of true answers in the probability of all (`labels`: 1 for each that is true)."""
    weights = [math.exp(value) for value, _ in responses]
    return sum(w for w, label in zip(weights, item.doc["labels"], strict=True) if label == 1) / sum(weights)


# --- texts


def extract(how: Extract, text: str, doc: Mapping[str, Any] | None = None) -> str:
    """What of a text counts as the answer. doc: for the expressions of `read`."""
    for expression in how.read:
        text = str(value_of(expression)({**(doc or {}), "text": text}))
    if how.find is None:
        return text.strip() if how.strip else text
    found = re.findall(how.find, text)
    if not found or not -len(found) <= how.take < len(found):
        return how.otherwise
    chosen = found[how.take]
    if isinstance(chosen, tuple):
        chosen = next(filter(None, chosen), how.otherwise)
    return str(chosen).strip()


def alike(match: Match, text: str) -> str:
    """What two texts are compared by."""
    for pattern in match.ignore:
        text = re.sub(pattern, "", text)
    text = text.lower() if match.ignore_case else text
    return text.translate(WITHOUT_PUNCTUATION) if match.ignore_punctuation else text


def _exact(task: Task, item: Item, responses: Sequence[Any]) -> float:
    return float(any(alike(task.match, responses[0]) == alike(task.match, str(t)) for t in item.targets))


def _begins(task: Task, item: Item, responses: Sequence[Any]) -> float:
    return float(alike(task.match, responses[0]).strip().startswith(alike(task.match, str(item.target)).strip()))


def _keywords(task: Task, item: Item, responses: Sequence[Any]) -> float:
    """The share of the words that are asked for (a list, or one) which are in the answer."""
    return mean([float(alike(task.match, str(w)) in alike(task.match, responses[0])) for w in item.targets])


def _retrieval(task: Task, item: Item, responses: Sequence[Any]) -> float:
    """1 for an answer with the keyword, else a fifth of how near it comes to the needle, spaces left out.

    NeedleBench's (Li et al. 2024, arXiv 2407.11963, sec. 3.3): by edits, over the longer one's length.
    """
    if str(item.target) in responses[0]:
        return 1.0
    needle, said = ("".join(str(text).split()) for text in (item.doc["needle"], responses[0]))
    least, most = int(0.8 * len(needle)), int(1.2 * len(needle))
    said = said[:most]
    end = said.find(needle[-1], least)
    said = said[: end + 1] if end >= 0 else said
    return 0.2 * (1 - edits(said, needle) / max(len(said), len(needle)))


def edits(first: str, second: str) -> int:
    """Characters put in, taken out or changed, at least, from one text to the other."""
    row = list(range(len(second) + 1))
    for number, a in enumerate(first, 1):
        diagonal, row[0] = row[0], number
        for i, b in enumerate(second, 1):
            diagonal, row[i] = row[i], min(row[i] + 1, row[i - 1] + 1, diagonal + (a != b))
    return row[-1]


def _same_answer(task: Task, item: Item, responses: Sequence[Any]) -> float:
    return float(any(same_answer(responses[0], str(target)) for target in item.targets))


# --- programs


def pass_at(k: int, samples: int, passed: int) -> float:
    """The chance that one of k samples passes, estimated without bias (Chen et al. 2021, arXiv 2107.03374, eq. 1)."""
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)


def _pass_at_1(task: Task, item: Item, verdicts: Sequence[Any]) -> float:
    return pass_at(1, len(verdicts), sum(verdict.passed for verdict in verdicts))


# --- instructions


def _all_followed(how: Callable[[Mapping[str, Any], str], list[bool]]) -> Callable[[Task, Item, Sequence[Any]], float]:
    return lambda task, item, responses: float(all(how(item.doc, responses[0])))


def _followed(how: Callable[[Mapping[str, Any], str], list[bool]]) -> Callable[[Task, Item, Sequence[Any]], list[bool]]:
    return lambda task, item, responses: how(item.doc, responses[0])


def _share(values: Sequence[Sequence[bool]]) -> float:
    return mean([followed for of_doc in values for followed in of_doc])


# --- whole texts


def _words(task: Task, item: Item, responses: Sequence[Any]) -> tuple[float, int]:
    return responses[0], len(re.split(r"\s+", _whole(task, item)))


def _bytes(task: Task, item: Item, responses: Sequence[Any]) -> tuple[float, int]:
    return responses[0], len(_whole(task, item).encode())


def _whole(task: Task, item: Item) -> str:
    """What words and bytes are counted of: the text before it was mended for the model, if the task says where that is."""
    return str(value_of(task.target)(item.doc)) or item.requests[0].rest


def _perplexity(values: Sequence[tuple[float, int]]) -> float:
    return math.exp(-_weighted(values))


def _bits(values: Sequence[tuple[float, int]]) -> float:
    return -_weighted(values) / math.log(2)


METRICS: dict[str, Metric] = {
    "acc": Metric("acc", _right, mean),
    "acc_norm": Metric("acc_norm", _by(len), mean),
    "acc_bytes": Metric("acc_bytes", _by(lambda text: len(text.encode())), mean),
    "true_mass": Metric("acc", _true_mass, mean),
    "exact_match": Metric("exact_match", _exact, mean),
    "acc_text": Metric("acc", _exact, mean),
    "begins_with": Metric("begins_with", _begins, mean),
    "keywords": Metric("keywords", _keywords, mean),
    "retrieval": Metric("retrieval", _retrieval, mean),
    "same_answer": Metric("acc", _same_answer, mean),
    "pass@1": Metric("pass@1", _pass_at_1, mean, judged=True),
    "prompt_level_strict_acc": Metric("prompt_level_strict_acc", _all_followed(strictly), mean, needs=checks_of),
    "inst_level_strict_acc": Metric("inst_level_strict_acc", _followed(strictly), _share, needs=checks_of),
    "prompt_level_loose_acc": Metric("prompt_level_loose_acc", _all_followed(loosely), mean, needs=checks_of),
    "inst_level_loose_acc": Metric("inst_level_loose_acc", _followed(loosely), _share, needs=checks_of),
    "word_perplexity": Metric("word_perplexity", _words, _perplexity, higher=False),
    "byte_perplexity": Metric("byte_perplexity", _bytes, _perplexity, higher=False),
    "bits_per_byte": Metric("bits_per_byte", _bytes, _bits, higher=False),
}


def check(unit: Unit) -> None:
    """Raises ToolError for a document that the task's metrics cannot measure: before a model is asked."""
    needs = dict.fromkeys(needed for m in unit.task.metrics if (needed := METRICS[m].needs) is not None)
    for item in unit.items if needs else ():
        try:
            for need in needs:
                need(item.doc)
        except ToolError as fault:
            raise fault.at(f"{unit.name}, document {item.number}") from None


def measured(
    task: Task, item: Item, values: Sequence[Any], judge: Judge | None = None
) -> list[tuple[str, list[Any], dict[str, Value], list[Verdict]]]:
    """(name of the answer, what counts as the answer, metric -> value, verdicts) of each way in which answers are read."""
    out = []
    for how in task.answers or (Extract(name="none"),):
        read = [extract(how, value, item.doc) for value in values] if task.kind == "generate" else list(values)
        verdicts = [judge(task, item, text) for text in read] if judge is not None else []
        of = {m: METRICS[m].of(task, item, verdicts if METRICS[m].judged else read) for m in task.metrics}
        out.append((how.name, read, {METRICS[m].name: value for m, value in of.items()}, verdicts))
    return out


def _total(metric: Metric, values: Sequence[Any]) -> float | str:
    """ "N/A" for what no number holds: a perplexity by words of a language that has no spaces."""
    try:
        return metric.total(values)
    except OverflowError:
        return "N/A"


def scores(task: Task, values: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    """ "acc,none" -> score and "acc_stderr,none" -> its standard error ("N/A"), of each answer's and metric's values."""
    out: dict[str, Any] = {}
    for answer, of_metric in values.items():
        for metric in (METRICS[name] for name in task.metrics):
            of_docs = of_metric[metric.name]
            out[f"{metric.name},{answer}"] = _total(metric, of_docs)
            error = stderr(of_docs) if metric.total is mean else None
            out[f"{metric.name}_stderr,{answer}"] = "N/A" if error is None else error
    return out
