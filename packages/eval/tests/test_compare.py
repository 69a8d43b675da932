"""Two runs side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jumar.eval.compare import chance, compare, flips, table
from jumar.eval.explain import Side, side_of, why
from jumar.schema.errors import ToolError


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
