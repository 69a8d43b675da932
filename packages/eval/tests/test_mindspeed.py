"""The protocol mindspeed: prompts byte for byte, and what counts as the answer.

Expected texts are written out by the rules of MindSpeed-LLM's mindspeed_llm/tasks/evaluation.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from jumar.eval.listing import listing
from jumar.eval.local import LocalModel, Opening
from jumar.eval.metrics import measured
from jumar.eval.remote import RemoteModel
from jumar.eval.requests import Request, Response
from jumar.eval.task import load_task, task_files
from jumar.schema.errors import ToolError
from mindspeed_files import prompts, units


def test_its_tasks_are_its_own() -> None:
    names = {"agieval", "bbh", "bbh_cot", "boolq", "ceval", "cmmlu", "gsm8k", "hellaswag", "mmlu"}
    assert names <= set(task_files("mindspeed"))
    assert all(load_task(name, "mindspeed").protocol == "mindspeed" for name in task_files("mindspeed"))
    assert {row["task"] for row in listing(None, "mindspeed")} == set(task_files("mindspeed"))
    with pytest.raises(ToolError, match="there is no task 'piqa' in the protocol mindspeed") as fault:
        load_task("piqa", "mindspeed")
    assert fault.value.hint == "jumar-eval list --protocol mindspeed names all"
    with pytest.raises(ToolError, match="there is no protocol 'harness'") as fault:
        load_task("mmlu", "harness")
    assert fault.value.hint == "choose among lm-eval, mindspeed"


MMLU = """\
The following are multiple choice questions (with answers) about  high school physics.
Knot 0?
A. one
B. two
C. three
D. None
Answer: A
Knot 1?
A. one
B. two
C. three
D. None
Answer: B

Which rope?
A. red
B. blue
C. 2.5
D. nan
Answer:"""
CEVAL = """\
请从下列选择题中选择正确的选项。

问：Knot 0?
A. one
B. two
C. three
D. None
答：A

问：Which rope?
A. red
B. blue
C. 2.5
D. nan
答："""
CMMLU = """\
以下是中国关于艺术学考试的单项选择题，请选出其中的正确答案。
 Knot 0?
A. one
B. two
C. three
D. None
答案： A


Which rope?
A. red
B. blue
C. 2.5
D. nan
答案： """
BBH = """\
Say which.

Q: First?
A: A

Q: Second?
A: B

Q: Third?
A: A

Q: Which?
(A) x
(B) y
A:"""
BBH_COT = """\
Follow the given examples and answer the question.
Say which.

Q: First?
A: Let's think step by step.
x. So the answer is (A).

Q: Second?
A: Let's think step by step.
y. So the answer is (B).

Q: Third?
A: Let's think step by step.
z. So the answer is (A).

Q: Which?
(A) x
(B) y
A: Let's think step by step."""
MATH = """\
Here are the answers for the problems in the exam.
Problem 1.    2+2?
Choose from the following options:

Answer:4

Problem 2.   1+1?

Choose from the following options:



Answer:"""
HELLASWAG = """\
He goes
Question: Which ending makes the most sense?
A. up
B. down
C. in
D. out
You may choose from 'A', 'B', 'C', 'D'.
Answer:"""
GSM8K = (
    "A:Originally, Leah had 32 chocolates. Her sister had 42. So in total they had 32 + 42 = 74. After eating 35, they had "
    "74 - 35 = 39. The answer is 39.\n\nHow many?"
)


@pytest.mark.parametrize(
    "name, shots, number, expected",
    [
        ("mmlu", 2, 1, MMLU),
        ("ceval", 1, 0, CEVAL),
        ("cmmlu", 1, 0, CMMLU),
        ("boolq", None, 0, "About a.\nQuestion: is a up?\nAnswer:"),
        ("bbh", None, 0, BBH),
        ("bbh_cot", None, 0, BBH_COT),
        ("agieval", 1, 2, MATH),
        ("hellaswag", None, 0, HELLASWAG),
    ],
)
def test_prompts(name: str, shots: int | None, number: int, expected: str, mindspeed: Path) -> None:
    assert prompts(mindspeed, name, shots=shots)[number] == expected


def test_a_prompt_of_gsm8k(mindspeed: Path) -> None:
    (prompt,) = prompts(mindspeed, "gsm8k")
    assert prompt.startswith("Q: There are 15 trees in the grove. Grove workers will plant trees in the grove today.")
    assert prompt.endswith(GSM8K)
    assert prompt.count("\n\nQ: ") == 2
    assert prompt.count("today?\n\nA:There are 15 trees originally. ") == 1


