"""NeedleBench as MindSpeed-LLM asks it: documents and prompts byte for byte, and the score.

Expected texts are written out by the rules of MindSpeed-LLM's eval_impl/needlebench_single.py and needlebench_eval.py.
"""

from __future__ import annotations

import base64
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval_files import Maker
from jumar.eval.data import find
from jumar.eval.items import How, Item, Unit, unit_of
from jumar.eval.local import LocalModel, Opening
from jumar.eval.metrics import edits, measured
from jumar.eval.remote import RemoteModel
from jumar.eval.requests import Measure
from jumar.eval.retrieval import depths_of, open_encoding
from jumar.eval.run import Settings, evaluate
from jumar.eval.task import Span, Task, load_task
from jumar.schema.errors import Exit, ToolError

pytest.importorskip("tiktoken")
ENGLISH = """\
You are an intelligent AI assistant skilled in answering user questions.
Please keep your answers concise and clear. Do not talk about irrelevant topics or repeat your answers.
The document given to you by the user is 0123456
The rope is red.
789abc

Now, the question is: Where is it? Before answering, please consider what in the document is most relevant to this question. \
Please answer in the format 'It is'.
"""
CHINESE = """\
你是一个善于回答用户问题的智能AI助手
请保持你的回答简洁清楚。不要说和下面文档中的无关的话，或重复你的回答
用户现在给你的文档是雪山
绳子是红的。
路长

现在请问：它在哪里？在回答之前，请思考文档中与此问题最相关的内容是什么。请按照“它在”的格式回答。
"""


def published(make: Maker, texts: list[str] | None = None, chinese: list[str] | None = None) -> None:
    """NeedleBench's files. A token is a byte, or one of two that are more."""
    make.lines("NeedleBench/PaulGrahamEssays.jsonl", [{"text": text} for text in texts or ["0123456789abcdef"]])
    make.lines("NeedleBench/zh_finance.jsonl", [{"text": text} for text in chinese or ["雪山路长绳"]])
    rows = [
        ("English", "The rope is red.", "Where is it? Please answer in the format 'It is'.", "red"),
        ("Chinese", "绳子是红的。", "它在哪里？请按照“它在”的格式回答。", "红"),
    ]
    names = ("language", "needle", "retrieval_question", "arg2")
    make.lines("NeedleBench/needles.jsonl", [dict(zip(names, row, strict=True)) for row in rows])
    tokens = [*(bytes([n]) for n in range(256)), b"th", b"the"]
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)]
    (make.folder / "NeedleBench/cl100k_base.tiktoken").write_text("".join(lines))


def small(span: Span, repeats: int = 1) -> Task:
    task = load_task("needlebench", "mindspeed")
    assert task.retrieval is not None
    return replace(task, retrieval=replace(task.retrieval, sets=(span,), repeats=repeats))


def units(make: Maker, task: Task, **how: Any) -> list[Unit]:
    told = How(template=lambda messages: messages[0]["content"], **how)
    return [unit_of(task, found, told) for found in find(task, make.folder)]


def test_prompts(make: Maker) -> None:
    """13 bytes of text are left beside the needle of 18, 12 in Chinese; the needle stands at int(len * depth)."""
    published(make)
    task = small(Span(name="x", context=1, lengths=(41,), spare=(10, 9), depths=(54,)))
    (english, chinese) = units(make, task)
    assert english.items[0].requests[0].context == ENGLISH
    assert (english.name, chinese.name) == ("needlebench_PaulGrahamEssays", "needlebench_zh_finance")
    chinese = units(make, small(Span(name="x", context=1, lengths=(41,), spare=(10, 9), depths=(50,))))[1]
    asked = chinese.items[0].requests[0]
    assert asked.context == CHINESE
    assert (asked.kind, asked.until, asked.max_new_tokens, asked.beams) == ("generate", (), 64, None)
    assert "context" not in chinese.items[0].doc


def test_orders_and_needles_are_drawn_as_there(make: Maker) -> None:
    """The module's generator, seeded anew for each, shuffles what it has shuffled before; short texts are taken whole."""
    texts = ["a b the", "c", "dd", "e f"]
    published(make, texts)
    span = Span(name="x", context=1, lengths=(9_000, 9_001), spare=(0, 0), depths=(0, 100))
    (english, _) = units(make, small(span, repeats=3))
    assert (len(english.items), english.total) == (12, 12)
    order = list(texts)
    for counter, item in enumerate(english.items[3:6]):
        random.seed(counter)
        random.shuffle(order)
        assert (item.doc["length"], item.doc["depth"]) == (9_000, 100)
        assert f"by the user is {''.join(order)}\nThe rope is red.\n\n" in item.requests[0].context
    assert (
        units(make, small(Span(name="x", context=1, lengths=(9,), spare=(0, 0), depths=(0,)), repeats=5), limit=2)[0].total == 5
    )


def test_a_cut_within_a_character_is_what_the_tokens_are(make: Maker) -> None:
    published(make)
    (_, chinese) = units(make, small(Span(name="x", context=1, lengths=(33,), spare=(0, 9), depths=(0,))))
    assert "绳子是红的。\n雪\ufffd\n\n" in chinese.items[0].requests[0].context


