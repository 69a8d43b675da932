"""A job: a recipe resolved against its model and its number of ranks. No torch here: it is made before anything is launched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family
from jumar.schema.manifest import above, read_manifest
from jumar.schema.parallel import Chunk, ParallelLayout
from jumar.schema.registry import family_of, family_of_config
from jumar.schema.spec import ModelSpec, spec_from_dict
from jumar.train_core.recipe import Recipe

Task = Literal["pretrain", "sft"]
ELSEWHERE = {
    "attention_dropout": "model.attention_dropout",
    "attn_pdrop": "model.attention_dropout",
    "embd_pdrop": "model.hidden_dropout",
    "hidden_dropout": "model.hidden_dropout",
    "initializer_range": "model.init_std",
    "resid_pdrop": "model.hidden_dropout",
}
"""Keys of config.json that say how a model is trained, which the recipe says in its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every rank of a run knows.

    hf:      the directory of config.json and tokenizer files; None: the model is known by a manifest alone
    config:  config.json as it is trained, with the recipe's changes
    world:   ranks
    device:  what `--device` says
    layout:  with `dp` and `etp` filled in
    sequence_parallel: resolved
    micro_batches: micro batches a rank computes in each step
    task:    the command: what is trained on
    """

    recipe: Recipe
    hf: Path | None
    config: Mapping[str, Any]
    family: Family
    spec: ModelSpec
    world: int
    device: str
    layout: ParallelLayout
    sequence_parallel: bool
    micro_batches: int
    task: Task = "pretrain"

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding, padded (docs/contracts.md, 8)."""
        unit = self.recipe.model.vocab_divisible_by * self.layout.tp
        return -(-self.spec.vocab_size // unit) * unit

    @property
    def expert_dp(self) -> int:
        """Ranks that hold the same experts."""
        return self.world // (self.layout.expert_tp * self.layout.ep * self.layout.pp)

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        """The model's parts, pipeline rank by pipeline rank."""
        return self.layout.chunks(self.spec.num_layers)

    @property
    def tokens_per_step(self) -> int:
        return self.recipe.train.global_batch_size * self.recipe.data.seq_len


def resolve(recipe: Recipe, *, world: int, device: str, task: Task = "pretrain") -> Job:
    """A recipe against its model and its number of ranks.

    Raises ToolError with the numbers: 2 where the recipe names no model, 3 where the model cannot be read or the layout does not
    fit. `checks.check` looks at everything else.
    """
    hf, config, family, spec = find_model(recipe)
    layout = _layout(recipe, world)
    with in_recipe_words():
        layout.chunks(spec.num_layers)
    tp = layout.tp
    wanted = recipe.parallel.sequence_parallel
    return Job(
        recipe=recipe,
        hf=hf,
        config=config,
        family=family,
        spec=spec,
        world=world,
        device=device,
        layout=layout,
        sequence_parallel=tp > 1 if wanted is None else wanted,
        micro_batches=_micro_batches(recipe, layout.dp),
        task=task,
    )


def find_model(recipe: Recipe) -> tuple[Path | None, Mapping[str, Any], Family, ModelSpec]:
    """The directory of its config.json and tokenizer (None: a manifest alone tells it), that config, its family and traits."""
    key, path = ("model.path", recipe.model.path) if recipe.model.path is not None else ("load.path", recipe.load.path)
    if path is None:
        hint = "set model.path (random weights) or load.path to a Hugging Face or Megatron directory"
        raise ToolError("the recipe names no model", hint=hint, code=Exit.USAGE)
    for name, given in ((key, path), ("load.path", recipe.load.path)):
        if given is not None and not given.exists():
            hub = " (hub names are not fetched: jumar never opens the network)" if not given.is_absolute() else ""
            raise ToolError(f"{name}: {given} does not exist{hub}", hint="give the path of a directory on this machine")
    homes = (path, *(each / "hf" for each in (path, *above(path), *(top for each in above(path) for top in above(each)))))
    hf = next((home for home in homes if (home / "config.json").is_file()), None)
    found = _read_config(hf / "config.json") if hf is not None else _config_of_manifest(path)
    if found is None:
        raise ToolError(
            f"{key}: {path} holds no config.json, no hf/config.json and no manifest that tells the model",
            hint="put the model's Hugging Face files into its hf/, or set model.path to their directory",
        )
    config = {**found, **recipe.model.config}
    if misplaced := sorted(set(recipe.model.config) & set(ELSEWHERE)):
        words = ", ".join(f"model.config.{name}: set {ELSEWHERE[name]}" for name in misplaced)
        raise ToolError(f"model.config: {', '.join(misplaced)} have no effect there", hint=words)
    family = family_of_config(config, str(hf or path))
    return hf, config, family, _spec(family, config, recipe.model.config)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path} is not JSON: {fault}", hint="fetch the file again") from None
    if not isinstance(config, dict):
        raise ToolError(f"{path}: a {type(config).__name__}, expected keys and values", hint="fetch the file again")
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise ToolError(f"{path}: the weights are quantised ({method}), which is not trained", hint="dequantise them first")
    return config


