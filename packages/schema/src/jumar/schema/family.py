"""What a family file provides. A family is data: how to read its config.json, which rules make its tensors, and a tiny config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jumar.schema.config import ConfigReader
from jumar.schema.dialects import DIALECTS
from jumar.schema.errors import ToolError
from jumar.schema.spec import ModelSpec, check_spec
from jumar.schema.weights import Rule, part_shape

EVERYWHERE = tuple(name for name in DIALECTS if name != "legacy")
"""Megatron spellings of a model that every stack has; `legacy` is for those that Megatron-LM had before megatron-core."""


@dataclass(frozen=True, slots=True)
class Copy:
    """An HF tensor that some published files hold a second time. `{l}`: every MTP layer.

    It must equal `original`, or the run stops.
    """

    name: str
    original: str
    when: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One Hugging Face `model_type`.

    read, write: config.json to traits and back (`write` gives what transformers needs to build the model)
    weights:     its rules, in the order of the model
    tiny:        a config.json of a few thousand parameters, for tests and first steps
    layer, base: prefix of a layer's HF tensors, and the prefix that some published files leave out
    drops:       regular expressions of HF tensors that hold nothing (recomputed buffers)
    copies:      HF tensors that repeat another
    dialects:    Megatron spellings in which the model exists
    """

    model_type: str
    architecture: str
    read: Callable[[ConfigReader], ModelSpec]
    write: Callable[[ModelSpec], dict[str, Any]]
    weights: tuple[Rule, ...]
    tiny: Mapping[str, Any]
    layer: str = "model.layers.{l}."
    base: str = "model."
    drops: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    copies: tuple[Copy, ...] = (Copy("lm_head.weight", "model.embed_tokens.weight", when="tied"),)
    dialects: tuple[str, ...] = EVERYWHERE

    def spec(self, config: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> ModelSpec:
        """Traits of a config.json.

        Raises ToolError naming any key or value that is not understood; `ignore` lists keys to pass over.
        """
        reader = ConfigReader(config, ignore=ignore)
        try:
            spec = self.read(reader)
        except (TypeError, ValueError, AttributeError, ZeroDivisionError) as fault:
            raise ToolError(
                f"config.json of {self.model_type} holds a value of the wrong kind: {fault}",
                hint="was the file edited by hand? fetch it again",
            ) from fault
        reader.done()
        check_spec(spec, f"config.json of {self.model_type}", hint="was the file edited by hand? fetch it again")
        if spec.num_kv_heads and spec.num_heads % spec.num_kv_heads:
            raise ToolError(
                f"config.json of {self.model_type}: {spec.num_heads} attention heads cannot share {spec.num_kv_heads} KV heads",
                hint="does config.json belong to these weights (num_attention_heads, num_key_value_heads)?",
            )
        return spec

    def config(self, spec: ModelSpec) -> dict[str, Any]:
        """A config.json from which transformers builds this model."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            **self.write(spec),
            "torch_dtype": spec.dtype,
        }

    def check_dialect(self, dialect: str) -> None:
        if dialect not in self.dialects:
            known = ", ".join(self.dialects)
            raise ToolError(f"dialect {dialect!r} does not exist for {self.model_type}", hint=f"choose --dialect among: {known}")

    def rules(self, spec: ModelSpec, dialect: str, mm_split: bool = False) -> Iterator[Rule]:
        """The rules that apply to a model in a dialect. mm_split: as MindSpeed's --mla-mm-split cuts latent attention."""
        self.check_dialect(dialect)
        return (rule for rule in self.weights if rule.applies(spec, dialect, mm_split))

    def hf_tensors(self, spec: ModelSpec) -> dict[str, tuple[int, ...]]:
        """Name and shape of every HF tensor of the model, in the model's order."""
        rules = list(self.rules(spec, self.dialects[0]))
        first = [r for r in rules if r.scope == "model" and r.stage == "first"]
        last = [r for r in rules if r.scope == "model" and r.stage == "last"]
        shapes: dict[str, tuple[int, ...]] = {}
        for rule in first:
            shapes.update((part.name, part_shape(part, spec)) for part in rule.parts)
        for layer in range(spec.num_layers + spec.mtp_layers):
            for rule in rules:
                if self.in_layer(rule, spec, layer):
                    shapes.update(self._parts(rule, spec, layer))
        for rule in last:
            shapes.update((part.name, part_shape(part, spec)) for part in rule.parts)
        return shapes

    def _parts(self, rule: Rule, spec: ModelSpec, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix = self.layer.format(l=layer)
        for expert in range(spec.moe.num_experts if spec.moe and rule.expert else 1):
            for part in rule.parts:
                yield prefix + part.name.format(e=expert), part_shape(part, spec)

    def kept_dtypes(self, spec: ModelSpec) -> set[str]:
        """HF tensors that are never cast."""
        rules = [r for r in self.rules(spec, self.dialects[0]) if r.keep_dtype]
        layers = range(spec.num_layers + spec.mtp_layers)
        return {n for r in rules for i in layers if self.in_layer(r, spec, i) for n, _ in self._parts(r, spec, i)}

    def in_layer(self, rule: Rule, spec: ModelSpec, layer: int) -> bool:
        """Whether a layer (MTP layers are numbered after the decoder's) has a rule's tensor."""
        if rule.scope == "model" or (rule.scope == "mtp" and layer < spec.num_layers):
            return False
        if rule.layers in ("ssm", "attention", "mlp"):
            return spec.layer_kind(layer) == rule.layers
        return rule.layers == "all" or spec.is_moe_layer(layer) == (rule.layers == "moe")

    def copy_names(self, spec: ModelSpec) -> dict[str, str]:
        """HF tensors that may be there as copies -> the tensor they repeat."""
        layers = range(spec.num_layers, spec.num_layers + spec.mtp_layers)
        names = {
            copy.name.format(l=layer): copy.original
            for copy in self.copies
            if spec.has(copy.when)
            for layer in (layers if "{l}" in copy.name else (0,))
        }
        return {name: names.get(original, original) for name, original in names.items()}  # a copy of a copy, where tied
