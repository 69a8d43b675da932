"""Opening a PEFT adapter directory: its tensors, checked against its own configuration and the model that it adapts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jumar.ckpt_convert.checkpoint import Checkpoint, Lora, OpenOptions
from jumar.ckpt_convert.formats.peft import CONFIG, AdapterConfig, read_adapter, read_adapter_config
from jumar.ckpt_convert.fused_experts import split_experts
from jumar.ckpt_convert.open_hf import BaseModel, read_base
from jumar.ckpt_convert.plan import whole
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.adapters import module_sizes
from jumar.schema.errors import Exit, ToolError

Halves = Mapping[tuple[str, str], TensorRef]


def open_peft(root: Path, options: OpenOptions, model: BaseModel | None = None) -> Checkpoint:
    """An adapter as a Checkpoint whose tensors are MODULE.lora_A.weight and MODULE.lora_B.weight.

    model: what it adapts, where that is open already; else `options.base`, or what the adapter names, if that is a directory.
    """
    if options.sets or options.iteration or options.family:
        raise ToolError(
            f"{root} is a PEFT adapter, on which --iteration, --family and --set have no effect",
            hint="leave them out; they are for Megatron checkpoints",
            code=Exit.USAGE,
        )
    config = read_adapter_config(root / CONFIG, options.ignore)
    found = read_adapter(root)
    model = model or read_base(_base(root, config, options), options.ignore)
    sizes = module_sizes(model.family, model.spec)
    prefix = model.family.base
    based = not prefix or any(module.startswith(prefix) for module, _ in found)
    if not based:
        found = {(m if m in sizes else prefix + m, half): ref for (m, half), ref in found.items()}
    found, stacked = split_experts(dict(found), model.family, model.spec)
    modules = [m for m in sizes if (m, "A") in found or (m, "B") in found]
    lora = {m: Lora(config.rank_of(stacked.get(m, m)), config.scale_of(stacked.get(m, m))) for m in modules}
    _check(root, found, sizes, lora, model)
    _check_targets(root, [m for m in modules if m not in stacked], config)
    refs = {f"{m}.lora_{half}.weight": found[m, half] for m in modules for half in "AB"}
    return Checkpoint(
        paths=(root,),
        format="peft",
        family=model.family,
        spec=model.spec,
        tensors={n: ref.shape for n, ref in refs.items()},
        sources={n: [whole(ref)] for n, ref in refs.items()},
        extras=model.extras,
        base=based,
        lora=lora,
        peft=config.carried,
        notes=tuple(_notes(config, modules, sizes, model)),
    )


def _base(root: Path, config: AdapterConfig, options: OpenOptions) -> Path:
    named = config.carried.get("base_model_name_or_path")
    if options.base is not None:
        return options.base
    if isinstance(named, str) and Path(named).is_dir():
        return Path(named)
    what = f"its base model {named!r} is no directory on this machine" if named else "it does not say its base model"
    raise ToolError(
        f"{root} is an adapter; {what}",
        hint="to merge: jumar-convert merge-lora BASE ADAPTER DST; to-megatron, inspect and verify: name it with "
        "--base HF_DIR (its config.json is enough; hub names are not fetched)",
    )


def _check(root: Path, found: Halves, sizes: Mapping[str, tuple[int, int]], lora: Mapping[str, Lora], model: BaseModel) -> None:
    """Raises ToolError for an adapter that does not fit the model, or itself."""
    if not found:
        raise ToolError(f"{root}: the adapter holds no tensors", hint="was it saved under DeepSpeed ZeRO-3 or FSDP?")
    modules = list(dict.fromkeys(m for m, _ in found))
    if unknown := [m for m in modules if m not in sizes]:
        raise ToolError(
            f"{root}: {model.spec.model_type} has no matrix {_some([f'{m}.weight' for m in unknown])}",
            hint="is --base the model that the adapter was trained on?",
        )
    if half := [m for m in modules if (m, "A") not in found or (m, "B") not in found]:
        raise ToolError(f"{root}: one of lora_A and lora_B is missing for {_some(half)}", hint="is the adapter complete?")
    for m in modules:
        (out, inner), rank = sizes[m], lora[m].rank
        expected = {"A": (rank, inner), "B": (out, rank)}
        for name, shape in expected.items():
            if found[m, name].shape != shape:
                raise ToolError(
                    f"{root}: {m}.lora_{name}.weight is {list(found[m, name].shape)}, expected {list(shape)} "
                    f"(r={rank}, of a weight {[out, inner]})",
                    hint="do adapter_config.json and the base model belong to these weights?",
                )


def _check_targets(root: Path, modules: list[str], config: AdapterConfig) -> None:
    """Raises ToolError for modules that peft would not load."""
    if config.target is not None and (more := [m for m in modules if not config.targets(m)]) and not _all_linear(config):
        raise ToolError(
            f"{root}: {len(more)} modules have tensors, and target_modules does not name them, so that peft would not "
            f"load them: {_some(more)}",
            hint="do adapter_config.json and adapter_model.safetensors belong together?",
        )


def _all_linear(config: AdapterConfig) -> bool:
    return isinstance(config.target, str) and config.target.lower() == "all-linear"


def _notes(config: AdapterConfig, modules: list[str], sizes: Mapping[str, tuple[int, int]], model: BaseModel) -> list[str]:
    mtp = tuple(model.family.layer.format(l=model.spec.num_layers + k) for k in range(model.spec.mtp_layers))
    had = set(modules)
    without = [m for m in sizes if m not in had and not (mtp and m.startswith(mtp)) and config.targets(m)]
    text = f"target_modules also names {len(without)} modules for which the adapter has no tensors: {_some(without)}"
    return [text] if without else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
