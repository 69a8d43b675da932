"""A model and conversations to a tuned model with answers and scores: pipeline.sh, through the tools' Python APIs.

    python examples/pipeline.py MODEL CHATS.jsonl [OUT]

MODEL is a Hugging Face directory, CHATS.jsonl has lines {"messages": [...]}, OUT is runs/pipeline unless it is named. Run again,
steps that are done say so and do nothing, also those that pipeline.sh did. What goes wrong ends it with the exit code that the
command would have (docs/pipelines.md).
"""

import os
import sys
from pathlib import Path

from jumar.ckpt_convert import open_checkpoint, plan_hf, plan_megatron, run_plan
from jumar.data_prep import Job, run
from jumar.eval import Opening, Settings, check_changes, compare_runs, score
from jumar.infer import answer_file
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.train_core import train

HERE = Path(__file__).parent / "pipeline"
TP, PP = int(os.environ.get("TP", "1")), int(os.environ.get("PP", "1"))
NPROC, SEQ_LEN = int(os.environ.get("NPROC", TP * PP)), int(os.environ.get("SEQ_LEN", "512"))
DEVICE = os.environ.get("DEVICE", "auto")
RECIPE = Path(os.environ.get("RECIPE", HERE / "recipe.yaml"))
PROMPTS = Path(os.environ.get("PROMPTS", HERE / "prompts.jsonl"))
FAIL_UNDER = os.environ.get("FAIL_UNDER", "conversations.bits_per_byte=0")


def main(model: Path, chats: Path, out: Path) -> None:
    shards, data, trained, tuned, answers = (out / name for name in ("megatron", "data/chats", "run", "hf", "answers.jsonl"))

    # 1. Hugging Face to Megatron shards, one for each rank. The plan is proven when it is made.
    say(shards, already=not run_plan(plan_megatron(open_checkpoint(model), ParallelLayout(tp=TP, pp=PP)), shards))

    # 2. Conversations to packed token files, through the model's own chat template.
    say(data, already=run(Job("sft", (str(chats),), data, model, seq_len=SEQ_LEN, pack=True)).already)

    # 3. The scores before, of the shards as they are.
    held_out = Path(os.environ.get("HELD_OUT", chats))
    before = scores(shards, held_out, out / "scores-before")

    # 4. Training, from the shards on, in processes of its own.
    sets = {"load.path": shards, "data.train": data, "data.seq_len": SEQ_LEN, "save.path": trained}
    sets |= {"parallel.tp": TP, "parallel.pp": PP}
    done = train("sft", RECIPE, sets=[f"{key}={value}" for key, value in sets.items()], nproc=NPROC, device=DEVICE)
    say(trained, already=done.already_done)

    # 5. Back to Hugging Face.
    say(tuned, already=not run_plan(plan_hf(open_checkpoint(trained)), tuned))

    # 6. Answers.
    say(answers, already=answer_file(tuned, PROMPTS, answers, opening={"device": DEVICE}, temperature=0.0).already_done)
    print(answers.read_text(encoding="utf-8"), end="")

    # 7. The scores after, and whether they are good enough.
    after = scores(tuned, held_out, out / "scores-after")
    compared = compare_runs(before, after)
    for change in compared.differences:
        print(f"{change.task} {change.metric}: {change.first:.4f} -> {change.second:.4f}")
    check_changes(compared, [FAIL_UNDER])


def scores(model: Path, data: Path, out: Path) -> Path:
    settings = Settings(tasks=(str(HERE / "conversations.yaml"),), data=data, out=out)
    say(out, already=score(model, settings, opening=Opening(device=DEVICE))["already_done"])
    return out


def say(made: Path, *, already: bool) -> None:
    print("already done:" if already else "done:", made, file=sys.stderr)


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(print(__doc__))
    if len(sys.argv) not in (3, 4):
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    model, chats, *rest = map(Path, sys.argv[1:])
    try:
        main(model, chats, *rest or [Path("runs/pipeline")])
    except ToolError as fault:
        print(f"error: {fault.message}", f"hint: {fault.hint}" if fault.hint else "", sep="\n", file=sys.stderr)
        sys.exit(fault.code)
