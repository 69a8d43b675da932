"""A directory to a model that can run: checkpoint, device, dtype, tokenizer, what generation_config.json says."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from jumar.ckpt_convert import OpenOptions, open_merged
from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.device import Device, open_device
from jumar.infer.batch import Batch
from jumar.infer.cache import Cache
from jumar.infer.decoder import Decoder
from jumar.infer.faults import hardware_faults
from jumar.infer.group import Ranks, join
from jumar.infer.matrices import Matrices, check_kind
from jumar.infer.memory import check_fits, free_bytes
from jumar.infer.sampling import Sampling
from jumar.infer.tokenizer import Tokenizer
from jumar.infer.weights import NAMES, load_weights, placed_tensors, weights_bytes
from jumar.schema.errors import Exit, ToolError
from jumar.schema.parallel import ParallelLayout
from jumar.schema.registry import families
from jumar.schema.spec import ModelSpec
from jumar.schema.templates import read_json

ENGINES = ("auto", "jumar", "transformers")
UNLIMITED = 1 << 20
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


PASSED: dict[str, Any] = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "diversity_penalty": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "penalty_alpha": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "stop_strings": None,
}
"""Keys of generation_config.json by which transformers would answer otherwise and we do not, and their values that change nothing
(https://huggingface.co/docs/transformers/main_classes/text_generation)."""


@dataclass(frozen=True, slots=True)
class Defaults:
    """What the model's own files say of generation. notes: on what they say and is not done."""

    eos_ids: tuple[int, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def sampling(self, **given: Any) -> Sampling:
        """generation_config.json's settings, under those that are given and not None."""
        return Sampling(**{**self.values, **{k: v for k, v in given.items() if v is not None}})


class Computes(Protocol):
    """A model: `Decoder`, or another engine's. in_chunks: long prompts may be computed piece by piece."""

    in_chunks: bool
    vocab_size: int
    device: torch.device
    ranks: Ranks

    def cache(self, pages: int, page_size: int, places: int) -> Cache: ...
    def token_bytes(self) -> int: ...
    def place_bytes(self) -> int: ...
    def __call__(self, batch: Batch, cache: Cache) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that can run. context: positions, of prompt and answer together."""

    decoder: Computes
    device: Device
    tokenizer: Tokenizer | None
    defaults: Defaults
    context: int
    notes: tuple[str, ...] = ()


def open_model(
    path: Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: str | None = None,
    tokenizer: Path | None = None,
    adapter: Path | None = None,
    iteration: str | None = None,
    family: str | None = None,
    tp: int | None = None,
    pp: int = 1,
    alone: bool = False,
    engine: str = "auto",
) -> Opened:
    """Opens a Hugging Face or Megatron directory of any layout; nothing is written, and each rank reads its slices.

    dtype:   fp32, bf16, fp16, or auto: as published on an accelerator (fp16 where it has no bf16), fp32 on a CPU
    quantize: one of `matrices.KINDS`: matrices in int8, but the last ones of MLPs and mixers, experts, and
             latent attention's up-projections
    adapter: a LoRA, PEFT's or Megatron's, that is merged into the weights as they are read
    pp:      stages under torchrun; the processes of each share its layers by tensor parallelism
    tp:      how many of them; None: all that torchrun started, else it is opened in as many copies as there are processes for
    alone:   one request at a time: matrices are held in the form that is fastest for one row
    engine:  one of ENGINES; auto: transformers' for Hugging Face models that the registry does not know, ours for all others
    Raises ToolError: 2 for a dtype that does not exist, 3 for what is wrong with the files, 4 for the device.
    """
    if (why := _why_transformers(path, engine)) is not None:
        given = {
            "quantize": quantize,
            "adapter": adapter,
            "iteration": iteration,
            "family": family,
            "pp": _several(pp),
            "tp": _several(tp),
        }
        for option in (f"--{name}" for name, value in given.items() if value is not None):
            raise ToolError(f"{option} is not there through transformers ({why})", hint="leave it out", code=Exit.USAGE)
        return _open_transformers(path, why, device, dtype, tokenizer, tp)
    hardware = open_device(device)
    ranks = join(os.environ, pp, hardware.backend, tp)
    checkpoint = _merged(path, adapter, OpenOptions(iteration=iteration, family=family))
    notes = []
    if checkpoint.deltas:
        which = f"the adapter {adapter}" if adapter is not None else "the LoRA that the shards bear"
        notes.append(f"{which} is merged into the weights as they are read")
    where = hardware.activate(int(os.environ.get("LOCAL_RANK", "0")))
    kind, why = _dtype(dtype, checkpoint.spec.dtype, hardware)
    if quantize is not None:
        notes.append(check_kind(quantize, hardware, kind))
    layout = ParallelLayout(tp=ranks.tp_size, pp=ranks.pp_size)
    shards = layout.shards(moe=checkpoint.spec.moe is not None)
    shard = next(s for s in shards if (s.tp, s.pp) == (ranks.tp, ranks.pp))
    matrices = Matrices(hardware.ops(), where, quantize, alone)
    placed = placed_tensors(checkpoint, layout, shard)
    hint = "take --dtype bf16, --quantize int8, or more processes or devices under torchrun"
    check_fits("the weights", weights_bytes(placed, kind, quantize), free_bytes(hardware), hardware.name, hint)
    with hardware_faults():
        weights = load_weights(checkpoint, placed, dtype=kind, matrices=matrices)
        decoder = Decoder(checkpoint.spec, weights, hardware.ops(), ranks, where)
    found = _tokenizer(tokenizer, checkpoint.extras)
    defaults = _defaults(checkpoint.extras, found)
    return Opened(
        decoder,
        hardware,
        found,
        defaults,
        _context(checkpoint.spec),
        (f"{hardware.name}{_spread(ranks)}, {why}", *notes, *defaults.notes),
    )


def _merged(path: Path, adapter: Path | None, options: OpenOptions) -> Checkpoint:
    """As `open_merged`; hints that name options which are jumar-convert's alone say so."""
    try:
        return open_merged(path, adapter, options)
    except ToolError as fault:
        message, hint = fault.message.replace(", --family and --set", " and --family"), fault.hint or ""
        if any(option in hint for option in ("--ignore-config-keys", "--base", "--set")):
            hint = f"convert it first by jumar-convert, which has these options: {hint}"
        raise ToolError(message, hint=hint, code=fault.code) from None


def _why_transformers(path: Path, engine: str) -> str | None:
    """Why transformers computes; None if it does not."""
    if engine not in ENGINES:
        raise ToolError(f"there is no engine {engine!r}", hint=f"choose among {', '.join(ENGINES)}", code=Exit.USAGE)
    if engine != "auto":
        return "as asked for" if engine == "transformers" else None
    kind = read_json(path / "config.json").get("model_type")
    return f"jumar has no model_type {kind!r}" if isinstance(kind, str) and kind not in families() else None


def _several(ranks: int | None) -> int | None:
    return ranks if ranks is not None and ranks > 1 else None


def _open_transformers(path: Path, why: str, device: str, dtype: str, tokenizer: Path | None, tp: int | None) -> Opened:
    if find_spec("transformers") is None:
        raise ToolError(
            f"transformers is not installed, and would compute {path} ({why})",
            hint="pip install 'jumar-infer[transformers]'",
            code=Exit.ENVIRONMENT,
        )
    from jumar.infer import through_transformers as other

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and tp is None:
        raise ToolError(f"transformers runs in one process ({why})", hint="start it without torchrun", code=Exit.USAGE)
    config = other.config_of(path)
    hardware = open_device(device)
    ranks = join(os.environ, 1, hardware.backend, tp)
    where = hardware.activate(int(os.environ.get("LOCAL_RANK", "0")))
    kind, chosen = _dtype(dtype, str(config.dtype or torch.float32).removeprefix("torch."), hardware)
    found = _tokenizer(tokenizer, path) or other.tokenizer_of(path)
    notes = f"{hardware.name}{_spread(ranks)}, {chosen}", f"through {other.VERSION}, one sequence after another: {why}"
    decoder, context = other.load(path, kind, where, ranks), getattr(config, "max_position_embeddings", None) or UNLIMITED
    defaults = _defaults(path, found)
    return Opened(decoder, hardware, found, defaults, context, (*notes, *defaults.notes))


def _spread(ranks: Ranks) -> str:
    named = {"tp": ranks.tp_size, "pp": ranks.pp_size, "dp": ranks.dp_size}
    sizes = [f"{name} {size}" for name, size in named.items() if size > 1]
    return f" over {' '.join(sizes)}" if sizes else ""


def _dtype(name: str, published: str, device: Device) -> tuple[torch.dtype, str]:
    if name != "auto" and name not in DTYPES:
        raise ToolError(f"there is no dtype {name!r}", hint=f"choose among {', '.join(DTYPES)}, auto", code=Exit.USAGE)
    if name != "auto":
        return DTYPES[name], f"{name} as asked for"
    short = {v: k for k, v in DTYPES.items()}
    if device.host:
        return torch.float32, "fp32: on most CPUs the others are emulated"
    kind = NAMES.get(published, torch.bfloat16)
    if kind == torch.bfloat16 and not device.has_bf16():
        return torch.float16, "fp16: published as bf16, which this device does not compute"
    return kind, f"{short[kind]} as published"


def _context(spec: ModelSpec) -> int:
    """Positions that the model knows: by its configuration, more under dynamic scaling, UNLIMITED if it counts none."""
    scaling, positions = spec.rope.scaling, spec.max_position_embeddings or UNLIMITED
    stretched = spec.position == "rope" and scaling is not None and scaling.kind == "dynamic"
    return int(positions * scaling.factor) if stretched and scaling is not None else positions


def _tokenizer(given: Path | None, extras: Path | None) -> Tokenizer | None:
    if given is not None:
        return Tokenizer(given)
    return Tokenizer(extras) if extras is not None and (extras / "tokenizer.json").is_file() else None


def _defaults(extras: Path | None, tokenizer: Tokenizer | None) -> Defaults:
    """generation_config.json, else config.json, else the tokenizer say what ends an answer; the first says how to sample."""
    generation = read_json(extras / "generation_config.json") if extras is not None else {}
    config = read_json(extras / "config.json") if extras is not None else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = tuple(eos) if isinstance(eos, list) else (eos,) if eos is not None else tokenizer.eos_ids if tokenizer else ()
    drawn = {k: generation[k] for k in ("temperature", "top_k", "top_p", "min_p") if generation.get(k) is not None}
    always = {k: generation[k] for k in ("max_new_tokens", "repetition_penalty") if generation.get(k) is not None}
    hint = "see generation_config.json, and config.json for the end"
    for key, value in (*(("eos_token_id", i) for i in ids), *drawn.items(), *always.items()):
        whole = key in ("eos_token_id", "top_k", "max_new_tokens")
        if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
            raise ToolError(f"{extras}: {key} is {value!r:.40}, expected a {'whole ' if whole else ''}number", hint=hint)
    values = always | ({"temperature": 1.0, "top_k": 50} | drawn if generation.get("do_sample") else {})
    try:
        Sampling(**values)
    except ToolError as fault:
        raise ToolError(f"{extras}: {fault.message}", hint=hint) from None
    passed = sorted(key for key, value in generation.items() if key in PASSED and value not in (None, PASSED[key], [], {}))
    notes = (f"generation_config.json: {', '.join(passed)} passed over; answers are as without",) if passed else ()
    return Defaults(ids, values, notes)