def test_what_is_asked(mindspeed: Path) -> None:
    """So many tokens, none of which ends an answer but the model's own; worked examples are computed once."""
    most = {"mmlu": 1, "ceval": 1, "cmmlu": 1, "bbh": 32, "bbh_cot": 512, "gsm8k": 512, "hellaswag": 32}
    for name, tokens in most.items():
        request = units(mindspeed, name)[0].items[0].requests[0]
        assert (request.kind, request.until, request.max_new_tokens) == ("generate", (), tokens)
        assert bool(request.head) == (name != "hellaswag")
        assert request.context.startswith(request.head)
    assert units(mindspeed, "ceval", max_new_tokens=2)[0].items[0].requests[0].max_new_tokens == 2
    asked = units(mindspeed, "boolq")[0].items[1]
    assert [(r.kind, r.rest, r.alone) for r in asked.requests] == [("loglikelihood", "Yes", True), ("loglikelihood", "No", True)]
    assert asked.target == 1
    assert [unit.items[0].target for unit in units(mindspeed, "agieval", shots=0)] == ["A,B", "2"]


@pytest.mark.parametrize(
    "name, written, read, right",
    [
        ("mmlu", " B", "B", True),
        ("mmlu", "B. blue", "B", True),
        ("mmlu", "b", "[invalid]", False),
        ("mmlu", "The B", "[invalid]", False),
        ("mmlu", "C is wrong, B. is right", "B", True),
        ("ceval", " B\n", "B", True),
        ("ceval", "B.", "B.", False),
        ("cmmlu", "选B", "B", True),
        ("cmmlu", "。", "[invalid]", False),
        ("bbh", " (B) y.\nQ: more", "B", True),
        ("bbh", "b", "b", True),
        ("bbh", "", "", False),
        ("bbh web_of_lies", " I say yes, he lies", "yes", True),
        ("bbh web_of_lies", " He lies. yes", "He lies", False),
        ("bbh_cot", " x. So the answer is (B).\n\nQ: Next? So the answer is (A).", "B", True),
        ("bbh_cot", " x. B is it", "B", True),
        ("bbh_cot web_of_lies", " So the answer is yes.\n\nQ:", "yes", True),
        ("bbh_cot web_of_lies", " So the answer is **Yes, he does**.", "Yes", True),
        ("agieval", " (A),(B)\nmore", "A,B", True),
        ("agieval", " A", "A", False),
        ("gsm8k", "The answer is $42.\n\nQ: 1? The answer is 1.", "42", True),
        ("gsm8k", "It is 42", "[invalid]", False),
        ("gsm8k", "Q: x? The answer is 42.", "[invalid]", False),
        ("hellaswag", " B. He goes down", "B", True),
        ("hellaswag", " Answer: B", "B", True),
        ("hellaswag", " none", "[invalid]", False),
    ],
)
def test_what_counts_as_the_answer(name: str, written: str, read: str, right: bool, mindspeed: Path) -> None:
    name, _, subject = name.partition(" ")
    shots = 0 if name == "agieval" else None
    unit = next(unit for unit in units(mindspeed, name, shots=shots) if not subject or unit.name.endswith(subject))
    ((_, found, scores, _),) = measured(unit.task, unit.items[0], [written])
    assert (found, list(scores.values())) == ([read], [float(right)])


def test_yes_and_no_are_tokens_by_themselves(hf: Path, mindspeed: Path) -> None:
    """The last token of each, whatever it would be behind the text; of equals Yes."""
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=2048))
    (unit,) = units(mindspeed, "boolq")
    found: dict[int, Response] = {}
    requests = [request for item in unit.items for request in item.requests]
    model.answer(requests, found.__setitem__)
    for number, request in enumerate(requests):
        context = model.tokenizer.encode(request.context)
        (whole,) = model.engine.score([(context, model.tokenizer.encode(request.rest[-1], special=False))])
        assert found[number].value[0] == pytest.approx(whole.scores[0].logprob, abs=1e-5)
    tied = measured(unit.task, unit.items[0], [(-1.0, False), (-1.0, False)])
    assert tied[0][2] == {"acc": 1.0}


def test_an_endpoint_does_not_tell_tokens_of_words() -> None:
    model = RemoteModel("http://127.0.0.1:9/v1", name="tiny")
    with pytest.raises(ToolError, match="an endpoint does not say which token a word is by itself"):
        model.answer([Request("loglikelihood", "Is it?", "Yes", alone=True)], lambda number, response: None)
