"""State dicts of Megatron-LM before megatron-core: nested dicts or dotted names, in the spellings that it has had.

megatron/legacy/model: `state_dict_for_save_checkpoint` nests embedding, encoder and output layer, and leaves the encoder's own
names dotted; `load_state_dict` lists the older spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

ROOT, TIED = "language_model", "word_embeddings_for_head"
V = TypeVar("V")

_OLD = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^language_model\.transformer\.", "language_model.encoder."),
        (r"^language_model\.(?=\w+_embeddings\.)", "language_model.embedding."),
        (r"(?<=\d)\.attention\.", ".self_attention."),
        (r"(?<=\d)\.input_layernorm\.", ".input_norm."),
        (r"(?<=\d)\.post_attention_layernorm\.", ".post_attention_norm."),
        (r"^language_model\.encoder\.final_layernorm\.", "language_model.encoder.final_norm."),
        (r"^word_embeddings\.", "word_embeddings_for_head."),
    )
)


def flat(state: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name -> value, of dicts in dicts: their keys with dots between. A state dict that is flat comes as it is."""
    for key, value in state.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def is_legacy(names: Mapping[str, Any]) -> bool:
    return any(name.startswith((f"{ROOT}.", "word_embeddings")) for name in names)


def current(name: str) -> str:
    """A name in the spelling of Megatron-LM's last legacy model, which MindSpeed-LLM's has too."""
    for pattern, new in _OLD:
        name = pattern.sub(new, name)
    return name


def nested(state: Mapping[str, V]) -> dict[str, Any]:
    """The dicts that Megatron-LM saves and loads. Other state dicts stay as they are."""
    if not is_legacy(state):
        return dict(state)
    made: dict[str, Any] = {}
    for name, value in state.items():
        *places, last = _places(name)
        inner = made
        for place in places:
            inner = inner.setdefault(place, {})
        inner[last] = value
    return made


def _places(name: str) -> list[str]:
    encoder = f"{ROOT}.encoder."
    return [ROOT, "encoder", name.removeprefix(encoder)] if name.startswith(encoder) else name.split(".")
