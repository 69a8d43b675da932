"""Whatever a script says: it is read or refused, and no flag of it is lost."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from jumar.chain.migrate import Migrated, migrate
from jumar.chain.report import as_json, lines
from jumar.schema.errors import ToolError

NAMES = (Path(__file__).parent / "names.txt").read_text().split()
PROGRAMS = (
    *("pretrain_gpt.py", "posttrain_gpt.py", "convert_ckpt_v2.py", "tools/checkpoint/convert.py", "preprocess_data.py"),
    *("inference.py", "tools/run_text_generation_server.py", "evaluation.py", "lm_eval", "pretrain_t5.py", "train_rl.py"),
    *("examples/multimodal/train.py", "examples/post_training/modelopt/mmlu.py", "train_fsdp2.py", "a/modelopt/export.py"),
)
SHAPES = {
    "one line": "torchrun --nproc_per_node 8 {program} {flags}",
    "block": 'ARGS="\n  {lines}\n"\ntorchrun --nproc_per_node 8 {program} $ARGS',
    "list": 'ARGS=(\n  {plain}\n)\nARGS+=( --nnodes-is-no-flag )\npython -m torch.distributed.run {program} "${{ARGS[@]}}"',
    "slurm": 'ARGS="{flags}"\nsbatch <<END\n#!/bin/bash\nsrun -l sh -c "python -u {program} $ARGS"\nEND',
    "in a function": "run() {{ if [ -f x ]; then exec torchrun {program} $@; fi; }}\nrun {flags}",
}

flag = st.one_of(st.sampled_from(NAMES), st.from_regex(r"--[a-z]{3,9}(-[a-z]{1,5}){0,2}", fullmatch=True))
value = st.one_of(
    st.sampled_from(
        ["1", "0", "8", "0.1", "1e-5", "none", "data/a", "5,6", "98,1,1", "cosine", "$UNSET", "${B:-2}", "[0]*3+[1]*5"]
    ),
    st.from_regex(r"[a-z0-9][a-z0-9._/,-]{0,6}", fullmatch=True),
)
given_flags = st.lists(st.tuples(flag, st.lists(value, max_size=2)), min_size=1, max_size=12)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(PROGRAMS), st.sampled_from(sorted(SHAPES)), given_flags)
def test_every_flag_of_a_program_is_told(program: str, shape: str, flags: list[tuple[str, list[str]]]) -> None:
    words = [" ".join([name, *values]) for name, values in flags]
    text = SHAPES[shape].format(program=program, flags=" ".join(words), lines=" \\\n  ".join(words), plain="\n  ".join(words))
    migrated = _migrated(text)
    classed = {each["flag"]: each["class"] for job in as_json(migrated)["jobs"] for each in job["flags"]}
    assert {name for name, _ in flags} <= set(classed)
    assert set(classed.values()) <= {"mapped", "default", "no effect", "refused", "unknown"}
    shown = "\n".join(lines(migrated, whole=True, written=True))
    assert all(name in shown for name, _ in flags)


def _migrated(text: str) -> Migrated:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "run.sh"
        path.write_text(text)
        return migrate(path)


PIECES = (
    *(
        "torchrun ",
        "python ",
        "srun -l ",
        "bash -c ",
        "sbatch <<E\n",
        "\nE\n",
        "eval ",
        "exec ",
        "source a.sh\n",
        "cat > x.sh <<E\n",
    ),
    *(f"{program} " for program in PROGRAMS),
    *(
        "--lr ",
        "--load ",
        "--tensor-model-parallel-size ",
        "--data-path ",
        "--stage ",
        "--no-such-flag ",
        "-m ",
        "1e-3 ",
        "2 ",
        "a,b ",
    ),
    *(
        "\n",
        "\\\n",
        "; ",
        "& ",
        "| ",
        "&& ",
        "|| ",
        "( ",
        ") ",
        "{ ",
        "} ",
        "[ ",
        "]\n",
        "[[ ",
        " ]]\n",
        "(( ",
        "))\n",
        "!",
        "#",
        "<",
        ">",
    ),
    *(
        "if ",
        "then\n",
        "elif ",
        "else\n",
        "fi\n",
        "for i in ",
        "for ((i=0;i<3;i++))\n",
        "while ",
        "do\n",
        "done\n",
        "case $1 in ",
        "esac\n",
    ),
    *(
        "A=",
        "A=(",
        "A+=",
        "declare -A M=(",
        "[k]=",
        "$A ",
        "${A[@]} ",
        "${A:-",
        "${A:1:2}",
        "${!A}",
        "$((",
        "$(",
        "`",
        "'",
        '"',
        "$1 ",
        "$@ ",
    ),
    *(
        "exit 1\n",
        "exit\n",
        "return\n",
        "break\n",
        "shift 2\n",
        "set -- ",
        "read x\n",
        "f() ",
        "f ",
        "your model path",
        "<path to it>",
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_is_a_migration_or_a_fault(text: str) -> None:
    with contextlib.suppress(ToolError):
        migrated = _migrated(text)
        json.dumps(as_json(migrated))
        assert all(isinstance(line, str) for line in lines(migrated, whole=True, written=False))
