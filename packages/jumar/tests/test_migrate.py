"""Launch scripts in the published styles become commands and recipes; what does not fit is refused aloud."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from jumar.chain.migrate import Migrated, migrate
from jumar.chain.verdicts import Made, Verdict
from jumar.schema.errors import ToolError
from jumar.schema.indexed import IndexedWriter
from jumar.schema.recipe import load_recipe, read_file
from jumar.schema.registry import families
from jumar.train_core.checks import check
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe

SCRIPTS = Path(__file__).parent / "scripts"


def script(name: str, **more: object) -> Made:
    (made,) = migrate(SCRIPTS / f"{name}.sh", **more).made  # type: ignore[arg-type]
    return made


def of(made: Made, flag: str) -> Verdict:
    (found,) = [each for each in made.verdicts if each.flag == flag]
    return found


def written(tmp_path: Path, text: str) -> Migrated:
    path = tmp_path / "run.sh"
    path.write_text(text)
    return migrate(path)


COMMANDS = {
    "chat": "torchrun --nproc-per-node 8 -m jumar.infer chat mg --pp 4 --tokenizer hf --template llama2 --max-new-tokens 512",
    "convert_mlm": "jumar-convert to-megatron '${HF_DIR}' '${MG_DIR}' --tp 2 --dtype bf16 --dialect te",
    "convert_to_hf": "jumar-convert to-hf ./mg/ ./hf/mg2hf --family llama",
    "convert_to_megatron": "jumar-convert to-megatron ./hf/ ./mg/ --tp 2 --pp 2 --vpp 2 --dialect mindspeed",
    "data_pretrain": "jumar-data pretrain ./text.jsonl --tokenizer ./tok/ --output ./dataset/corpus --key text --workers 1 "
    "--append-eod",
    "data_tune": "jumar-data sft ./alpaca.jsonl --tokenizer tok --output ./dataset/alpaca --workers 1 --format alpaca "
    "--template qwen --seq-len 128 --pack --map prompt=instruction --map query=input --map response=output",
    "evaluate": "torchrun --nproc-per-node 8 -m jumar.eval run mg --data ./mmlu --tasks mmlu --tokenizer hf --tp 8 "
    "--max-new-tokens 1 --dtype bf16 --protocol mindspeed --out runs/evaluate",
    "generate": "jumar-infer generate mg -p PROMPT --tokenizer hf --max-new-tokens 8 --temperature 0.7 --top-p 0.9 --seed 42 "
    "--dtype bf16 --chat",
    "lm_eval": "jumar-eval run hf --tasks mmlu,gsm8k --batch 8 --out out --data benchmarks",
    "pretrain_mlm": "JUMAR_COLLECTIVE_TIMEOUT_S=600 jumar-train pretrain pretrain_mlm.yaml --nproc 4",
    "pretrain_moe": "jumar-train pretrain pretrain_moe.yaml --nproc 8",
    "pretrain_ms": "jumar-train pretrain pretrain_ms.yaml --nproc 4",
    "serve_mlm": "jumar-infer serve mg --port 5001 --tokenizer hf --max-batch 4 --dtype bf16",
    "tune_ms": "jumar-train sft tune_ms.yaml --nproc 2",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command(name: str) -> None:
    made = script(name)
    (command,) = made.commands
    assert re.sub(r" \\\n +", " ", command) == COMMANDS[name].replace("'${HF_DIR}'", "$HF_DIR")
    assert not made.of("unknown")
    assert not made.of("refused")
    assert not made.faults


@pytest.mark.parametrize("name", [path.stem for path in SCRIPTS.glob("*.sh")])
def test_every_flag_has_one_verdict(name: str) -> None:
    text = re.sub(r"^\s*#.*$|\s#.*$", "", (SCRIPTS / f"{name}.sh").read_text(), flags=re.MULTILINE)
    flags = re.findall(r"(?<!\S)(--[\w-]+)", text)
    if name == "pretrain_mlm":
        flags.remove("--fp16")  # of the branch that is not taken
    assert sorted(flags) == sorted(each.flag for each in script(name).verdicts)


def test_lines_are_those_of_the_script() -> None:
    lines = (SCRIPTS / "pretrain_ms.sh").read_text().splitlines()
    for each in script("pretrain_ms").verdicts:
        assert each.flag in lines[each.line - 1]


CONVERT = "--load-dir a --save-dir b --model-type-hf llama2 "


@pytest.mark.parametrize(
    "program, more, command",
    [
        ("convert_ckpt_v2.py", "--load-model-type hf --save-model-type mg", "to-megatron a b --dialect mindspeed"),
        (
            "convert_ckpt_v2.py",
            "--load-model-type hf --save-model-type mg --transformer-impl transformer_engine",
            "to-megatron a b --dialect te",
        ),
        (
            "convert_ckpt.py",
            "--load-model-type hf --save-model-type mg --use-mcore-models",
            "to-megatron a b --dialect mindspeed-v1",
        ),
        ("convert_ckpt.py", "--load-model-type hf --save-model-type mg", "to-megatron a b --dialect legacy"),
        (
            "convert_ckpt_v2.py",
            "--load-model-type mg --save-model-type hf --lora-load c --lora-r 8",
            "merge-lora a c b --family llama",
        ),
        ("convert_ckpt_v2.py", "--load-model-type mg --save-model-type hf --save-lora-to-hf", "to-peft a b --family llama"),
    ],
)
def test_conversions(program: str, more: str, command: str, tmp_path: Path) -> None:
    (made,) = written(tmp_path, f"python {program} {CONVERT}{more}").made
    assert made.commands == (f"jumar-convert {command}",)
    assert not made.of("refused")


# --- recipes


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models and datasets where the scripts have them."""
    for name, family in (("model", "llama"), ("moe", "mixtral"), ("weights", "mixtral")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(families()[family].tiny))
    (tmp_path / "data").mkdir()
    with IndexedWriter(tmp_path / "data/corpus_text_document", np.uint16) as writer:
        for number in range(1200):
            writer.add(np.arange(60) % (number % 50 + 3))
    for key, first, rest in (("input_ids", 3, 4), ("attention_mask", 1, 1), ("labels", -100, 5)):
        with IndexedWriter(tmp_path / f"data/talks_packed_{key}_document", np.int32) as writer:
            for number in range(40):
                writer.add(np.array([first] * 5 + [rest] * (number % 9 + 1)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, ranks", [("pretrain_ms", 4), ("pretrain_mlm", 4), ("pretrain_moe", 8), ("tune_ms", 2)])
def test_a_recipe_is_one_that_jumar_train_takes(name: str, ranks: int, home: Path) -> None:
    """All that a dry run checks, without its process."""
    made = script(name, given=["runs/a", "data/corpus"])
    ((file, content),) = made.files.items()
    Path(file).write_text(content)
    recipe = load_recipe(Recipe, Path(file))
    job = resolve(recipe, world=ranks, device="cpu", task="sft" if name == "tune_ms" else "pretrain")
    assert [problem for problem in check(job) if not problem.warning] == []
    for field in re.findall(r"^ *(\w+):.*# (--.*)$", content, re.MULTILINE):
        assert field


def test_a_recipe_says_what_the_script_says(home: Path) -> None:
    ((_, content),) = script("pretrain_ms").files.items()
    Path("recipe.yaml").write_text(content)
    values = read_file(Path("recipe.yaml"))
    assert values["parallel"] == {"tp": 2, "pp": 1}
    assert values["optim"] == {"lr": 0.00125, "beta1": 0.9, "beta2": 0.95, "weight_decay": 0.1, "clip_grad": 1.0}
    assert values["schedule"] == {"min_lr": 0.000125, "warmup_steps": 4}
    assert values["features"]["recompute"] == {"granularity": "full", "method": "block", "layers": 2}
    assert values["data"] == {"train": "data/corpus_text_document", "split": [90, 10], "seq_len": 32}


def test_what_megatron_takes_where_a_flag_is_left_out_is_written(home: Path) -> None:
    ((_, content),) = script("pretrain_mlm", given=["runs/a", "data/corpus"]).files.items()
    for line in ("beta2: 0.999", "weight_decay: 0.01", "kind: linear", "hidden_dropout: 0.1", "sequence_parallel: false"):
        assert re.search(rf"^  {line} +# --[a-z0-9-]+, left out$", content, re.MULTILINE)


def test_samples_are_steps_and_chunks_are_counted() -> None:
    made = script("pretrain_mlm")
    assert of(made, "--train-samples").ours == "train.steps: 50"
    assert of(made, "--lr-warmup-samples").ours == "schedule.warmup_steps: 5"
    assert of(made, "--num-layers-per-virtual-pipeline-stage").ours == "parallel.vpp: 2"


def test_what_config_json_says_otherwise_is_laid_over_it(home: Path) -> None:
    """The script has 4 layers and 8 heads, as the model has, an MLP of 96 columns and a hidden size of 64."""
    changed = {**families()["llama"].tiny, "num_hidden_layers": 2, "intermediate_size": 128}
    (home / "model/config.json").write_text(json.dumps(changed))
    made = script("pretrain_ms")
    assert [each.ours for each in made.of("mapped") if "model.config" in each.ours] == [
        "model.config.num_hidden_layers: 4",
        "model.config.intermediate_size: 96",
    ]
    ((_, content),) = made.files.items()
    Path("recipe.yaml").write_text(content)
    assert read_file(Path("recipe.yaml"))["model"]["config"] == {"num_hidden_layers": 4, "intermediate_size": 96}
    job = resolve(load_recipe(Recipe, Path("recipe.yaml")), world=4, device="cpu")
    assert (job.spec.num_layers, job.spec.ffn_size) == (4, 96)


ALONE = "torchrun pretrain_gpt.py --data-path data/corpus --train-iters 9 --lr 1e-3 --seq-length 32 --micro-batch-size 1 "
ALONE += "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --attention-dropout 0 --split 100,0,0 "
LLAMA = "--swiglu --disable-bias-linear --normalization RMSNorm --vocab-size 128 --group-query-attention --num-query-groups 2 "
MODELS = {
    "gpt2": "--vocab-file v --merge-file m --max-position-embeddings 64",
    "llama": LLAMA,
    "qwen2": LLAMA + "--add-qkv-bias",
    "qwen3": LLAMA + "--qk-layernorm --kv-channels 32",
    "mixtral": LLAMA + "--num-experts 4 --moe-router-topk 2",
    "qwen3_moe": LLAMA + "--num-experts 4 --moe-router-topk 2 --moe-ffn-hidden-size 32 --qk-layernorm --norm-topk-prob",
}


@pytest.mark.parametrize("family", MODELS)
def test_without_a_directory_the_flags_make_the_model(family: str, home: Path, tmp_path: Path) -> None:
    (made,) = written(tmp_path, ALONE + MODELS[family]).made
    for name, content in made.files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    job = resolve(load_recipe(Recipe, Path("run.yaml")), world=1, device="cpu")
    assert job.spec.model_type == family
    assert (job.spec.num_layers, job.spec.hidden_size, job.spec.num_heads) == (2, 64, 4)
    assert job.spec.num_kv_heads == (4 if family == "gpt2" else 2)
    assert [problem for problem in check(job) if not problem.warning] == []


def test_what_the_flags_do_not_say_of_a_model_is_named(tmp_path: Path) -> None:
    (made,) = written(tmp_path, ALONE + LLAMA.replace("--vocab-size 128", "")).made
    assert "they do not say vocab_size" in made.faults[0]
    assert "--model DIR" in made.faults[0]


def test_raw_files_are_prepared_first(tmp_path: Path) -> None:
    more = "--handler-name GeneralPretrainHandler --append-eod --json-keys text"
    (made,) = written(tmp_path, BASE.replace("--data-path d", "--data-path text.parquet") + more).made
    assert made.commands[0] == "jumar-data pretrain text.parquet --tokenizer m --append-eod --key text --output data/run"
    assert "train: data/run" in made.files["run.yaml"]
    assert of(made, "--append-eod").ours == "jumar-data: --append-eod"
    text = BASE.replace("pretrain_gpt", "posttrain_gpt").replace("--data-path d", "--data-path talks.jsonl")
    (made,) = written(tmp_path, text + "--stage sft --prompt-type qwen --seq-length 64").made
    (made_with, train) = made.commands
    assert made_with == "jumar-data sft talks.jsonl --tokenizer m --template qwen --seq-len 64 --output data/run --format alpaca"
    assert train == "jumar-train sft run.yaml --nproc 2"


# --- what does not fit


def test_lora_is_refused_and_partly_made() -> None:
    made = script("tune_lora")
    assert [each.flag for each in made.of("refused")] == ["--lora-r", "--lora-alpha", "--lora-target-modules"]
    assert made.files


def test_another_stage_makes_no_recipe() -> None:
    made = script("dpo")
    assert {"--stage", "--dpo-loss-type", "--is-pairwise-dataset"} == {each.flag for each in made.of("refused")}
    assert not made.commands
    assert not made.files


STAGES = "--num-layers 10 --pipeline-model-parallel-size 2"
BASE = "torchrun --nproc_per_node 2 pretrain_gpt.py --tokenizer-name-or-path m --data-path d --train-iters 9 --lr 1e-3 "


@pytest.mark.parametrize(
    "more, flag, kind, said",
    [
        ("--attention-dropout 0.1", "--attention-dropout", "refused", "no dropout"),
        ("--grad-reduce-in-bf16", "--grad-reduce-in-bf16", "refused", "gradients are summed in fp32: leave the flag out"),
        ("--main-grads-dtype bf16", "--main-grads-dtype", "refused", "gradients are summed in fp32"),
        ("--exp-avg-dtype bf16", "--exp-avg-dtype", "refused", "the optimizer works in fp32"),
        ("--fp8-format hybrid", "--fp8-format", "refused", "train.precision"),
        ("--moe-expert-capacity-factor 1.1", "--moe-expert-capacity-factor", "refused", "no token is dropped"),
        ("--lr-decay-style inverse-square-root", "--lr-decay-style", "refused", "schedule.kind"),
        ("--micro-batch-size $MBS", "--micro-batch-size", "refused", "$MBS is not known"),
        ("--micro-batch-size many", "--micro-batch-size", "refused", "expected a whole number, got 'many'"),
        (
            "--num-layers 10 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 4",
            "--num-layers-per-virtual-pipeline-stage",
            "refused",
            "no multiple",
        ),
        ("--reset-attention-mask", "--reset-attention-mask", "refused", "not masked"),
        ("--mirco-batch-size 4", "--mirco-batch-size", "unknown", "--micro-batch-size"),
        ("--our-own-flag 4", "--our-own-flag", "unknown", "neither passed on nor dropped"),
        ("--bf16 yes", "yes", "unknown", "--bf16 does not take it"),
        ("--load None", "--load", "no effect", "nothing is loaded"),
        ("--expert-model-parallel-size 2", "--expert-model-parallel-size", "no effect", "no experts"),
        ("--save-interval 10", "--save-interval", "no effect", "nothing is saved"),
        ("--sequence-parallel", "--sequence-parallel", "no effect", "tp is 1"),
        ("--use-flash-attn", "--use-flash-attn", "no effect", "kernels"),
        ("--num-experts 8", "--num-experts", "default", "config.json"),
        ("--lr-warmup-it 3", "--lr-warmup-it", "mapped", ""),
    ],
)
def test_what_becomes_of_a_flag(more: str, flag: str, kind: str, said: str, tmp_path: Path) -> None:
    (made,) = written(tmp_path, BASE + more).made
    found = of(made, flag)
    assert found.kind == kind
    assert said in found.why


def test_the_last_of_two_holds(tmp_path: Path) -> None:
    (made,) = written(tmp_path, BASE + "--lr 2e-3").made
    assert [(each.kind, each.values) for each in made.verdicts if each.flag == "--lr"] == [
        ("no effect", "1e-3"),
        ("mapped", "2e-3"),
    ]
    assert "lr: 0.002" in next(iter(made.files.values()))


def test_several_machines(tmp_path: Path) -> None:
    text = BASE.replace("torchrun", "torchrun --nnodes 4 --node_rank $RANK --master_addr 10.0.0.1")
    (made,) = written(tmp_path, text).made
    assert made.commands[0].startswith("PET_NNODES=4 PET_NODE_RANK=$RANK PET_MASTER_ADDR=10.0.0.1 jumar-train pretrain run.yaml")


def test_ranks_that_no_launcher_says_are_those_of_one_model(tmp_path: Path) -> None:
    alone = BASE.replace("torchrun --nproc_per_node 2", "srun -l python")
    found = written(tmp_path, alone + "--tensor-model-parallel-size 4 --pipeline-model-parallel-size 4")
    assert found.made[0].commands[0].startswith("PET_NNODES=2 PET_NODE_RANK=$NODE_RANK PET_MASTER_ADDR=$MASTER_ADDR jumar-train")
    assert found.made[0].commands[0].endswith("--nproc 8")
    notes = [text for _, text in found.notes]
    assert any("16 are the least" in text for text in notes)
    assert any("srun and its own words stand before the command" in text for text in notes)


@pytest.mark.parametrize(
    "more, fault",
    [
        ("--tensor-model-parallel-size 3", "3 does not divide the 2 ranks"),
        ("--global-batch-size 9", "9 is no multiple of --micro-batch-size 1 x dp 2"),
        ("--num-layers 5 --pipeline-model-parallel-size 2", "5 layers are no multiple of pp 2"),
    ],
)
def test_layouts_that_a_dry_run_would_refuse_are_refused(more: str, fault: str, tmp_path: Path) -> None:
    (made,) = written(tmp_path, BASE + more).made
    assert any(fault in each for each in made.faults)


def test_a_command_broken_off_by_a_blank_line_goes_on(tmp_path: Path) -> None:
    found = written(tmp_path, BASE + "\\\n\n    --clip-grad 0.5\n")
    assert of(found.made[0], "--clip-grad").kind == "mapped"
    assert any("begins a command of its own" in text for _, text in found.notes)


def test_several_commands_of_a_script(tmp_path: Path) -> None:
    found = written(tmp_path, BASE + "\n" + BASE.replace("1e-3", "1e-4") + "\npip install --upgrade x\npython plot.py --out a\n")
    assert [name for made in found.made for name in made.files] == ["run.yaml", "run-2.yaml"]
    assert any("plot.py is no program" in text for _, text in found.notes)


def test_what_is_to_be_filled_in_is_told(tmp_path: Path) -> None:
    found = written(tmp_path, 'P="your tokenizer path"\n' + BASE.replace("path m", "path $P"))
    assert "path: your tokenizer path" in next(iter(found.made[0].files.values()))
    assert any("fill in 'your tokenizer path'" in text for _, text in found.notes)


MODELOPT = (
    'SCRIPT_DIR="$(dirname "$(readlink -f "$0")")"\nsource "${SCRIPT_DIR}/conf/$1.sh"\ntorchrun --nproc_per_node=$((TP * PP)) '
)
MODELOPT += "${SCRIPT_DIR}/examples/post_training/modelopt/%s ${MODEL_ARGS} --tensor-model-parallel-size $TP "
MODELOPT += "--pipeline-model-parallel-size $PP --tokenizer-model hf --export-te-mcore-model --finetune %s"


@pytest.mark.parametrize(
    "program, more, command",
    [
        (
            "convert_model.py",
            "--pretrained-model-path hf --save mg",
            "jumar-convert to-megatron hf mg --dtype bf16 --tp 2 --pp 1 --format torch_dist",
        ),
        ("export.py", "--load mg --pretrained-model-name hf --export-dir out", "jumar-convert to-hf mg out --dtype bf16"),
        (
            "generate.py",
            "--load mg --draft-length 0",
            "torchrun --nproc-per-node 2 -m jumar.infer generate mg -p PROMPT --dtype bf16 --tokenizer hf",
        ),
        (
            "mmlu.py",
            "--load mg --lower-bound 0.4",
            "torchrun --nproc-per-node 2 -m jumar.eval run mg --tasks mmlu --data benchmarks --dtype bf16 --tp 2 --tokenizer hf "
            "--fail-under mmlu.acc=0.4",
        ),
    ],
)
def test_what_modelopt_does_to_whole_models(program: str, more: str, command: str, tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/small.sh").write_text('TP=2\nPP=1\nMODEL_ARGS=" --bf16 --num-layers 4 --swiglu "\n')
    (tmp_path / "run.sh").write_text(MODELOPT % (program, more))
    (made,) = migrate(tmp_path / "run.sh", ["small"]).made
    assert made.commands == (command,)
    assert not made.of("refused")
    assert not made.of("unknown")
    assert str(of(made, "--num-layers").line) == "3 of conf/small.sh"


@pytest.mark.parametrize(
    "asked, tasks",
    [
        ("bbh --chain-of-thought", "bbh_cot"),
        ("bbh", "bbh"),
        ("mmlu --chain-of-thought", None),
        ("human_eval_plus", None),
        ("needlebench", "needlebench"),
        ("needlebench --max-position-embeddings 131072", "needlebench_128k"),
        ("needlebench --max-position-embeddings 1048576", None),
        ("mmlu --max-position-embeddings 1048576", "mmlu"),
    ],
)
def test_tasks_of_an_evaluation(asked: str, tasks: str | None, tmp_path: Path) -> None:
    (made,) = written(tmp_path, f"torchrun evaluation.py --load m --task-data-path d --task {asked}").made
    assert (f"--tasks {tasks} " in made.commands[0]) is (tasks is not None)
    assert bool(made.of("refused")) is (tasks is None)


@pytest.mark.parametrize(
    "command, reason",
    [
        ("pretrain_t5.py --lr 1e-3 --encoder-seq-length 512", "encoders"),
        ("examples/multimodal/train.py --lr 1e-3 --img-h 336", "images"),
        ("examples/post_training/modelopt/prune.py --export-quant-cfg NVFP4 --lr 1e-3", "ModelOpt"),
        ("train_rl.py --grpo-group-size 4 --lr 1e-3", "reinforcement"),
        ("rlhf_gpt.py --config-name x", "reinforcement"),
        ("train_fsdp2.py conf.yaml --parallel.fsdp_size 8", "FSDP2"),
    ],
)
def test_other_programs_are_refused_whole_and_their_flags_classed(command: str, reason: str, tmp_path: Path) -> None:
    (made,) = written(tmp_path, f"torchrun --nproc_per_node 4 {command}").made
    assert not made.commands
    assert not made.files
    assert reason in made.faults[0]
    flags = [word for word in command.split() if word.startswith("--")]
    assert [each.flag for each in made.verdicts if each.flag in flags] == flags
    assert not made.of("unknown")
    if "--lr" in flags:
        assert of(made, "--lr").ours == "optim.lr: 0.001"


def test_variables_for_another_script_are_classed(tmp_path: Path) -> None:
    found = written(tmp_path, 'MODEL_ARGS=" --num-layers 4 \\\n --swiglu "\nTP=2\nOTHER=(--lr 1e-3)\n')
    (made,) = found.made
    assert [(each.flag, each.kind) for each in made.verdicts] == [
        ("--num-layers", "default"),
        ("--swiglu", "default"),
        ("--lr", "mapped"),
    ]
    assert not made.commands
    assert "starts nothing" in made.faults[0]


def test_a_script_of_other_things_is_told(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"is no launch script: line 2: plot\.py"):
        written(tmp_path, "echo a\npython plot.py --x 1")
    with pytest.raises(ToolError, match="is no launch script: it starts nothing"):
        written(tmp_path, "cp pretrain_gpt.py copy.py\nTP=2")


def test_flags_that_no_command_takes_are_told(tmp_path: Path) -> None:
    found = written(tmp_path, 'MEM_ARGS="\n --swap-attention"\nA="--lr 2"\n' + BASE + "$A")
    notes = [text for _, text in found.notes if "no command takes it" in text]
    assert notes == ["$MEM_ARGS holds flags, and no command takes it: --swap-attention"]
