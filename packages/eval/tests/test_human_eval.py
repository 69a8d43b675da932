"""HumanEval of the protocol mindspeed: four beams, the program that is made of an answer, its verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jumar.eval.local import LocalModel, Opening
from jumar.eval.programs import program_of
from jumar.eval.remote import RemoteModel
from jumar.eval.requests import Done, Request, Response
from jumar.eval.run import Settings, evaluate
from jumar.eval.sandbox.host import Sandbox
from jumar.eval.task import Beams
from jumar.infer import Sampling
from jumar.infer.beams import search
from jumar.schema.errors import ToolError
from mindspeed_files import units

HINDERED = Sandbox().hindered()
TWICE = {
    "task_id": "HumanEval/0",
    "prompt": 'from math import pi\n\n\ndef twice(x):\n    """Twice x.\n\n    >>> twice(2)\n    4\n    """\n',
    "entry_point": "twice",
    "test": "\n\ndef check(candidate):\n    assert candidate(2) == 4\n",
}
PROGRAM = '''\
from typing import List
import math
from math import pi
def twice(x):
    """Twice x.
    >>> twice(2)
    4
    """
    return 2 * x
def other():
    pass


def check(candidate):
    assert candidate(2) == 4

check(twice)'''


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    (tmp_path / "data/human_eval").mkdir(parents=True)
    (tmp_path / "data/human_eval/HumanEval.jsonl").write_text(json.dumps(TWICE) + "\n")
    return tmp_path / "data"


def test_what_is_asked(problems: Path) -> None:
    ((item,),) = (unit.items for unit in units(problems, "human_eval"))
    (request,) = item.requests
    sentence = "The definition and function description of the python function are as follows. "
    assert request.context == sentence + "Please complete the implementation of the python function.\n" + str(TWICE["prompt"])
    how = {
        "until": [],
        "do_sample": False,
        "max_gen_toks": 200,
        "num_beams": 4,
        "length_penalty": 0.7,
        "top_k": 50,
        "top_p": 0.95,
    }
    assert request.arguments() == [request.context, how]


def test_the_program_is_made_as_there(problems: Path) -> None:
    """Lines that begin the line are imports and definitions; others are left out, and so are empty ones."""
    (unit,) = units(problems, "human_eval")
    assert unit.task.seconds == 10
    written = "return 2 * x\n\n\ndef other():\n    pass\n\nprint(twice(2))\n# the end"
    assert program_of(unit.task, unit.items[0], written) == PROGRAM
    spaced = "return 2 * x\ndef twice (x):\n    return x\nprint(twice(2))\ndef twice(x):\n    return 0"
    assert (
        program_of(unit.task, unit.items[0], spaced)
        .partition("    return 2 * x\n")[2]
        .startswith("def twice (x):\n    return x\n\n\ndef check")
    )


class Writer:
    """One answer to all."""

    def __init__(self, text: str) -> None:
        self.text = text

    def facts(self) -> dict[str, Any]:
        return {"model_source": "none"}

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        for number in range(len(requests)):
            done(number, Response(self.text))


@pytest.mark.skipif(HINDERED is not None, reason=f"programs cannot be walled in here: {HINDERED}")
@pytest.mark.parametrize("text, passed", [("  return 2 * x\nprint('done')", 1.0), ("return x", 0.0), ("return 2 *", 0.0)])
def test_programs_are_run(text: str, passed: float, problems: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    settings = Settings(tasks=("human_eval",), data=problems, protocol="mindspeed", allow_code=True, out=out)
    found = evaluate(lambda: Writer(text), settings)
    assert found["results"]["human_eval"]["pass@1,create_test"] == passed
    assert (out / "scores_human_eval.csv").read_text().splitlines()[1:] == [f"human_eval,1,{passed}", f"total,1,{passed}"]


def test_beams_are_those_of_the_engine(hf: Path) -> None:
    """Beside answers without them, and not the same as those."""
    model = LocalModel(hf, Opening(device="cpu", cache_tokens=4096))
    prompt, found = "up the rope and ", dict[int, Response]()
    beams = Beams(count=4, length_penalty=0.7, top_k=50, top_p=0.95)
    requests = [Request("generate", prompt, max_new_tokens=12, beams=how) for how in (None, beams, Beams(count=4, top_k=1))]
    model.answer(requests, found.__setitem__)
    ids = model.tokenizer.encode(prompt)
    among = Sampling(top_k=50, top_p=0.95)
    (best,) = search(model.engine, ids, Sampling(max_new_tokens=12), num_beams=4, length_penalty=0.7, among=among)
    assert found[1].value == model.tokenizer.decode(best.output)
    assert found[0].value != found[1].value
    assert found[0].value == found[2].value  # among one token there is nothing to choose
    assert model.engine.cache.in_use == 0


def test_an_endpoint_has_no_beams() -> None:
    model = RemoteModel("http://127.0.0.1:9/v1", name="tiny")
    with pytest.raises(ToolError, match="does not search by beams"):
        model.answer([Request("generate", "Up?", beams=Beams(count=4))], lambda number, response: None)
