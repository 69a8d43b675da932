"""A conversion as a jumar-convert command."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from jumar.chain.facts import Facts
from jumar.chain.jobs import Flag, Job
from jumar.chain.options import classed, line, option
from jumar.chain.tables import tables
from jumar.chain.verdicts import Made, Outcome, text, whole

TARGET_ONLY = "the shards say it"
HF_LOADERS = ("llama_mistral", "llama2_hf", "mixtral_hf", "hf", "hf_llava")


class Conversion(Facts):
    """What a conversion script says."""

    @property
    def source(self) -> str:
        if self.modelopt:
            return "hf" if self.has("--pretrained-model-path") else "mg"
        kind = self.said("--load-model-type") or ("hf" if (self.said("--loader") or "") in HF_LOADERS else "mg")
        return "hf" if kind == "hf" else "mg"

    @property
    def target(self) -> str:
        if self.modelopt:
            return "hf" if self.job.program.endswith("export.py") else "mg"
        kind = self.said("--save-model-type") or self.said("--saver") or "mg"
        return "hf" if "hf" in kind.split("_") else "mg"

    @property
    def command(self) -> str:
        if self.has("--save-lora-to-hf"):
            return "to-peft"
        if self.target == "mg":
            return "to-megatron"
        return "merge-lora" if self.has("--lora-load", "--lora-r") else "to-hf"

    @property
    def modelopt(self) -> bool:
        """Whether it is of Megatron-LM's examples of ModelOpt, whose checkpoints are torch_dist."""
        return "modelopt/" in self.job.program

    @property
    def mindspeed(self) -> bool:
        return self.has("--load-model-type", "--save-model-type")

    @property
    def first_version(self) -> bool:
        return self.job.program.endswith("convert_ckpt.py")


def _command(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Conversion)
    if text(flag) == "optim":
        return Outcome("refused", why="jumar-train takes optimizer state to any layout itself: the same save.path goes on")
    return Outcome("mapped", f"jumar-convert {t.command}")


def _source(t: Facts, flag: Flag) -> Outcome:
    return option("SRC", text(flag))


def _target(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Conversion)
    path = text(flag)
    if t.first_version and t.target == "hf":
        return option("DST", f"{path.rstrip('/')}/mg2hf", "where it writes there")
    return option("DST", path)


def _chunks(t: Facts, flag: Flag) -> Outcome:
    each, pp = whole(flag), t.number("--target-pipeline-parallel-size", 1) or 1
    layers = t.number("--num-layers") or _layers_of(t.said("--load-dir"))
    if pp == 1:
        return Outcome("no effect", why="there is one stage")
    if layers is None:
        hint = "--vpp counts chunks of a stage, layers / stages / N, and nothing says the layers: add --num-layers to the script"
        return Outcome("refused", why=hint)
    slots = layers + len((t.said("--noop-layers") or "").split(",")) * t.has("--noop-layers")
    if each < 1 or slots % (pp * each):
        return Outcome(
            "refused", why=f"{slots} layers are no multiple of {pp} stages x {each}: say the chunks of a stage with --vpp"
        )
    return option("--vpp", str(slots // (pp * each)), "chunks of a stage, where the flag counts layers of a chunk")


def _layers_of(path: str | None) -> int | None:
    """num_hidden_layers of a Hugging Face directory that is here."""
    try:
        found = json.loads((Path(path or "") / "config.json").read_text(encoding="utf-8"))["num_hidden_layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


DTYPES = {
    "bf16": "bf16",
    "bfloat16": "bf16",
    "fp16": "fp16",
    "float16": "fp16",
    "fp32": "fp32",
    "float32": "fp32",
    "float": "fp32",
}


def _dtype(t: Facts, flag: Flag) -> Outcome:
    found = DTYPES.get(text(flag))
    return option("--dtype", found) if found else Outcome("refused", why="dtypes are bf16, fp16 and fp32")


def _dialect(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Conversion)
    name = dialect(t)
    return option("--dialect", name) if t.target == "mg" else Outcome("default", why="names are recognised in the source")


def dialect(t: Conversion) -> str:
    """The names that the tensors would have there."""
    engine = t.said("--transformer-impl") or t.said("--saver-transformer-impl")
    if engine == "transformer_engine" or (engine is None and not t.mindspeed):
        return "te"
    if not t.mindspeed:
        return "mcore"
    if t.has("--save-to-legacy") or (t.first_version and not t.has("--use-mcore-models")):
        return "legacy"
    return "mindspeed-v1" if t.first_version else "mindspeed"


def _adapter(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Conversion)
    if flag.name == "--save-lora-to-hf":
        return Outcome("mapped", "jumar-convert to-peft")
    if t.command == "to-megatron":
        return Outcome("mapped", f"--adapter {text(flag)} --merge", sets={"--adapter": text(flag), "--merge": True})
    return option("ADAPTER", text(flag))


def _family(t: Facts, flag: Flag) -> Outcome:
    assert isinstance(t, Conversion)
    found = tables()["conversion"].more["families"].get(text(flag))
    if found is None:
        return Outcome("refused", why="no family of docs/families.md (jumar-convert families); a family is one file")
    if t.source == "hf":
        return Outcome("default", why="config.json says it")
    return option("--family", found, "leave it out where SRC/hf holds the model's config.json")


RULES = {
    "direction": _command,
    "source": _source,
    "target": _target,
    "chunks": _chunks,
    "dtype": _dtype,
    "dialect": _dialect,
    "adapter": _adapter,
    "family": _family,
}
LAYOUT = (
    *(
        "--tp",
        "--pp",
        "--ep",
        "--etp",
        "--vpp",
        "--layers-per-stage",
        "--noop-layers",
        "--schedule",
        "--expert-layout",
        "--dialect",
    ),
    *("--moe-tp-extend-ep", "--mla-mm-split", "--vocab-divisible-by"),
)


def migrate_conversion(job: Job, name: str, model: str | None = None) -> Made:
    """The jumar-convert command. The tensors' names are those that the project's own converter would write."""
    t = Conversion(job)

    def amend(outcome: Outcome) -> Outcome:
        if t.command != "to-megatron" and set(outcome.sets) & set(LAYOUT):
            return Outcome("no effect", why="the shards themselves say their layout")
        return outcome

    verdicts, options = classed(job, RULES, t, amend)
    if t.command == "to-megatron":
        options |= {"--format": "torch_dist"} if t.modelopt else {"--dialect": options.get("--dialect", dialect(t))}
    source, target = ("--load", "--save or --export-dir") if t.modelopt else ("--load-dir", "--save-dir")
    faults = [
        f"{flag} is not given: name the directory" for flag, key in ((source, "SRC"), (target, "DST")) if key not in options
    ]
    command = line(["jumar-convert", t.command], options, ("SRC", "ADAPTER", "DST"))
    return Made(job, verdicts, (command,), notes=tuple(_notes(t)), faults=tuple(faults))


def _notes(t: Conversion) -> Iterator[tuple[int, str]]:
    if t.modelopt and t.target == "hf":
        yield t.job.line, "weights are written as they are: what ModelOpt has quantised is not read"
    elif t.command == "to-megatron" and not t.modelopt:
        yield (
            t.job.line,
            f"--dialect {dialect(t)}: names as its own converter writes them; jumar-train and jumar-infer read all",
        )
    config = t.said("--hf-cfg-dir") or (t.said("--save-dir") if t.first_version else None)
    if t.target == "hf" and config:
        yield t.job.line, f"config and tokenizer are taken from SRC/hf: copy those of {config} there, where SRC has none"
