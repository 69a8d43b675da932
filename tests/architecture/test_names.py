"""Names of model families, benchmark tasks, devices and dialects stand once: where the thing itself is.

Code branches on traits, and lists come from the registries, so that a new one is one new file. What stands elsewhere is listed
here, with its reason.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path

import pytest

from jumar.chain.tables import tables
from jumar.eval.task import PROTOCOLS, load_task, task_files
from jumar.schema.dialects import DIALECTS
from jumar.schema.registry import families

PACKAGES = Path(__file__).resolve().parents[2] / "packages"


@dataclass(frozen=True)
class Names:
    """names: of things of one kind; homes: files in which they stand; elsewhere: other files -> names, and why those.

    single: a name by itself counts too; else only where two stand together, which is a list
    """

    names: Set[str]
    homes: tuple[str, ...]
    elsewhere: Mapping[str, Set[str]]
    single: bool = True


ELSEWHERE = "infer/src/jumar/infer/x.py"
TORCH = {"cpu"}
"""torch's own word for the host's memory, of a tensor or a generator; not the device that --device names."""
KINDS = {
    "family": Names(
        set(families()),
        ("schema/src/jumar/schema/families/*",),
        {
            "ckpt-convert/src/jumar/ckpt_convert/formats/gguf*": {"llama", "gpt2", "qwen2"}
        },  # GGUF's own architectures and tokenizers
    ),
    "task": Names(
        {name for protocol in PROTOCOLS for name in task_files(protocol)},
        ("eval/src/jumar/eval/tasks/*",),
        {
            "*/cli.py": {"mmlu", "gsm8k"},  # an example in the help
            "jumar/src/jumar/chain/tools.py": {"mmlu", "gsm8k"},  # the chain in six lines
            "eval/src/jumar/eval/haystack.py": {"needle"},  # a column of NeedleBench's files
            "eval/src/jumar/eval/retrieval.py": {"needle"},  # keys of documents, as in its files
            "eval/src/jumar/eval/metrics.py": {"needle"},
            "infer/src/jumar/infer/score.py": {"perplexity"},  # the number, not the benchmark
            "train-core/src/jumar/train_core/run/progress.py": {"perplexity"},
        },
    ),
    "device": Names(
        {point.name for point in entry_points(group="jumar.devices")},
        ("device/src/jumar/device/*", "device/src/jumar/device/*/*"),
        {
            "train-core/src/jumar/train_core/megatron.py": {"cpu", "cuda", "npu"},  # what megatron-core takes to be a GPU
            "ckpt-convert/src/jumar/ckpt_convert/formats/pickling.py": TORCH,
            "eval/src/jumar/eval/ranks.py": TORCH,
            "infer/src/jumar/infer/matrices.py": TORCH,
            "train-core/src/jumar/train_core/run/checkpoint.py": TORCH,
            "train-core/src/jumar/train_core/run/loop.py": TORCH,
        },
    ),
    "dialect": Names(  # that a tensor's name is this dialect's is said by name, wherever names are read
        set(DIALECTS),
        ("schema/src/jumar/schema/dialects.py", "schema/src/jumar/schema/families/*"),
        {
            "schema/src/jumar/schema/distributed.py": {"mcore", "te"},  # those that torch_dist has
            "schema/src/jumar/schema/rules.py": {"mcore", "te"},  # those that cut latent attention alike
            "schema/src/jumar/schema/placement.py": {"mindspeed", "mindspeed-v1"},  # those with --mla-mm-split
        },
        single=False,
    ),
}


Literals = list[tuple[int, set[str]]]


def literals(source: str) -> Literals:
    """(line, texts) of every string literal that is no docstring, and of every tuple, list or set of them."""
    if not any(name in source for kind in KINDS.values() for name in kind.names):
        return []
    found, nodes = [], list(ast.walk(ast.parse(source)))
    bodies = chain.from_iterable(body for node in nodes if isinstance(body := getattr(node, "body", None), list))
    docs = {id(each.value) for each in bodies if isinstance(each, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found.append((node.lineno, {node.value}))
        elif isinstance(node, ast.Tuple | ast.List | ast.Set):
            found.append((node.lineno, {each.value for each in node.elts if isinstance(each, ast.Constant)}))
    return found


def named(source: Literals, kind: Names) -> Iterator[tuple[int, set[str]]]:
    """(line, names) of a file's literals: those that are a name, those in which two names stand, and collections of two."""
    word = re.compile(rf"(?<![\w-])(?:{'|'.join(sorted(map(re.escape, kind.names), key=len, reverse=True))})(?![\w-])")
    for line, texts in source:
        whole = texts & kind.names
        inside = {name for text in texts - whole if isinstance(text, str) for name in word.findall(text)}
        if len(whole) > 1 or (whole and kind.single):
            yield line, whole
        if len(inside) > 1:
            yield line, inside


