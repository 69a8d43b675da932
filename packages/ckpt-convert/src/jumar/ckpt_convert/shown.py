"""What shards show of themselves, whatever their args say: ranks from file names and contents, sizes from names and shapes.

Facts come under the names that Megatron's args have for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from jumar.ckpt_convert.formats import legacy
from jumar.ckpt_convert.formats.megatron import SHARD, ShardFile
from jumar.ckpt_convert.tensors import TensorRef
from jumar.schema.dialects import dialect_of

EMBEDDING = "embedding.word_embeddings.weight"
FINAL_NORMS = ("decoder.final_layernorm.weight", "final_layernorm.weight", "decoder.final_norm.weight")
LAYER = re.compile(r"decoder\.layers\.(\d+)\.")
ROUTER = re.compile(r"decoder\.layers\.(\d+)\.mlp\.router\.weight")
MTP = re.compile(r"mtp\.layers\.(\d+)\.")
EXPERT = re.compile(r"\.mlp\.experts\.")
FLAGS = {"BF16": "bf16", "F16": "fp16"}


class Shown:
    """The shards of a checkpoint by name, each as (chunk number, tensor name) -> tensor; legacy names as `mcore` has them."""

    def __init__(self, shards: Mapping[str, ShardFile]) -> None:
        self.files = {name: dict(_tensors(shard)) for name, shard in shards.items()}
        self.numbers = {name: _numbers(name) for name in shards}
        self.chunks = len({chunk for shard in shards.values() for chunk in shard.states})
        self.legacy = any(legacy.is_legacy(state) for shard in shards.values() for state in shard.states.values())
        self.has_experts = any(EXPERT.search(name) for file in self.files.values() for _, name in file)

    def ranks(self) -> dict[str, int]:
        """tp, pp and ep as Megatron's args; what cannot be told is left out.

        mp_rank_TT_XXX is one pipeline stage or one EP rank of several. An EP rank holds the model's beginning and its end. The
        first stage has the beginning alone; or (DualPipeV) both, and then the others have neither.
        """
        lengths = {len(n) for n in self.numbers.values()}
        if len(lengths) != 1:
            return {}
        tp, *others = (max(column) + 1 for column in zip(*self.numbers.values(), strict=True))
        sizes = {"tensor_model_parallel_size": tp}
        if len(others) == 1:
            kind = self._second()
            others = [others[0], 1] if kind == "pp" else [1, others[0]] if kind == "ep" else []
        elif not others:
            others = [1, 1]
        return sizes | dict(zip(("pipeline_model_parallel_size", "expert_model_parallel_size"), others, strict=False))

    def _second(self) -> str | None:
        ends: dict[bool, set[tuple[bool, bool]]] = {True: set(), False: set()}
        for name, file in self.files.items():
            names = {tensor for _, tensor in file}
            ends[self.numbers[name][1] == 0].add((EMBEDDING in names, not names.isdisjoint(FINAL_NORMS)))
        first, others = ends[True], ends[False]
        if first == {(True, False)} or (first == {(True, True)} and others == {(False, False)}):
            return "pp"
        # one chunk that is a whole model is no pipeline stage, even if the other EP ranks' files are elsewhere
        return "ep" if first == {(True, True)} and others <= first and (others or self.chunks == 1) else None

    def pipeline(self, pp: int, num_layers: int | None) -> dict[str, Any]:
        """How layers are spread. num_layers: as the args say it, no-op slots counted; None: they do not.

        Gaps in local numbers are no-op slots. Stages of different sizes without gaps are the same files whether they are
        said to be uneven, or to end with no-op slots.
        """
        local = self.local_layers(pp)
        size = max((max(numbers) + 1 for numbers in local.values() if numbers), default=0)
        if num_layers and num_layers % len(local) == 0:
            size = max(size, num_layers // len(local))
        dualpipev = self.is_dualpipev()
        facts: dict[str, Any] = {"schedules_method": "dualpipev"} if dualpipev else {}
        if self.chunks > 1 and not dualpipev:
            facts["virtual_pipeline_model_parallel_size"] = self.chunks
        counts = [len(numbers) for numbers in local.values()]
        whole = all(numbers == set(range(len(numbers))) for numbers in local.values())
        if whole and self.chunks == 1 and min(counts) and num_layers in (None, sum(counts)):
            facts |= {"num_layers": sum(counts)}
            return facts | ({"num_layer_list": tuple(counts)} if len(set(counts)) > 1 else {})
        order = self._order(pp)
        noop = sorted(order[chunk] * size + i for chunk, numbers in local.items() for i in range(size) if i not in numbers)
        return facts | {"num_layers": size * len(local), **({"noop_layers": tuple(noop)} if noop else {})}

    def _order(self, pp: int) -> dict[tuple[int, int], int]:
        """(stage, chunk) -> its number along the model."""
        chunks = [(p, v) for p in range(pp) for v in range(self.chunks)]
        if self.is_dualpipev():
            return {(p, v): p if v == 0 else 2 * pp - 1 - p for p, v in chunks}
        return {(p, v): v * pp + p for p, v in chunks}

    def layers_with_experts(self, pp: int) -> list[int]:
        """1 for each layer that has a router, 0 for each that has none, in the model's order."""
        having = self.local_layers(pp, ROUTER)
        local, order = self.local_layers(pp), self._order(pp)
        return [int(i in having[chunk]) for chunk in sorted(local, key=order.__getitem__) for i in sorted(local[chunk])]

    def local_layers(self, pp: int, pattern: re.Pattern[str] = LAYER) -> dict[tuple[int, int], set[int]]:
        """(stage, chunk) -> the local numbers of its layers, of those with a tensor whose name the pattern matches."""
        found: dict[tuple[int, int], set[int]] = {(p, v): set() for p in range(pp) for v in range(self.chunks)}
        for name, file in self.files.items():
            stage = self.numbers[name][1] if pp > 1 and len(self.numbers[name]) > 1 else 0
            for chunk, tensor in file:
                if (stage, chunk) in found and (layer := pattern.match(tensor)):
                    found[stage, chunk].add(int(layer[1]))
        return found

    def is_dualpipev(self) -> bool:
        """Whether the first stage has the model's beginning and its end, in two chunks."""
        firsts = [file for name, file in self.files.items() if not any(self.numbers[name][1:])]
        return self.chunks == 2 and all((0, EMBEDDING) in f and any((1, n) in f for n in FINAL_NORMS) for f in firsts)

    def sizes(self, tp: int, pp: int, etp: int | None, said: Mapping[str, Any]) -> dict[str, Any]:
        """Sizes that shapes show: facts under the names of Megatron's args. said: what the args say."""
        facts = {**self._embedding(tp), **self._feed_forward(tp, pp, etp, said), **self._traits(pp)}
        latent = self._axis("linear_kv_up_proj.weight", "linear_kvb.weight", "linear_kv_nope.weight", axis=1)
        facts |= self._latent(tp, latent, said) if latent else self._attention(tp, said)
        return {name: value for name, value in {**facts, **self._mixer(tp, said)}.items() if value or value is False}

    def _embedding(self, tp: int) -> dict[str, Any]:
        rows: dict[int, int] = {}
        hidden = 0
        for name, file in self.files.items():
            ref = file.get((0, EMBEDDING))
            if ref is not None and len(ref.shape) == 2:
                rows.setdefault(self.numbers[name][0], ref.shape[0])
                hidden = ref.shape[1]
        padded = sum(rows.values()) if len(rows) == tp else 0
        positions = self._axis("embedding.position_embeddings.weight", axis=0)
        return {"hidden_size": hidden, "padded_vocab_size": padded, "max_position_embeddings": positions}

    def _feed_forward(self, tp: int, pp: int, etp: int | None, said: Mapping[str, Any]) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "ffn_hidden_size": tp * self._axis(".mlp.linear_fc2.weight", axis=1),
            "num_experts": self._axis(".mlp.router.weight", axis=0),
            "moe_shared_expert_intermediate_size": tp * self._axis(".shared_experts.linear_fc2.weight", axis=1),
        }
        if facts["num_experts"] and said.get("first_k_dense_replace") is None:
            facts["moe_layer_freq"] = self.layers_with_experts(pp)
        return facts | {"moe_ffn_hidden_size": (etp or 0) * self.expert_columns(said)}

    def expert_columns(self, said: Mapping[str, Any]) -> int:
        """Width of one expert on one rank; 0 where it does not show."""
        one = self._axis(".experts.local_experts.0.linear_fc2.weight", ".experts.linear_fc2.weight0", axis=1)
        rows, experts = self._axis(".experts.weight2", axis=0), self._axis(".mlp.router.weight", axis=0)
        ep = said.get("expert_model_parallel_size") or 1
        return one or (rows * ep // experts if experts and isinstance(ep, int) and not said.get("moe_tp_extend_ep") else 0)

    def experts_here(self) -> int:
        """How many experts one file holds, where they are tensors of their own."""
        pattern = re.compile(r"(.*)\.mlp\.experts\.(local_experts\.\d+\.linear_fc2\.weight|linear_fc2\.weight\d+)")
        for file in self.files.values():
            found = [m for _, name in file if (m := pattern.fullmatch(name))]
            if found:
                return sum(m[1] == found[0][1] for m in found)
        return 0

    def _attention(self, tp: int, said: Mapping[str, Any]) -> dict[str, Any]:
        width = tp * self._axis("self_attention.linear_proj.weight", axis=1)
        head = _size(said, "kv_channels") or self._axis("self_attention.q_layernorm.weight", axis=0)
        heads = _size(said, "num_attention_heads") or (width // head if head else 0)
        if not heads or not width or width % heads:
            return {}
        head = width // heads
        pairs = tp * self._axis("self_attention.linear_qkv.weight", axis=0) // head - heads
        return {"num_attention_heads": heads, "kv_channels": head, "num_query_groups": max(pairs, 0) // 2}

    def _latent(self, tp: int, kv_lora: int, said: Mapping[str, Any]) -> dict[str, Any]:
        q_up = ("linear_q_up_proj.weight", "linear_qb.weight", "linear_qk_nope.weight")
        q_lora, heads = self._axis(*q_up, axis=1), _size(said, "num_attention_heads")
        joined = self._axis("self_attention.linear_qkv.weight", axis=0)
        down = self._axis("linear_kv_down_proj.weight", axis=0)
        norm = self._axis("linear_kv_up_proj.layer_norm_weight", axis=0)  # of TransformerEngine, where it is whole
        rope = joined - q_lora - kv_lora if joined and q_lora else down * (1 if norm else tp) - kv_lora if down else 0
        facts = {"kv_lora_rank": kv_lora, "q_lora_rank": q_lora, "qk_pos_emb_head_dim": max(rope, 0)}
        if heads:
            value = tp * self._axis("self_attention.linear_proj.weight", axis=1) // heads
            both = tp * self._axis("linear_kv_up_proj.weight", "linear_kvb.weight", axis=0) // heads
            nope = tp * self._axis("linear_kv_nope.weight", axis=0) // heads or both - value
            facts |= {"v_head_dim": value, "qk_head_dim": max(nope, 0)}
            if joined and not q_lora and nope:
                facts["qk_pos_emb_head_dim"] = (joined - kv_lora - heads * nope) // (heads + 1)
        return facts

    def _mixer(self, tp: int, said: Mapping[str, Any]) -> dict[str, Any]:
        heads, inner = tp * self._axis(".mixer.A_log", axis=0), tp * self._axis(".mixer.out_proj.weight", axis=1)
        if not heads:
            return {}
        states = (tp * self._axis(".mixer.conv1d.weight", axis=0) - inner) // 2  # groups * state size
        groups, state = _size(said, "mamba_num_groups"), _size(said, "mamba_state_dim")
        return {
            "mamba_num_heads": heads,
            "mamba_head_dim": inner // heads,
            "mamba_d_conv": self._axis(".mixer.conv1d.weight", axis=2),
            "mamba_state_dim": max(states, 0) // groups if groups else 0,
            "mamba_num_groups": max(states, 0) // state if state else 0,
        }

    def _traits(self, pp: int) -> dict[str, Any]:
        """Biases, MTP layers, dtype, and whether the output layer is the embedding, where it shows."""
        names = {name for file in self.files.values() for _, name in file}
        mtp = {int(m[1]) for n in names if (m := MTP.match(n))}
        dtype, _ = Counter(ref.dtype for file in self.files.values() for ref in file.values()).most_common(1)[0]
        facts: dict[str, Any] = {"mtp_num_layers": len(mtp)} | ({FLAGS[dtype]: True} if dtype in FLAGS else {})
        biases = {"add_qkv_bias": "linear_qkv", "add_dense_bias": "linear_proj", "add_bias_linear": "mlp.linear_fc1"}
        facts |= {flag: True for flag, module in biases.items() if any(n.endswith(f".{module}.bias") for n in names)}
        if self.legacy or (pp == 1 and self.chunks == 1):  # elsewhere the last stage has an output layer in any case
            facts["untie_embeddings_and_output_weights"] = "output_layer.weight" in names
        return facts

    def _axis(self, *endings: str, axis: int) -> int:
        """The size of an axis of the first tensor whose name ends so; 0 where there is none."""
        for file in self.files.values():
            for (_, name), ref in file.items():
                if name.endswith(endings) and len(ref.shape) > axis:
                    return ref.shape[axis]
        return 0


def _tensors(shard: ShardFile) -> Iterator[tuple[tuple[int, str], TensorRef]]:
    for key, state in shard.states.items():
        old = legacy.is_legacy(state)
        for name, ref in state.items():
            yield (int(key.removeprefix("model") or 0), dialect_of("legacy").base_name(name) if old else name), ref


def _numbers(name: str) -> tuple[int, ...]:
    match = SHARD.fullmatch(name)
    assert match is not None
    return tuple(int(n) for n in match.groups() if n is not None)


def _size(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