def _config_of_manifest(path: Path) -> dict[str, Any] | None:
    """A config.json of the model that a Megatron directory's manifest tells."""
    for home in (path, *above(path)):
        model = (read_manifest(home) or {}).get("model", {})
        if spec := model.get("spec"):
            traits = spec_from_dict(spec)
            return family_of(traits.model_type, str(home)).config(traits)
    return None


def _spec(family: Family, config: Mapping[str, Any], changes: Mapping[str, Any]) -> ModelSpec:
    try:
        return family.spec(config)
    except ToolError as fault:
        if not changes:
            raise
        raise ToolError(fault.message, hint=f"look at model.config: {', '.join(sorted(changes))}") from None


def _layout(recipe: Recipe, world: int) -> ParallelLayout:
    """The layout with `dp` and `etp`. Every size is looked at here, so that errors speak of recipe fields."""
    p = recipe.parallel
    sizes = {"tp": p.tp, "pp": p.pp, "vpp": p.vpp, "cp": p.cp, "ep": p.ep, "etp": 1 if p.etp is None else p.etp}
    for name, size in sizes.items():
        if size < 1:
            raise ToolError(
                f"parallel.{name} is {size}, expected a positive whole number", hint=f"set parallel.{name}=1, or more"
            )
    if recipe.model.vocab_divisible_by < 1:
        raise ToolError(
            f"model.vocab_divisible_by is {recipe.model.vocab_divisible_by}, expected a positive whole number",
            hint="set model.vocab_divisible_by=1, or more",
        )
    for names in (("tp", "pp", "cp"), ("etp", "ep", "pp")):
        _check_world(world, {name: sizes[name] for name in names})
    with in_recipe_words():
        return ParallelLayout(
            tp=p.tp,
            pp=p.pp,
            vpp=p.vpp,
            cp=p.cp,
            ep=p.ep,
            etp=sizes["etp"],
            dp=world // (p.tp * p.pp * p.cp),
            layers_per_stage=p.layers_per_stage,
            noop_layers=p.noop_layers,
        )


def _check_world(world: int, sizes: Mapping[str, int]) -> None:
    ranks = prod(sizes.values())
    if world % ranks == 0:
        return
    product = " x ".join(f"{name}={size}" for name, size in sizes.items())
    many = "1 rank does" if world == 1 else f"{world} ranks do"
    raise ToolError(
        f"{many} not fit {product} = {ranks}, whose multiples are whole"
        if world > ranks
        else f"{product} needs {ranks} ranks or a multiple of them, there {'is' if world == 1 else 'are'} {world}",
        hint=f"--nproc {-(-world // ranks) * ranks} on one machine (or as many ranks under torchrun), or smaller parallel sizes",
    )


def _micro_batches(recipe: Recipe, dp: int) -> int:
    total, micro = recipe.train.global_batch_size, recipe.train.micro_batch_size
    for name, size in (("global_batch_size", total), ("micro_batch_size", micro)):
        if size < 1:
            raise ToolError(f"train.{name} is {size}, expected a positive whole number", hint=f"set train.{name}=1, or more")
    if total % (micro * dp):
        near = max(1, round(total / (micro * dp))) * micro * dp
        raise ToolError(
            f"train.global_batch_size {total} is not a multiple of micro_batch_size {micro} x dp={dp} = {micro * dp}",
            hint=f"set train.global_batch_size={near}, or another micro_batch_size or number of ranks",
        )
    return total // (micro * dp)


@contextmanager
def in_recipe_words() -> Iterator[None]:
    """Errors of the schema speak of other commands' flags; here the same sizes are recipe fields: --layers-per-stage is one."""
    try:
        yield
    except ToolError as fault:
        hint = fault.hint and re.sub(r"--([a-z][a-z-]*)", lambda flag: "parallel." + flag[1].replace("-", "_"), fault.hint)
        raise ToolError(fault.message, hint=hint, code=fault.code) from None