def second_places(kind: Names, files: Mapping[str, Literals]) -> list[str]:
    """Where a name stands that should not. files: by path below packages/."""
    found = []
    for path, source in files.items():
        if any(Path(path).match(home) for home in kind.homes):
            continue
        known = set(chain.from_iterable(names for place, names in kind.elsewhere.items() if Path(path).match(place)))
        found += [f"{path}:{line}: {', '.join(sorted(names - known))}" for line, names in named(source, kind) if names - known]
    return found


@pytest.fixture(scope="module")
def sources() -> dict[str, Literals]:
    return {path.relative_to(PACKAGES).as_posix(): literals(path.read_text()) for path in sorted(PACKAGES.glob("*/src/**/*.py"))}


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_stands_once(kind: str, sources: dict[str, Literals]) -> None:
    assert KINDS[kind].names
    found = second_places(KINDS[kind], sources)
    assert not found, f"take these from the registry, or branch on a trait ({kind}):\n" + "\n".join(found)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_excused_is_there(kind: str, sources: dict[str, Literals]) -> None:
    """Each exception is needed: without it the test above fails."""
    names = KINDS[kind]
    for place, excused in names.elsewhere.items():
        files = [source for path, source in sources.items() if Path(path).match(place)]
        seen = set(chain.from_iterable(found for source in files for _, found in named(source, names)))
        assert seen >= excused, (place, excused - seen)


@pytest.mark.parametrize(
    "kind, text",
    [
        ("family", 'if spec.model_type == "mixtral": ...'),
        ("family", 'KNOWN = ["llama"]'),
        ("family", 'HELP = "one of llama, qwen3 and others"'),
        ("task", 'if task.name == "gsm8k": ...'),
        ("device", 'if device.name != "cuda": ...'),
        ("device", 'HELP = "auto, cpu, cuda or npu."'),
        ("dialect", 'CHOICES = ("mcore", "te")'),
        ("dialect", 'HELP = "mcore, te or legacy"'),
    ],
)
def test_a_second_place_is_seen(kind: str, text: str) -> None:
    assert second_places(KINDS[kind], {ELSEWHERE: literals(text)})
    home = KINDS[kind].homes[0].replace("*", "x.py")
    assert not second_places(KINDS[kind], {home: literals(text)})


def test_prose_is_not_taken_for_names() -> None:
    for kind, text in (("family", '"""As llama and qwen3."""'), ("device", 'X = "torch-npu"'), ("dialect", 'X = "te"')):
        assert not second_places(KINDS[kind], {ELSEWHERE: literals(text)})


def test_tables_of_other_projects_name_what_is_here() -> None:
    """How Megatron-LM and MindSpeed-LLM call things is data of `jumar migrate`; what they become is in the registries."""
    training, conversion, evaluation = (tables()[name].more for name in ("training", "conversion", "evaluation"))
    assert {each["family"] for each in training["architectures"]} | set(conversion["families"].values()) <= set(families())
    tasks = {
        *evaluation["tasks"].values(),
        *evaluation["step by step"],
        *evaluation["step by step"].values(),
        *evaluation["sets"],
    }
    assert tasks <= set(task_files(PROTOCOLS[1]))
    for name, sets in evaluation["sets"].items():
        assert all(load_task(f"{name}_{size}k", PROTOCOLS[1]).kind for size in sets)
