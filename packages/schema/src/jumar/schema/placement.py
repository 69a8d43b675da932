"""Placement: which tensors each checkpoint file of a layout holds, each as boxes of HF tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jumar.schema.dialects import Dialect, dialect_of
from jumar.schema.errors import ToolError
from jumar.schema.family import Family
from jumar.schema.parallel import Chunk, ParallelLayout, Shard
from jumar.schema.spec import ModelSpec
from jumar.schema.weights import Geometry, Rule, cut, cut_rows, expand, pad_rows, stack_experts

ExpertLayout = Literal["sequential", "grouped"]
GROUPED_LORA = {".lora_A.": "_lora_a", ".lora_B.": "_lora_b"}
"""MindSpeed's names beside weight1 and weight2 for the adapters of grouped experts."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One tensor of one file: state-dict key ("model", or "model0"...

    under VPP), name, geometry, and the HF tensors of its boxes.
    origin: the rule that made it; layer: its number (MTP layers follow the decoder's); expert: the first that it holds
    """

    key: str
    name: str
    geometry: Geometry
    sources: tuple[str, ...]
    keep_dtype: bool = False
    origin: Rule | None = None
    layer: int | None = None
    expert: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """A model under a parallel layout, in a dialect.

    mla_mm_split: latent attention's up-projections parted (MindSpeed's --mla-mm-split)
    vocab_rows: rows of the vocabulary on each TP rank, padding included; None: `padded_vocab` shared out evenly
    """

    family: Family
    spec: ModelSpec
    layout: ParallelLayout
    dialect: str = "mcore"
    expert_layout: ExpertLayout = "sequential"
    vocab_divisible_by: int = 1
    vocab_rows: tuple[int, ...] | None = None
    mla_mm_split: bool = False

    @property
    def names(self) -> Dialect:
        return dialect_of(self.dialect)

    @property
    def padded_vocab(self) -> int:
        """Rows of the embedding over all TP ranks (Megatron's rule: a multiple of vocab_divisible_by * tp)."""
        if self.vocab_rows is not None:
            return sum(self.vocab_rows)
        multiple = self.vocab_divisible_by * self.layout.tp
        return -(-self.spec.vocab_size // multiple) * multiple

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.layout.shards(moe=self.spec.moe is not None)

    @property
    def keys(self) -> tuple[str, ...]:
        """The state dicts of every file: one for each model chunk, also where a chunk has no-op slots alone."""
        return ("model",) if self.layout.vpp == 1 else tuple(f"model{v}" for v in range(self.layout.vpp))

    def check(self) -> None:
        """Raises ToolError where the layout does not fit the model, before anything is read."""
        self.check_dialect()
        if self.vocab_divisible_by < 1:
            raise ToolError(
                f"vocab_divisible_by={self.vocab_divisible_by}: expected a positive whole number",
                hint="Megatron's default is 128",
            )
        self.layout.check_ranks(moe=self.spec.moe is not None)
        if self.expert_layout == "grouped" and self.spec.moe is None:
            raise ToolError("expert layout grouped: this model has no experts", hint="leave out --expert-layout")
        if moe := self.spec.moe:
            ranks = self.layout.expert_ranks
            if moe.num_experts % ranks:
                raise ToolError(
                    f"{moe.num_experts} experts cannot be shared out over {ranks} ranks (ep={self.layout.ep})",
                    hint=f"choose --ep among the divisors of {moe.num_experts}",
                )
        stages = {chunk.pp for chunk in self.layout.chunks(self.spec.num_layers)}
        for stage in sorted(stages):  # the first rank of each, before all ranks are counted out: what is cut there is cut on all
            for _ in self.tensors(Shard("", tp=0, pp=stage)):
                pass
        for shard in self.shards:
            if shard.pp == 0 or shard.tp == 0:
                for _ in self.tensors(shard):
                    pass

    def check_dialect(self) -> None:
        """Raises ToolError where the dialect cannot say the model, or not in this layout."""
        self.family.check_dialect(self.dialect)
        if self.names.mla_tp1 and self.spec.mla is not None and self.layout.tp > 1:
            raise ToolError(
                f"dialect {self.dialect} at tp={self.layout.tp}: MindSpeed-LLM 1 has latent attention at TP 1 only "
                "(it cut linear_qkv across the border of its two matrices, and its up-projections not at all)",
                hint="choose --tp 1, or --dialect mindspeed",
            )
        if self.mla_mm_split and (self.spec.mla is None or self.names.base != "mindspeed"):
            what = f"dialect {self.dialect}" if self.spec.mla else "a model without latent attention"
            raise ToolError(
                f"mla_mm_split: {what} does not have it",
                hint="it goes with latent attention in --dialect mindspeed and mindspeed-v1",
            )

    def tensors(self, shard: Shard) -> Iterator[Placed]:
        """The tensors of one file, in the model's order."""
        self.check_dialect()
        rules = list(self.family.rules(self.spec, self.dialect, self.mla_mm_split))
        for chunk in self.layout.chunks(self.spec.num_layers):
            if chunk.pp == shard.pp:
                yield from self._chunk(rules, chunk, shard, self.keys[chunk.vpp])

    def _chunk(self, rules: list[Rule], chunk: Chunk, shard: Shard, key: str) -> Iterator[Placed]:
        alone = chunk.first and chunk.last
        stages = {"first": chunk.first, "last": chunk.last, "tied_last": chunk.last and not alone}
        stages["mtp"] = chunk.last and not alone
        model = [r for r in rules if r.scope == "model" and stages[r.stage]]
        for rule in model:
            if rule.stage in ("first", "mtp"):
                yield self._whole(rule, shard, key)
        for local, layer in enumerate(chunk.slots):
            if layer is not None:
                yield from self._layer(rules, f"decoder.layers.{local}.", layer, shard, key)
        for rule in model:
            if rule.stage in ("last", "tied_last"):
                yield self._whole(rule, shard, key)
        for k in range(self.spec.mtp_layers if chunk.last else 0):
            yield from self._mtp(rules, k, shard, key)

    def _whole(self, rule: Rule, shard: Shard, key: str) -> Placed:
        geometry = expand(rule, self.spec)
        if rule.padded and self.vocab_rows is not None:
            padded = pad_rows(geometry, self.padded_vocab)
            geometry = cut_rows(padded, sum(self.vocab_rows[: shard.tp]), self.vocab_rows[shard.tp])
        else:
            if rule.padded:
                geometry = pad_rows(geometry, self.padded_vocab)
            geometry = self._cut(rule, geometry, shard)
        name = rule.name_in(self.dialect)
        if rule.stage == "tied_last" and self.names.tied:
            name = f"{self.names.tied}.weight"
        sources = tuple(p.name for p in rule.parts)
        return Placed(key, self.names.name(name), geometry, sources, rule.keep_dtype, origin=rule)

    def _cut(self, rule: Rule, geometry: Geometry, shard: Shard) -> Geometry:
        if rule.shard is None:
            return geometry
        if rule.expert:
            return cut(geometry, rule.shard, shard.etp, self.layout.expert_tp, "etp")
        return cut(geometry, rule.shard, shard.tp, self.layout.tp, "tp")

    def _mtp(self, rules: list[Rule], k: int, shard: Shard, key: str) -> Iterator[Placed]:
        layer = self.spec.num_layers + k
        hf = self.family.layer.format(l=layer)
        for rule in rules:
            if rule.scope == "mtp":
                name = rule.name_in(self.dialect).format(k=k)
                full = name[1:] if name.startswith("/") else f"mtp.layers.{k}.{name}"
                sources = tuple(hf + p.name for p in rule.parts)
                cut = self._cut(rule, expand(rule, self.spec), shard)
                yield Placed(key, self.names.name(full), cut, sources, origin=rule, layer=layer)
        blocks = [r for r in rules if r.scope == "layer"]
        yield from self._layer(blocks, f"mtp.layers.{k}.transformer_layer.", layer, shard, key)

    def _layer(self, rules: list[Rule], prefix: str, layer: int, shard: Shard, key: str) -> Iterator[Placed]:
        hf = self.family.layer.format(l=layer)
        for rule in rules:
            if rule.scope != "layer" or not self.family.in_layer(rule, self.spec, layer):
                continue
            geometry = self._cut(rule, expand(rule, self.spec), shard)
            name = self.names.name(prefix + rule.name_in(self.dialect))
            if rule.expert:
                yield from self._experts(rule, geometry, name, layer, shard, key)
            else:
                sources = tuple(hf + p.name for p in rule.parts)
                yield Placed(key, name, geometry, sources, rule.keep_dtype, origin=rule, layer=layer)

    def _experts(self, rule: Rule, geometry: Geometry, name: str, layer: int, shard: Shard, key: str) -> Iterator[Placed]:
        assert self.spec.moe is not None
        count = self.spec.moe.num_experts // self.layout.expert_ranks
        rank = shard.ep * self.layout.tp + shard.tp if self.layout.tp_extend_ep else shard.ep
        hf = self.family.layer.format(l=layer)
        sources = [tuple(hf + p.name.format(e=rank * count + e) for p in rule.parts) for e in range(count)]
        if self.expert_layout == "grouped" and self.dialect != "te":
            first = ".linear_fc1." in rule.name
            half = next((grouped for mark, grouped in GROUPED_LORA.items() if mark in rule.name), "")
            flat = name.split("local_experts.")[0] + ("weight1" if first else "weight2") + half
            stacked = stack_experts(geometry, count, len(rule.parts), first)
            held = tuple(s for expert in sources for s in expert)
            yield Placed(key, flat, stacked, held, origin=rule, layer=layer, expert=rank * count)
            return
        if self.expert_layout == "grouped":
            name = name.replace("local_experts.{e}.", "") + "{e}"
        for e in range(count):
            yield Placed(key, name.format(e=e), geometry, sources[e], origin=rule, layer=layer, expert=rank * count + e)
