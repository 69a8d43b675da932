"""Two runs side by side."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from jumar.eval.compare import chance, check_changes, compare, flips, table
from jumar.eval.explain import Side, side_of, why
from jumar.schema.errors import Exit, ToolError


def run(out: Path, scores: list[float], *, name: str = "quiz", stamp: str = "", prompt: str = "p", **more: Any) -> Path:
    """A directory of results of one task whose documents have these scores."""
    out.mkdir(exist_ok=True)
    (out / f"results{stamp}.json").write_text(json.dumps({"results": {name: {}}}))
    rows = [
        {
            "doc_id": i,
            "filter": "none",
            "metrics": ["acc"],
            "acc": score,
            "doc_hash": str(i),
            "prompt_hash": prompt,
            "target": "0",
        }
        | {"filtered_resps": [[-1.0 - score, False], [-1.5, False]]}
        | more
        for i, score in enumerate(scores)
    ]
    (out / f"samples_{name}{stamp}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_differences_are_paired(tmp_path: Path) -> None:
    first = run(tmp_path / "a", [1, 1, 0, 0, 1, 0, 1, 1])
    second = run(tmp_path / "b", [1, 1, 1, 1, 1, 1, 0, 1], stamp="_2026-01-31T10-00-00.123456", prompt="q")
    compared = compare(first, second)
    (found,) = compared.differences
    assert (found.documents, found.first, found.second, found.change) == (8, 0.625, 0.875, 0.25)
    assert (found.gained, found.lost, found.prompts) == ((2, 3, 5), (6,), 8)
    changes = [0, 0, 1, 1, 0, 1, -1, 0]
    mean = sum(changes) / 8
    assert found.error == pytest.approx((sum((c - mean) ** 2 for c in changes) / 7 / 8) ** 0.5)
    assert found.p == pytest.approx(2 * (1 + 4) / 2**4)  # McNemar, exact: one or fewer of four
    assert table(compared)[0][-1] == "+3 -1"
    shown = flips(first, second, compared, most=2)
    assert [(f["doc_id"], f["first"], f["second"], f["why"]) for f in shown] == [
        (2, 0, 1, "another prompt"),
        (3, 0, 1, "another prompt"),
    ]
    assert shown[0]["answers"] == ["choice 0, by 0.500", "choice 1, by 0.500"]


def texts(out: Path, metric: str, values: list[Any], **more: Any) -> Path:
    """A run over texts, whose documents have these sums and weights."""
    out.mkdir()
    (out / "results.json").write_text(json.dumps({"results": {"texts": {}}}))
    rows = [
        {"doc_id": i, "filter": "none", "metrics": [metric], metric: value, "doc_hash": str(i), "prompt_hash": "p", "target": "t"}
        | {"filtered_resps": [-1.0]}
        | more
        for i, value in enumerate(values)
    ]
    (out / "samples_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def bits(values: list[list[float]]) -> float:
    return -sum(v for v, _ in values) / sum(w for _, w in values) / math.log(2)


def perplexity(values: list[list[float]]) -> float:
    return math.exp(-sum(v for v, _ in values) / sum(w for _, w in values))


@pytest.mark.parametrize("metric, score", [("bits_per_byte", bits), ("word_perplexity", perplexity)])
def test_scores_of_whole_texts_are_paired_and_weighed(metric: str, score: Any, tmp_path: Path) -> None:
    drawn = random.Random(0)
    first = [[-drawn.uniform(1, 2) * w, w] for w in (drawn.randint(5, 500) for _ in range(200))]
    second = [[v * drawn.uniform(0.8, 1.1), w] for v, w in first]
    (found,) = compare(texts(tmp_path / "a", metric, first), texts(tmp_path / "b", metric, second)).differences
    assert (found.documents, found.first, found.second) == (200, pytest.approx(score(first)), pytest.approx(score(second)))
    assert found.change < 0
    left = [score(second[:i] + second[i + 1 :]) - score(first[:i] + first[i + 1 :]) for i in range(200)]
    middle = sum(left) / 200
    jackknife = math.sqrt(199 / 200 * sum((x - middle) ** 2 for x in left))
    assert found.error == pytest.approx(jackknife, rel=0.02)
    assert found.p == pytest.approx(math.erfc(-found.change / found.error / math.sqrt(2)))
    assert set(found.gained) == {i for i in range(200) if second[i][0] > first[i][0]}
    assert len(found.gained) + len(found.lost) == 200


def test_with_equal_weights_it_is_the_error_of_a_mean(tmp_path: Path) -> None:
    first, second = [[-8.0, 4], [-12.0, 4], [-10.0, 4]], [[-6.0, 4], [-12.0, 4], [-9.0, 4]]
    paths = texts(tmp_path / "a", "bits_per_byte", first), texts(tmp_path / "b", "bits_per_byte", second)
    compared = compare(*paths)
    (found,) = compared.differences
    changes = [(b[0] - a[0]) / 4 for a, b in zip(first, second, strict=True)]
    mean = sum(changes) / 3
    expected = math.sqrt(sum((c - mean) ** 2 for c in changes) / 2 / 3)
    assert found.error == pytest.approx(expected / math.log(2))
    assert (found.gained, found.lost) == ((0, 2), ())
    shown = flips(*paths, compared, most=1)
    assert [(f["doc_id"], f["target"], f["answers"]) for f in shown] == [(0, "", ["2.8854", "2.1640"])]
    (same,) = compare(paths[0], paths[0]).differences
    assert (same.change, same.error, same.p) == (0, 0, 1)


def test_perplexities_beyond_all_numbers(tmp_path: Path) -> None:
    """By words, of texts without spaces; those that are almost so are compared."""
    high, higher = [[-660.0, 1.0], [-640.0, 1.0]], [[-680.0, 1.0], [-650.0, 1.0]]
    paths = [texts(tmp_path / name, "word_perplexity", values) for name, values in (("a", high), ("b", higher))]
    (found,) = compare(*paths).differences
    assert found.second == pytest.approx(math.exp(665))
    assert found.error is not None
    assert found.error > 0
    beyond = texts(tmp_path / "c", "word_perplexity", [[-1500.0, 1.0], [-640.0, 1.0]])
    compared = compare(paths[0], beyond)
    assert compared.differences == ()
    assert compared.notes == ("texts: word_perplexity is not compared, it is beyond all numbers",)
    by_bytes = [texts(tmp_path / name, "bits_per_byte", values) for name, values in (("d", high), ("e", higher))]
    assert len(flips(*by_bytes, compare(*by_bytes), most=2)) == 2


def test_instructions_are_paired_by_prompt(tmp_path: Path) -> None:
    first, second = [[True, False], [False], [True]], [[True, True], [False], [False]]
    paths = texts(tmp_path / "a", "inst_level_strict_acc", first), texts(tmp_path / "b", "inst_level_strict_acc", second)
    compared = compare(*paths)
    (found,) = compared.differences
    assert (found.first, found.second, found.gained, found.lost) == (0.5, 0.5, (0,), (2,))
    assert [f["doc_id"] for f in flips(*paths, compared, most=2)] == [2, 0]  # the one that changed most
    damaged = texts(tmp_path / "c", "bits_per_byte", [[1.0, 2.0], "x"])
    with pytest.raises(ToolError, match=r"a sample's score is 'x', expected \[sum, weight\]"):
        compare(damaged, damaged)


def test_a_pipeline_stops_where_the_second_is_not_so_much_better(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1, 1, 0, 0]), run(tmp_path / "b", [1, 1, 1, 0])
    better, worse = compare(first, second), compare(second, first)
    check_changes(better, ["quiz.acc=0", "quiz.acc,none=0.25"])
    check_changes(worse, ["quiz.acc=-0.25"])
    for compared, wanted in ((better, "quiz.acc=0.26"), (worse, "quiz.acc=0"), (worse, "quiz.acc=-0.2")):
        check_changes(compared, [wanted], names_only=True)
        with pytest.raises(ToolError, match=r"quiz\.acc,none went from .* better") as fault:
            check_changes(compared, [wanted])
        assert fault.value.code == Exit.CHECK_FAILED
    for wrong in ("quiz.f1=0", "other.acc=0", "quiz.acc", "quiz.acc=much"):
        with pytest.raises(ToolError) as fault:
            check_changes(better, [wrong], names_only=True)
        assert fault.value.code == Exit.USAGE
    for out in (first, second):  # of a perplexity less is better
        (out / "results.json").write_text(json.dumps({"results": {"quiz": {}}, "higher_is_better": {"quiz": {"acc": False}}}))
    check_changes(compare(second, first), ["quiz.acc=0.25"])
    with pytest.raises(ToolError, match="which is not 0 better"):
        check_changes(compare(first, second), ["quiz.acc=0"])


def test_chance() -> None:
    assert chance([0, 0], 0.0) == 1
    assert chance([1.0] * 10, 0.0) == 2 / 2**10
    assert chance([1.0, -1.0], 1.0) == 1
    assert chance([0.5, 0.5, 0.3, 0.7] * 5, 0.05) == pytest.approx(0, abs=1e-12)
    assert chance([0.1, -0.1, 0.2, -0.15], 0.08) > 0.5


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a", [1, 0]), run(tmp_path / "b", [1, 0, 1])
    assert compare(first, second).notes == ("quiz: 2 answers in common, of 2 and 3",)
    run(first, [1], name="other")
    assert f"only in {first}: other" in compare(first, second).notes
    with pytest.raises(ToolError, match="no task in common"):
        compare(first, run(tmp_path / "c", [1], name="poem"))
    with pytest.raises(ToolError, match="holds no results"):
        compare(first, tmp_path / "nowhere")
    elsewhere = compare(first, run(tmp_path / "d", [0, 0, 0], doc_hash="of another tool")).differences
    assert [(d.documents, d.lost) for d in elsewhere] == [(2, (0,))]


def sample(prompt: str, rest: object, *, read: object, **more: Any) -> dict[str, Any]:
    """A document that was asked with this prompt. rest: a continuation, or what ends a text."""
    arguments = {"gen_args_0": {"arg_0": prompt, "arg_1": rest}}
    base = {"arguments": arguments, "prompt_hash": prompt, "filtered_resps": read, "resps": [[read]], "doc": {"question": "Up?"}}
    return base | more


TEXT = {"until": [], "max_gen_toks": 1}
PLAIN = Side("lm-eval", False, 5)


def test_why_a_document_flipped() -> None:
    """Each part of the prompt and each way of reading is named, and nothing else."""
    scored = sample("One.\n\nUp?\nAnswer:", " A", read=[[-1.0, False], [-2.0, False]])
    for other, sides, said in (
        ({}, (PLAIN, PLAIN), "the same prompt"),
        ({"prompt": "One.\n\nUp? Say:"}, (PLAIN, PLAIN), r"what stands behind the question: '\nAnswer' -> ' Say'"),
        (
            {"prompt": "Two.\n\nUp?\nAnswer:"},
            (PLAIN, PLAIN),
            "what stands before the question: 'One' -> 'Two'",
        ),
        ({"prompt": "Up?\nAnswer:"}, (PLAIN, Side("lm-eval", False, 0)), "worked examples: 5 -> 0"),
        ({"prompt": "Down?"}, (PLAIN, PLAIN), r"another prompt: 'One.\n\nUp?\nAnswer:' -> 'Down?'"),
        (
            {"prompt": "<u>One.\n\nUp?\nAnswer:</u>"},
            (PLAIN, Side("lm-eval", True, 5)),
            "through the chat template in the second; what stands before the question: '' -> '<u>'; "
            "what stands behind the question: '' -> '</u>'",
        ),
        ({"rest": "A"}, (PLAIN, PLAIN), "the answer is the most probable of ' A' -> the most probable of 'A'"),
        (
            {"rest": TEXT, "read": ["B"]},
            (PLAIN, PLAIN),
            "the answer is the most probable of ' A' -> read from a text of 1 tokens at most",
        ),
        ({"truncated": True}, (PLAIN, PLAIN), "the prompt lost its beginning in the second"),
        (
            {"read": [[-1.0, False], [-1.0, False]]},
            (PLAIN, PLAIN),
            "the same prompt; a tie in the second, where the first choice counts",
        ),
        ({"read": [[-1.0, False], [-1.01, False]]}, (PLAIN, PLAIN), "the same prompt; close in the second: a lead of 0.01"),
    ):
        words: dict[str, Any] = {"prompt": "One.\n\nUp?\nAnswer:", "rest": " A", "read": scored["filtered_resps"]} | other
        assert why(scored, sample(**words), sides) == said
    doc = {"question": "Up?", "A": "a rope that is longer than the question"}
    long, other = (sample(f"Up?{mark}A. {doc['A']}", " A", read=scored["filtered_resps"], doc=doc) for mark in ("\n", " "))
    assert why(long, other, (PLAIN, PLAIN)) == r"what stands behind the question: '\n' -> ' '"
    read, otherwise = (sample("Up?", TEXT, read=[answer], resps=[["(B)"]]) for answer in ("B", "[invalid]"))
    assert why(read, otherwise, (PLAIN, PLAIN)) == "the same text is read otherwise: 'B' -> '[invalid]'"


def test_how_a_run_asked() -> None:
    ours = {"config": {"protocol": "mindspeed", "apply_chat_template": False}, "n-shot": {"mmlu": 5}}
    assert side_of(ours, "mmlu") == Side("mindspeed", False, 5)
    assert side_of({"config": {}, "chat_template": "{{ messages }}", "n-shot": {}}, "mmlu") == Side("lm-eval", True, None)