def test_sets(make: Maker) -> None:
    task = load_task("needlebench", "mindspeed")
    assert task.retrieval is not None
    documents = {span.name: 2 * task.retrieval.repeats * len(span.lengths) * len(depths_of(span)) for span in task.retrieval.sets}
    counts = {"4k": 1600, "8k": 1600, "32k": 1760, "128k": 1760, "200k": 1760, "256k": 660, "512k": 880, "1000k": 1760}
    assert documents == counts
    assert depths_of(task.retrieval.sets[0])[:2] == [0.0, 100 / 19]
    assert task.retrieval.sets[2].spare == (3000, 200)
    published(make)
    for context, name in ((4096, "4k"), (40_960, "32k"), (204_800, "200k"), (1 << 20, "1000k")):
        found = units(make, task, measure=Measure(context=context), limit=1)
        assert found[0].notes[0].startswith(f"the set {name}: ")
    with pytest.raises(ToolError, match="the model's context is 2048, and 4096 is the least"):
        units(make, task, measure=Measure(context=2048))
    with pytest.raises(ToolError, match="an endpoint does not say how long") as fault:
        units(make, task)
    assert str(fault.value.hint).startswith("choose among needlebench_4k, needlebench_8k, ")
    assert units(make, load_task("needlebench_8k", "mindspeed"), limit=1)[1].name == "needlebench_8k_zh_finance"
    with pytest.raises(ToolError, match="there is no task 'needlebench_9k'"):
        load_task("needlebench_9k", "mindspeed")


@pytest.mark.parametrize(
    "said, score",
    [
        ("It is red, I think.", 1.0),
        ("The rope is rxd.", 0.2 * (1 - 1 / 13)),
        ("The\nrope is rxd. And more.", 0.2 * (1 - 1 / 13)),  # ends at the needle's last character, from eight tenths of it on
        ("The rope is blue, I say so", 0.2 * (1 - 5 / 15)),
        ("The", 0.2 * (1 - 10 / 13)),
        ("", 0.0),
    ],
)
def test_score(said: str, score: float) -> None:
    """A needle of 13 characters, spaces left out."""
    task = load_task("needlebench", "mindspeed")
    item = Item(0, {"needle": "\nThe rope is red.\n"}, "red", (), ())
    ((_, _, found, _),) = measured(task, item, [said])
    assert found["retrieval"] == pytest.approx(score)


def test_edits() -> None:
    assert [edits(*pair) for pair in (("kitten", "sitting"), ("", "abc"), ("abc", ""), ("flaw", "lawn"), ("ropes", "rope"))] == [
        3,
        3,
        3,
        2,
        1,
    ]


def test_files_that_are_missing_or_damaged(make: Maker) -> None:
    published(make)
    task, folder = load_task("needlebench_4k", "mindspeed"), make.folder / "NeedleBench"
    path = folder / "cl100k_base.tiktoken"
    good = path.read_text()
    for text, message in (("QQ== 0\n", "the byte .* is no token in it"), ("QQ== 0\nQ?\n", "tiktoken:2: no token and its rank")):
        path.write_text(text)
        with pytest.raises(ToolError, match=message):
            open_encoding(path)
    path.unlink()
    with pytest.raises(ToolError, match=r"cl100k_base.tiktoken is missing: the lengths of documents are in its tokens"):
        units(make, task)
    path.write_text(good)
    make.lines("NeedleBench/needles.jsonl", [{"language": "English", "needle": "x", "arg2": "y"}])
    with pytest.raises(ToolError, match=r"needles.jsonl: row 1: no text 'retrieval_question'"):
        units(make, task)
    (folder / "zh_finance.jsonl").unlink()
    with pytest.raises(ToolError, match=r"zh_finance.jsonl is missing"):
        units(make, task)


def test_a_run_asks_through_the_template_and_has_its_table(hf: Path, make: Maker, tmp_path: Path) -> None:
    published(make)
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=8192))
    settings = Settings(tasks=("needlebench_4k",), data=make.folder, protocol="mindspeed", limit=1, max_new_tokens=2)
    found = evaluate(lambda: model, replace(settings, out=tmp_path / "out"))
    assert set(found["results"]) == {"needlebench_4k", "needlebench_4k_PaulGrahamEssays", "needlebench_4k_zh_finance"}
    assert 0 <= found["results"]["needlebench_4k"]["retrieval,none"] <= 0.2
    table = (tmp_path / "out/scores_needlebench_4k.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table] == [
        *(["subject", "question_n"], ["PaulGrahamEssays", "1"], ["zh_finance", "1"], ["total", "2"])
    ]
    (sample,) = map(json.loads, (tmp_path / "out/samples_needlebench_4k_PaulGrahamEssays.jsonl").open())
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert prompt == model.render([{"role": "user", "content": prompt[prompt.index("You are") : prompt.index("'It is'.") + 9]}])
    assert prompt.count("Please answer in the format 'It is'.\n") == 1


def test_an_endpoint_is_asked_with_chat_alone(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jumar.eval.remote.TRIES", 1)
    published(make)
    settings = Settings(tasks=("needlebench_4k",), data=make.folder, protocol="mindspeed", limit=1)
    with pytest.raises(ToolError, match="asks through the chat template") as fault:
        evaluate(lambda: RemoteModel("http://127.0.0.1:9/v1", name="tiny"), settings)
    assert (fault.value.code, fault.value.hint) == (Exit.USAGE, "--chat sends conversations")
    with pytest.raises(ToolError, match="texts as they are, and --chat was given"):
        evaluate(lambda: RemoteModel("http://127.0.0.1:9/v1", name="tiny"), replace(settings, tasks=("mmlu",), chat=True))
    with pytest.raises(ToolError, match=r"127\.0\.0\.1:9"):  # nothing is refused: nobody is there
        evaluate(lambda: RemoteModel("http://127.0.0.1:9/v1", name="tiny", chat=True), replace(settings, chat=True))
