"""Files of worked examples, and runs of the protocol mindspeed: settings, the table, resuming; cells as pandas reads them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from jumar.eval.cells import as_pandas
from jumar.eval.compare import compare, flips
from jumar.eval.requests import Done, Request, Response
from jumar.eval.run import Settings, evaluate
from jumar.schema.errors import Exit, ToolError
from mindspeed_files import prompts


def test_a_file_of_worked_examples_is_taken_as_it_is(mindspeed: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"anatomy": "One.", "high_school_physics": "Two.\n"}))
    first, second = prompts(mindspeed, "mmlu", fewshot={"mmlu": file})
    assert first.startswith("One.\n\nWhich rope?\nA. red\n")
    assert second.startswith("Two.\n\n\nWhich rope?\n")
    file.write_text(
        json.dumps({"gaokao-physics": ["问题 1.", "\n选:\n", "\n答案："], "math": ["Problem 1.", "\nx\n", "\nAnswer:"]})
    )
    assert prompts(mindspeed, "agieval", fewshot={"agieval": file})[::2] == [
        "问题 1.   Seen from above.\nWhich?\n\n选:\n\n(A)up\n(B)down\n\n答案：",
        "Problem 1.   1+1?\n\nx\n\n\n\nAnswer:",
    ]
    file.write_text(json.dumps({"few_shot": "Q: up?"}))
    assert prompts(mindspeed, "gsm8k", fewshot={"gsm8k": file}) == ["Q: up?\n\nHow many?"]


@pytest.mark.parametrize(
    "name, text, said, hint",
    [
        ("mmlu", '{"anatomy": ', "own.json: not JSON", '{"SUBJECT": "worked examples", ...}'),
        ("mmlu", "[]", "own.json: a list, expected an object", "SUBJECT"),
        ("mmlu", '{"law": "x", "arts": "y"}', "own.json has no 'anatomy'; it has arts, law", 'add "anatomy": a text'),
        ("mmlu", '{"anatomy": ["x"]}', "own.json: 'anatomy' is .*, expected a text", "fewshot"),
        ("gsm8k", '{"gsm8k": "x"}', "own.json has no 'few_shot'", 'add "few_shot"'),
        ("agieval", '{"gaokao-physics": "x"}', "expected a list of 3 texts", "in order: fewshot, ask, say"),
        ("mmlu", None, "own.json cannot be read: No such file", "--fewshot FILE"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    name: str, text: str | None, said: str, hint: str, mindspeed: Path, tmp_path: Path
) -> None:
    file = tmp_path / "own.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ToolError, match=said) as fault:
        prompts(mindspeed, name, fewshot={name: file})
    assert hint in str(fault.value.hint)
    assert fault.value.code == Exit.INPUT


class Writer:
    """Answers of a text each, in turn where the same is asked again; log-likelihoods are all the same."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def facts(self) -> dict[str, Any]:
        return {"model_source": "none"}

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        asked = list[str]()
        for number, request in enumerate(requests):
            text = self.texts[asked.count(request.context) % len(self.texts)]
            asked.append(request.context)
            done(number, Response(text if request.kind == "generate" else (-1.0, False)))


def run(mindspeed: Path, tasks: str, *texts: str, **words: Any) -> dict[str, Any]:
    settings = Settings(tasks=tuple(tasks.split(",")), data=mindspeed, **({"protocol": "mindspeed"} | words))
    return evaluate(lambda: Writer(*texts or ("B",)), settings)


def test_settings_that_do_not_fit_are_refused(mindspeed: Path, tmp_path: Path) -> None:
    file = str(tmp_path / "own.json")
    (tmp_path / "own.json").write_text('{"anatomy": "x"}')
    for tasks, words, said in (
        ("mmlu,bbh", {"fewshot": (file,)}, "which task is it for"),
        ("boolq", {"fewshot": (file,)}, "no task here takes worked examples"),
        ("mmlu", {"fewshot": (f"ceval={file}",)}, "which task is it for"),
        ("mmlu", {"fewshot": (file,), "shots": 3}, "holds the worked examples"),
        ("boolq", {"shots": 2}, "asks without worked examples"),
        ("agieval", {}, "agieval_gaokao-physics: its layout has no worked examples"),
        ("mmlu", {"chat": True}, "asks with texts as they are, and --chat was given"),
        ("mmlu", {"system": "Hi"}, "--system was given"),
        ("mmlu", {"fewshot": (file,), "protocol": "lm-eval"}, "no task here takes worked examples"),
    ):
        with pytest.raises(ToolError, match=said) as fault:
            run(mindspeed, tasks, **words)
        assert fault.value.code == Exit.USAGE


# --- runs


