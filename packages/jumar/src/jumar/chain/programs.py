"""The programs of the two projects that scripts start: which flags they take, and why some of them are refused as a whole."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from jumar.chain.shell.files import PASSED_OVER
from jumar.chain.shell.values import Argument

ENCODERS = "encoders and encoder-decoders are not here: GPT, Mamba and hybrids of both are trained"
RETRIEVAL = "models that look documents up are not here: GPT, Mamba and hybrids of both are trained"
IMAGES = "images, sound and video are not here: models of text are trained and asked"
REINFORCED = "reinforcement learning is not here yet: jumar-train has pretrain and sft"
PAPERS = "the program of one paper's experiments is not here: jumar-train pretrains and tunes language models on text"
MODELOPT = "ModelOpt's quantising, pruning and drafting are not here: jumar-infer --quantize opens a model with smaller weights"
FSDP2 = "MindSpeed's FSDP2 engine is not here: write its YAML as a recipe; jumar-train schema shows the fields"
EDGE = "training between an edge and a cloud is not here: parallel.pp and layers_per_stage share the layers out"
DEQUANTISED = "fp8 weights are not dequantised yet: take the model's bf16 release"
MERGED = "experts need not be merged before: jumar-convert and jumar-train read the Hugging Face directory as it lies"
SHARDED = "Megatron-FSDP's checkpoints are not here: jumar-convert and load.path read torch_dist, torch and Hugging Face"
RESHAPED = "a checkpoint is not rewritten for another kind of model: load.path and jumar-convert read it as what it is"
EXPORTED = "TensorRT-LLM's engines are not built here: jumar-convert to-hf writes what it reads; jumar-infer serve serves"
ELASTIC = "models of several sizes in one are not here: prune or distil there, and train the result"
PAIRED = "pairs of sentences and pictures are not prepared here: jumar-data pretrain and sft prepare text"
ESTIMATED = "memory is told by a dry run: jumar-train pretrain RECIPE --dry-run"
FILLED = "index maps are made where they are missing, once: nothing need be filled before"


@dataclass(frozen=True, slots=True)
class Program:
    """Programs whose path ends in `pattern`.

    table: of flags, which says the tool too; refused: why it is, as a whole; more: tables of flags that it takes as well
    """

    pattern: str
    table: str
    refused: str = ""
    more: tuple[str, ...] = ()


TRAINED = ("training",)
ASKED = ("training", "inference")
PROGRAMS = (
    Program(r".*(multimodal|mimo|vlm)/.*\.py|pretrain_(vlm|mimo)\.py|run_vlm_\w+\.py", "multimodal", IMAGES, ASKED),
    Program(r".*(academic_paper_scripts|msdp|detxoify_lm)/.*\.py", "papers", PAPERS, ASKED),
    Program(r"pretrain_(retro|ict|realm|biencoder)\.py|.*retro/.*\.py", "encoders", RETRIEVAL, TRAINED),
    Program(r"pretrain_(bert|t5|vision_\w+)\.py|\w*t5\w*inference\w*\.py", "encoders", ENCODERS, ASKED),
    Program(r"tasks/main\.py", "encoders", ENCODERS, TRAINED),
    Program(r".*modelopt/(convert_model|export)\.py", "conversion", more=("training", "modelopt")),
    Program(r".*modelopt/generate\.py", "inference", more=("training", "modelopt")),
    Program(r".*modelopt/mmlu\.py", "scores", more=("training", "modelopt")),
    Program(r".*(modelopt|post_training)/.*\.py", "modelopt", MODELOPT, ASKED),
    Program(r"train_rl\.py|.*rl/.*\.py", "reinforced", REINFORCED, ASKED),
    Program(r"(rlhf|ray)_gpt\.py|preprocess_prompt\.py", "rlhf", REINFORCED),
    Program(r".*(merge_experts|moe_hf_weight_convert).*\.py", "experts", MERGED),
    Program(r"(train|inference)_fsdp2\.py|.*fsdp2/.*\.py", "fsdp2", FSDP2),
    Program(r".*dequant.*\.py", "dequantise", DEQUANTISED),
    Program(r".*(trtllm_export|inference/quantization)/.*\.py", "trtllm", EXPORTED, ("modelopt", *ASKED)),
    Program(r"convert_ckpt_pp_vpp\.py", "edge", EDGE, ("conversion",)),
    Program(r"checkpoint_inspector\.py", "sharded", SHARDED, ("conversion",)),
    Program(r"\w*hybrid_conversion\.py|remap_gpt_\w+\.py", "sharded", RESHAPED, ("conversion", "training")),
    Program(r"preprocess_(data_nmt|mmdata)\.py", "paired", PAIRED, ("preprocessing",)),
    Program(r"pretrain_hybrid_flex\.py", "elastic", ELASTIC, TRAINED),
    Program(r"report_theoretical_memory\.py", "training", ESTIMATED),
    Program(r"prepare_cache\.py|build_sequences_per_dataset\.py", "training", FILLED),
    Program(r"(pre|post)train_\w+\.py|finetune_\w+\.py|pretrain\w*\.py", "training"),
    Program(r"convert_ckpt(_\w+)?\.py|checkpoint/convert(er)?\.py|checkpoint_util\.py", "conversion"),
    Program(r"preprocess_data\w*\.py|merge_datasets\.py", "preprocessing"),
    Program(
        r"(offline_)?inference\w*\.py|launch_inference_server\.py|run_\w*text_generation\w*\.py|gpt_\w+_inference\w*\.py|"
        r"generate_samples\w*\.py",
        "inference",
        more=TRAINED,
    ),
    Program(r"evaluation\w*\.py", "evaluation", more=TRAINED),
    Program(r"lm[_-]eval", "lm_eval"),
)
LAUNCHERS = ("torch.distributed.launch", "torch.distributed.run", "accelerate.commands.launch")


def place(words: Sequence[Argument]) -> tuple[int, Program] | None:
    """(position, program) of what a command starts of the two projects."""
    if words[0].text.rpartition("/")[2] in PASSED_OVER:
        return None
    for at, word in enumerate(words):
        name = word.text
        if at and words[at - 1].text == "-m" and name not in LAUNCHERS:
            name = "lm_eval" if name.startswith("lm_eval") else name.replace(".", "/") + ".py"
        if name.startswith("-"):
            continue
        name = os.path.normpath(name)
        for program in PROGRAMS:
            if re.fullmatch(rf"(.*/)?({program.pattern})", name):
                return at, program
    return None
