"""Models that the registry does not know, computed by transformers, behind the same engine.

Sequences are computed one after another, prompts at once, as transformers' own `generate` does: what else runs changes nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from jumar.infer.batch import Batch
from jumar.infer.cache import Cache
from jumar.infer.faults import hardware_faults
from jumar.infer.group import Ranks
from jumar.infer.tokenizer import Tokenizer
from jumar.schema.errors import ToolError
from jumar.schema.templates import read_json

VERSION = f"transformers {transformers.__version__}"
CAUSAL = "it is of another kind: give a causal language model, one that continues texts"
KEPT = ("cache", "past_key_values", "cache_params", "state")
"""What models call that which they return, and want back with the next token."""


@dataclass
class Past:
    """What is kept of a sequence. words: the model's own; of a model that keeps nothing they are empty."""

    tokens: list[int] = field(default_factory=list)
    words: dict[str, Any] = field(default_factory=dict)


class Pasts:
    """See `states.Places`."""

    def __init__(self, places: int) -> None:
        self.held = [Past() for _ in range(places)]

    def clear(self, place: int) -> None:
        self.held[place] = Past()

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        copies = [deepcopy(self.held[place]) for place in sources]
        for place, past in zip(targets, copies, strict=True):
            self.held[place] = past


class TransformersDecoder:
    """See `opening.Computes`. The pages of its cache hold nothing: they count positions, as --cache-tokens bounds them."""

    in_chunks = False

    def __init__(self, model: Any, device: torch.device, ranks: Ranks) -> None:
        self.model, self.device, self.ranks = model, device, ranks
        self.vocab_size: int = model.get_input_embeddings().weight.shape[0]
        self.cuts = "logits_to_keep" in inspect.signature(model.forward).parameters

    def cache(self, pages: int, page_size: int, places: int) -> Cache:
        kind = {"dtype": self.model.dtype, "device": self.device}
        return Cache(0, pages, page_size, 0, 0, 0, **kind, states=Pasts(places), places=places)

    def token_bytes(self) -> int:
        """By the settings that most models have; 0 for others."""
        config = self.model.config.get_text_config()
        layers, heads, hidden = (
            getattr(config, name, None) or 0 for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
        )
        dim = getattr(config, "head_dim", None) or (hidden // heads if heads else 0)
        kv_heads = getattr(config, "num_key_value_heads", None) or heads
        return int(2 * layers * kv_heads * dim * self.model.dtype.itemsize)

    def place_bytes(self) -> int:
        return 0

    @torch.inference_mode()
    def __call__(self, batch: Batch, cache: Cache) -> Tensor:
        assert isinstance(cache.states, Pasts)
        rows, wanted = [], batch.wanted.tolist()
        with _quietly():
            for span in batch.spans:
                count = sum(span.at <= row < span.at + span.count for row in wanted)
                tokens = batch.tokens_T[span.at : span.at + span.count].tolist()
                rows.append(self._run(tokens, cache.states.held[span.place], count))
        return torch.cat(rows)

    def _run(self, tokens: list[int], past: Past, wanted: int) -> Tensor:
        """Logits of the last tokens, [wanted, V], float32."""
        past.tokens += tokens
        given = torch.tensor([tokens if past.words else past.tokens], device=self.device)
        keep = {"logits_to_keep": max(wanted, 1)} if self.cuts else {}
        out = self.model(input_ids=given, use_cache=True, return_dict=True, **past.words, **keep)
        returned = dict(out.items())  # without the old names that stand for new ones
        past.words = next(({name: returned[name]} for name in KEPT if returned.get(name) is not None), {})
        logits: Tensor = out.logits[0].float()
        return logits[len(logits) - wanted :]


def config_of(path: Path) -> Any:
    """transformers' configuration. Raises ToolError (3) where it has not the model itself, without code from the directory."""
    config = read_json(path / "config.json")
    if not config:
        raise ToolError(
            f"{path} has no config.json: transformers reads Hugging Face directories alone",
            hint="jumar-convert to-hf MEGATRON HF",
        )
    if (kind := config.get("model_type")) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        own = "; it brings Python code of its own, which jumar does not run" if "auto_map" in config else ""
        known = kind in transformers.CONFIG_MAPPING and not own
        raise ToolError(
            f"{path / 'config.json'}: {VERSION} has no language model of model_type {kind!r}{own}",
            hint=CAUSAL if known else "a newer transformers may have it; jumar-convert families lists what jumar has",
        )
    try:
        with _quietly():
            found = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as fault:
        raise ToolError(f"{VERSION} cannot read {path / 'config.json'}: {fault}", hint="fetch the file again") from fault
    return found.get_text_config()


def load(path: Path, dtype: torch.dtype, device: torch.device, ranks: Ranks) -> TransformersDecoder:
    """The whole model of a directory, on every rank; no code from there is run.

    Raises ToolError: 3 for what is wrong with it, 4 for the memory.
    """
    words: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False, "output_loading_info": True}
    try:
        with hardware_faults(), _quietly():
            opened: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **words)
    except ToolError:
        raise
    except Exception as fault:
        raise ToolError(f"{VERSION} cannot open {path}: {fault}", hint="fetch the directory again") from fault
    model, found = opened
    for what in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, found[what])):
            raise ToolError(
                f"{path} does not fit its config.json: {what.replace('_', ' ')}: {', '.join(names):.200}",
                hint="fetch the files again" if _is_causal(path) else CAUSAL,
            )
    with hardware_faults():
        return TransformersDecoder(model.eval().to(device), device, ranks)


def _is_causal(path: Path) -> bool:
    """Whether config.json names a class that continues texts, or none."""
    config = read_json(path / "config.json")
    named = config.get("architectures")
    return not named or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(str(config.get("model_type"))) in named


def tokenizer_of(path: Path) -> Tokenizer | None:
    """That of a directory without a tokenizer.json, made from the files that are there; None if that cannot be done."""
    try:
        with _quietly():
            opened = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001  # it raises whatever the many kinds of files make it raise
        return None
    inner = getattr(opened, "backend_tokenizer", None)
    return None if inner is None else Tokenizer(path, inner)


@contextmanager
def _quietly() -> Generator[None, None, None]:
    """Without progress bars and warnings, which are of no use to whoever asked for an answer."""
    log: Any = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