def test_the_table_has_a_row_for_each_subject(mindspeed: Path, tmp_path: Path) -> None:
    mmlu = mindspeed / "mmlu/test/anatomy_test.csv"
    mmlu.write_text(mmlu.read_text() * 3)
    out = tmp_path / "out"
    found = run(mindspeed, "mmlu,cmmlu,boolq", "B", "C", out=out)
    assert (out / "scores_mmlu.csv").read_text() == (
        f"subject,question_n,acc\nanatomy,3,{2 / 3}\nhigh_school_physics,1,1.0\ntotal,4,0.75\n"
    )
    assert (out / "scores_cmmlu.csv").read_text() == "subject,question_n,acc\n艺术学,1,1.0\ntotal,1,1.0\n"
    assert (out / "scores_boolq.csv").read_text() == f"subject,question_n,acc\nboolq,3,{1 / 3}\ntotal,3,{1 / 3}\n"
    assert found["results"]["mmlu"]["acc,none"] == 0.75
    assert found["config"]["protocol"] == "mindspeed"
    run(mindspeed, "mmlu", out=out, protocol="lm-eval", force=True)
    assert not list(out.glob("scores_*"))


def test_a_run_is_gone_on_with_by_its_own_protocol(mindspeed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(mindspeed, "mmlu", out=out)
    samples = out / "samples_mmlu_high_school_physics.jsonl"
    before = {path: path.read_bytes() for path in (samples, out / "scores_mmlu.csv")}
    samples.unlink()
    (out / "scores_mmlu.csv").unlink()
    with pytest.raises(ToolError, match=r"begun with other settings: .*protocol"):
        run(mindspeed, "mmlu", out=out, resume=True, protocol="lm-eval")
    (tmp_path / "own.json").write_text('{"anatomy": "x", "high_school_physics": "y"}')
    with pytest.raises(ToolError, match="begun with other settings: documents"):
        run(mindspeed, "mmlu", out=out, resume=True, fewshot=(str(tmp_path / "own.json"),))
    run(mindspeed, "mmlu", out=out, resume=True)
    assert {path: path.read_bytes() for path in before} == before


def test_two_protocols_side_by_side(mindspeed: Path, tmp_path: Path) -> None:
    """The same documents by number; what was asked otherwise is told in words."""
    first, second = tmp_path / "one", tmp_path / "two"
    run(mindspeed, "mmlu,gsm8k,boolq", "B", out=second)
    (mindspeed / "gsm8k/gsm8k_test.jsonl").rename(mindspeed / "gsm8k/test.jsonl")
    (mindspeed / "boolq/dev/dev.jsonl").rename(mindspeed / "boolq/dev.jsonl")
    run(mindspeed, "mmlu,boolq", out=first, protocol="lm-eval")
    compared = compare(first, second)
    assert any(note.startswith("asked by the protocol lm-eval, then by mindspeed") for note in compared.notes)
    assert [(d.task, d.metric, d.documents, d.first, d.second) for d in compared.differences] == [
        ("boolq", "acc", 3, 2 / 3, 1 / 3),
        ("mmlu_anatomy", "acc", 1, 0.0, 1.0),
        ("mmlu_high_school_physics", "acc", 1, 0.0, 1.0),
    ]
    flipped = {flip["task"]: flip for flip in flips(first, second, compared, 1)}
    assert flipped["mmlu_anatomy"]["answers"] == ["choice 0, by 0.000", "B"]
    reasons = flipped["mmlu_anatomy"]["why"].split("; ")
    assert [reason.partition(":")[0] for reason in reasons[:2]] == [
        "what stands before the question",
        "what stands behind the question",
    ]
    assert reasons[1].endswith(r": '0\nD. None' -> '\nD. nan'")
    assert reasons[2:] == [
        "the answer is the most probable of ' A', ' B', ' C', ' D' -> read from a text of 1 tokens at most",
        "a tie in the first, where the first choice counts",
    ]
    assert flipped["boolq"]["why"].startswith(
        "the answer is the most probable of ' no', ' yes' -> the most probable of 'Yes', 'No'; "
    )


# --- cells


def test_cells_as_pandas_reads_them() -> None:
    """Literally, and by pandas itself."""
    columns = [
        (["1", "02", "+3"], ["1", "2", "3"]),
        (["1", "2.50", ".5"], ["1.0", "2.5", "0.5"]),
        (["7", "None", "-0"], ["7.0", "nan", "0.0"]),
        (["true", "FALSE"], ["True", "False"]),
        (["true", "1"], ["true", "1"]),
        (["N/A", "text", " NA"], ["nan", "text", " NA"]),
        (["1e3", "1,000", "x"], ["1e3", "1,000", "x"]),
        (["inf", "1e-7"], ["inf", "1e-07"]),
        (["99999999999999999999", "1"], ["99999999999999999999", "1"]),
        (["", "null"], ["nan", "nan"]),
    ]
    for cells, expected in columns:
        rows = [{"q": "text", "x": cell} for cell in cells]
        assert [row["x"] for row in as_pandas(rows)] == expected
    for cells, expected in columns:
        text = io.StringIO()
        csv.writer(text).writerows([["q", "x"], *(["text", cell] for cell in cells)])
        frame = pandas.read_csv(io.StringIO(text.getvalue()))
        assert [f"{row['x']}" for _, row in frame.iterrows()] == expected
