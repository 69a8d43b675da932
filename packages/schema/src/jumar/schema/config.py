"""Reading a Hugging Face config.json strictly: what is not understood is refused by name.

Both spellings are read: transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`, `dtype`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from jumar.schema.errors import Exit, ToolError
from jumar.schema.spec import MOST, MOST_EXPERTS, MOST_LAYERS, ROPE_KINDS, Activation, Rope, RopeKind, RopeScaling

T = TypeVar("T")
_NOTHING: dict[str, Any] = {}
KINDS = {0: "a whole number, 0 or more", 1: "a positive whole number"}
_WRONG_KIND = "was the file edited by hand? fetch it again"

# Keys that say nothing about the shape or the arithmetic of the model: generation, training, serialisation, and the
# base class's own.
INERT_KEYS = frozenset(
    """
    model_type architectures transformers_version auto_map torch_dtype dtype use_cache initializer_range attention_dropout
    bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id decoder_start_token_id unk_token_id
    pretraining_tp ep_size task_specific_params id2label label2id problem_type return_dict output_hidden_states output_attentions
    torchscript use_bfloat16 tf_legacy_loss pruned_heads chunk_size_feed_forward is_encoder_decoder is_decoder
    cross_attention_hidden_size add_cross_attention tie_encoder_decoder max_length min_length do_sample early_stopping num_beams
    num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id
    forced_eos_token_id remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
    finetuning_task tokenizer_class gradient_checkpointing output_router_logits router_jitter_noise keys_to_ignore_at_inference
    resid_pdrop embd_pdrop attn_pdrop hidden_dropout model_max_length attn_implementation cache_implementation
    max_sequence_length num_labels unsloth_version unsloth_fixed neftune_noise_alpha transformers.js_config
    """.split()
)

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


MOST_OF = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_nextn_predict_layers", "num_mtp_layers"), MOST_LAYERS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), MOST_EXPERTS),
}


class ConfigReader:
    """A config.json that remembers which keys were asked for, so that `done` can refuse the others."""

    def __init__(self, config: Mapping[str, Any], *, ignore: frozenset[str] = frozenset()) -> None:
        self.model_type = str(config.get("model_type"))
        try:
            self.config = {key: _floats(value) for key, value in config.items()}
        except (TypeError, ValueError, OverflowError) as fault:
            raise ToolError(f"config.json of {self.model_type}: {fault}", hint=_WRONG_KIND) from None
        self._ignore = ignore
        self._seen: set[str] = set()

    def need(self, key: str) -> Any:
        """The value of a key without which there is no model."""
        self._seen.add(key)
        if self.config.get(key) is None:
            raise ToolError(f"config.json of {self.model_type}: {key!r} is missing", hint="is the directory complete?")
        return self.config[key]

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        return self._whole(key, self.need(key) if default is None else self.get(key, default), 1)

    def count(self, key: str, default: int = 0) -> int:
        """A whole number, possibly 0."""
        return self._whole(key, self.get(key, default), 0)

    def _whole(self, key: str, value: Any, least: int) -> int:
        most = MOST_OF.get(key, MOST)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            kind = f"a whole number from {least} to {most}" if type(value) is int and value > most else KINDS[least]
            raise ToolError(f"config.json of {self.model_type}: {key!r} is {_short(value)}, expected {kind}", hint=_WRONG_KIND)
        return value

    def get(self, key: str, default: T) -> T:
        """The value of a key; `default` where it is absent or null. Raises ToolError for one of another kind than `default`."""
        self._seen.add(key)
        value = self.config.get(key)
        if value is None:
            return default
        if isinstance(value, float) and not math.isfinite(value):
            raise ToolError(f"config.json of {self.model_type}: {key!r} is {value!r}, which is no number", hint=_WRONG_KIND)
        if not _same_kind(value, default):
            raise ToolError(
                f"config.json of {self.model_type}: {key!r} is {value!r}, expected a value like {default!r}", hint=_WRONG_KIND
            )
        return cast(T, value)

    def only(self, key: str, *allowed: Any) -> None:
        """Refuses any value of `key` but those: the others are features that the family does not have here."""
        self._seen.add(key)
        value = self.config.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(repr(v) for v in allowed)
            raise ToolError(
                f"config.json of {self.model_type}: {key} = {value!r} is not supported, expected {expected}",
                hint="the model uses a feature that jumar does not know yet",
            )

    def activation(self, key: str, default: str) -> Activation:
        """A Hugging Face activation name as a trait."""
        name = self.get(key, default)
        if name not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ToolError(f"config.json of {self.model_type}: {key} = {name!r} is not supported", hint=f"known: {known}")
        return ACTIVATIONS[name]

    def dtype(self) -> str:
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32").removeprefix("torch.")

    def rope(self, *, base: float = 10000.0, fraction: float = 1.0, interleaved: bool = False) -> Rope:
        """RoPE from either spelling; an unknown scaling is refused by name."""
        given: dict[str, Any] = {**self.get("rope_scaling", _NOTHING), **self.get("rope_parameters", _NOTHING)}
        said = {v for v in (given.get("rope_theta"), self.get("rope_theta", None)) if isinstance(v, (int, float))}
        if len(said) > 1:
            raise ToolError(
                f"config.json of {self.model_type}: rope_theta is said twice, and differently: {sorted(said)}",
                hint="leave one of them",
            )
        base = self._number("rope_theta", given.pop("rope_theta", self.get("rope_theta", base)), math.inf)
        fraction = given.pop("partial_rotary_factor", self.get("partial_rotary_factor", fraction))
        fraction = self._number("partial_rotary_factor", fraction, 1.0)
        kind = given.pop("rope_type", None) or given.get("type") or "default"
        given.pop("type", None)
        if kind == "default":
            if left := sorted(k for k, v in given.items() if v is not None):
                raise ToolError(
                    f"config.json of {self.model_type}: RoPE settings {', '.join(left)} without a rope_type",
                    hint=f"add a rope_type: {', '.join(ROPE_KINDS)}",
                )
            return Rope(base=base, fraction=fraction, interleaved=interleaved)
        if kind not in ROPE_KINDS:
            raise ToolError(
                f"config.json of {self.model_type}: RoPE scaling {kind!r} is not supported",
                hint=f"known: {', '.join(('default', *ROPE_KINDS))}",
            )
        if given.pop("truncate", True) is not True:
            raise ToolError(
                f"config.json of {self.model_type}: RoPE scaling {kind!r} with truncate = false is not supported",
                hint="the model uses a feature that jumar does not know yet",
            )
        known = [name for name in RopeScaling.__slots__ if name != "kind"]
        unknown, missing = sorted(set(given) - set(known)), "factor" not in given
        if unknown or missing:
            what = f"settings that are not known: {', '.join(unknown)}" if unknown else "no factor"
            raise ToolError(
                f"config.json of {self.model_type}: RoPE scaling {kind!r} has {what}", hint=f"known: {', '.join(known)}"
            )
        for key, value in given.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)):
                raise ToolError(
                    f"config.json of {self.model_type}: {key!r} of the RoPE scaling is {_short(value)}, expected a number",
                    hint=_WRONG_KIND,
                )
        scaling = RopeScaling(kind=cast(RopeKind, kind), **given)
        return Rope(base=base, fraction=fraction, interleaved=interleaved, scaling=scaling)

    def _number(self, key: str, value: Any, most: float) -> float:
        """A positive number, at most `most`."""
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not 0 < value <= most:
            limit = "" if math.isinf(most) else f", at most {most:g}"
            raise ToolError(
                f"config.json of {self.model_type}: {key!r} is {_short(value)}, expected a positive number{limit}",
                hint=_WRONG_KIND,
            )
        return float(value)

    def done(self) -> None:
        """Refuses every key that has a value, was not asked for and is not known to be without effect."""
        if used := sorted(self._ignore & self._seen & set(self.config)):
            raise ToolError(
                f"config.json of {self.model_type}: {', '.join(used)} cannot be ignored, the model depends on it",
                hint="leave it out of --ignore-config-keys",
                code=Exit.USAGE,
            )
        left = [
            key
            for key, value in self.config.items()
            if not key.startswith("_")
            and key not in self._seen | INERT_KEYS | self._ignore
            and value not in (None, False, [], {})
        ]
        if left:
            named = ", ".join(f"{key} = {_short(self.config[key])}" for key in left)
            raise ToolError(
                f"config.json of {self.model_type} uses what jumar does not know: {named}",
                hint=f"if it has no effect on the weights: --ignore-config-keys {','.join(left)}",
            )


def _short(value: Any) -> str:
    """A value as Python writes it, cut if it is long."""
    if isinstance(value, int) and abs(value) > MOST**3:
        return f"a number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _same_kind(value: Any, default: Any) -> bool:
    if isinstance(value, bool) or isinstance(default, bool):
        return default is None or (isinstance(value, bool) and isinstance(default, bool))
    if isinstance(default, int | float):
        return isinstance(value, int | float)
    return default is None or isinstance(value, type(default))


def _floats(value: Any) -> Any:
    """transformers 5 writes an infinite float as {"__float__": "Infinity"}."""
    if isinstance(value, dict) and set(value) == {"__float__"}:
        return float(value["__float__"])
    return [_floats(v) for v in value] if isinstance(value, list) else value


def write_rope(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as transformers 4 and 5 both read them."""
    config: dict[str, Any] = {"rope_theta": rope.base}
    if rope.fraction != 1.0:
        config["partial_rotary_factor"] = rope.fraction
    if rope.scaling is not None:
        values = {name: getattr(rope.scaling, name) for name in RopeScaling.__slots__ if name != "kind"}
        config["rope_scaling"] = {"rope_type": rope.scaling.kind, **{k: v for k, v in values.items() if v is not None}}
    return config
