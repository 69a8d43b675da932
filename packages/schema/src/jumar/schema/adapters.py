"""LoRA adapters: their tensors are derived from the rules of the model that they adapt, and never written down.

Where Megatron fuses modules of Hugging Face (q, k and v; gate and up), LoRA wraps the fused one: one `lora_A` for all of them,
and a `lora_B` whose rows are made as the rows of the weight are. https://arxiv.org/abs/2106.09685
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from jumar.schema.family import Family
from jumar.schema.spec import ModelSpec
from jumar.schema.weights import Part, Rule

TARGETS = (
    *("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2"),
    *("linear_q_proj", "linear_q_down_proj", "linear_q_up_proj", "linear_kv_down_proj", "linear_kv_up_proj"),
)
"""Megatron modules that LoRA wraps, by megatron-core's names."""
WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Fused:
    """The HF modules ("model.layers.0.self_attn.q_proj", ...) of one Megatron module; `rule` makes its weight."""

    rule: Rule
    modules: tuple[str, ...]


def target_rules(family: Family, spec: ModelSpec, dialect: str) -> list[Rule]:
    """The rules of the matrices that LoRA wraps, in a dialect."""
    return [
        r
        for r in family.rules(spec, dialect)
        if r.scope == "layer" and r.name.endswith(WEIGHT) and r.name.removesuffix(WEIGHT).rpartition(".")[2] in TARGETS
    ]


def fused_modules(family: Family, spec: ModelSpec, dialect: str) -> Iterator[Fused]:
    """Every Megatron module of a model that LoRA can wrap: layer by layer (MTP layers too), expert by expert."""
    rules = target_rules(family, spec, dialect)
    for layer in range(spec.num_layers + spec.mtp_layers):
        prefix = family.layer.format(l=layer)
        for rule in rules:
            if family.in_layer(rule, spec, layer):
                for e in range(spec.moe.num_experts if spec.moe and rule.expert else 1):
                    names = (prefix + p.name.format(e=e).removesuffix(WEIGHT) for p in rule.parts)
                    yield Fused(rule, tuple(dict.fromkeys(names)))


def module_sizes(family: Family, spec: ModelSpec) -> dict[str, tuple[int, int]]:
    """(out, in) of every HF module that is a matrix, be it a target of Megatron's or not."""
    turned = turned_modules(family, spec)
    matrices = {n.removesuffix(WEIGHT): s for n, s in family.hf_tensors(spec).items() if n.endswith(WEIGHT) and len(s) == 2}
    return {module: (s[1], s[0]) if module in turned else (s[0], s[1]) for module, s in matrices.items()}


def turned_modules(family: Family, spec: ModelSpec) -> frozenset[str]:
    """HF modules whose weight is stored (in, out): GPT-2's Conv1D."""
    turned = [p.name for r in family.rules(spec, family.dialects[0]) for p in r.parts if p.transposed and p.name.endswith(WEIGHT)]
    layers = range(spec.num_layers + spec.mtp_layers)
    return frozenset(family.layer.format(l=i) + name.removesuffix(WEIGHT) for i in layers for name in turned)


def adapter_family(family: Family, spec: ModelSpec, dialect: str, targets: Collection[str], rank: int) -> Family:
    """The adapter of a family in one dialect, as a family: two rules for each of `targets` (names of rules).

    Its HF tensors are `MODULE.lora_A.weight` (rank, in) of the first HF module of a fused one, which stands for all of them,
    and `MODULE.lora_B.weight` (out, rank) of each.
    """
    rules = [r for r in target_rules(family, spec, dialect) if r.name in targets]
    weights = tuple(half for rule in rules for half in (_lora_a(rule, dialect, rank), _lora_b(rule, dialect, rank)))
    return replace(family, weights=weights, copies=(), drops=(), dialects=(dialect,))


def _lora_a(rule: Rule, dialect: str, rank: int) -> Rule:
    """Whole on every rank behind a column-parallel weight, cut over its inputs behind a row-parallel one."""
    first = rule.parts[0]
    part = Part(f"{first.name.removesuffix(WEIGHT)}.lora_A.weight", f"{rank} {_out_in(first)[1]}")
    return _derived(rule, dialect, "lora_A", (part,), 1 if rule.shard == 1 else None, interleave=False)


def _lora_b(rule: Rule, dialect: str, rank: int) -> Rule:
    """Rows as the weight's, and cut as they are."""
    parts = tuple(
        Part(f"{p.name.removesuffix(WEIGHT)}.lora_B.weight", f"{_out_in(p)[0]} {rank}", pick=p.pick) for p in rule.parts
    )
    return _derived(rule, dialect, "lora_B", parts, 0 if rule.shard == 0 else None, interleave=rule.interleave)


def _derived(rule: Rule, dialect: str, half: str, parts: tuple[Part, ...], shard: int | None, *, interleave: bool) -> Rule:
    name = f"{rule.name_in(dialect).removesuffix(WEIGHT)}.{half}.default.weight"
    return Rule(name, parts, shard=shard, layers=rule.layers, interleave=interleave)


def _out_in(part: Part) -> tuple[str, str]:
    rows, columns = part.axes.split()
    return (columns, rows) if part.transposed else (rows, columns)


def target_names(family: Family, spec: ModelSpec, dialect: str, targets: Collection[str]) -> tuple[tuple[str, ...], set[str]]:
    """What `lora_target_modules` calls these rules, and the rules that those names mean (they may be more).

    A name means every module that ends with it, so it is the shortest one that means no other rule, if there is one.
    """
    spelled = {r.name: r.name_in(dialect).removesuffix(WEIGHT) for r in target_rules(family, spec, dialect)}
    names: dict[str, None] = {}
    meant = set(targets)
    for target in (name for name in spelled if name in targets):
        words = spelled[target].split(".")
        usable = [".".join(words[i:]) for i in range(len(words) - 1, -1, -1) if "{e}" not in words[i:]]
        found = {name: {r for r, full in spelled.items() if f".{full}".endswith(f".{name}")} for name in usable}
        name = next((n for n in usable if found[n] <= set(targets)), usable[0])
        names[name] = None
        meant |= found[name]
    return tuple(names), meant
