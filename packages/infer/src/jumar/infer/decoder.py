"""One decoder for every family: embedding, layers, logits, from the traits of a ModelSpec and the tensors of this rank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jumar.device import Ops
from jumar.infer.batch import Batch
from jumar.infer.cache import Cache
from jumar.infer.group import Ranks
from jumar.infer.layers import Layer, Norm, Turn
from jumar.infer.matrices import Matrix
from jumar.infer.rotary import cos_sin
from jumar.infer.weights import Tensors, Weights
from jumar.schema.errors import ToolError
from jumar.schema.spec import ModelSpec


class Decoder:
    """The layers of this rank's stage, with the embedding on the first and the output layer on the last.

    Raises ToolError (3) for a model without attention.
    """

    def __init__(self, spec: ModelSpec, weights: Weights, ops: Ops, ranks: Ranks, device: torch.device) -> None:
        if spec.ssm is not None:
            raise ToolError(
                "models with state-space layers (Mamba-2, hybrids) are not run by this version",
                hint="convert and train take them",
            )
        self.spec, self.ranks, self.device = spec, ranks, device
        model = weights.model
        self.layers = [Layer(spec, ops, weights.layers[i], weights.experts.get(i, {}), i, ranks) for i in sorted(weights.layers)]
        self.dtype = self.layers[0].input_norm.weight.dtype
        self.embedding = model.get("embedding.word_embeddings.weight")
        self.positions = model.get("embedding.position_embeddings.weight")
        self.norm = Norm(spec, ops, model, "decoder.final_layernorm") if ranks.last else None
        self.head = _head(model) if ranks.last else None
        self.turned = int((spec.mla.rope_dim if spec.mla else spec.head_dim) * spec.rope.fraction)

    def cache(self, pages: int, page_size: int) -> Cache:
        """An empty cache for this stage's layers."""
        heads, k_dim, v_dim = self._cache_shape()
        return Cache(len(self.layers), pages, page_size, heads, k_dim, v_dim, dtype=self.dtype, device=self.device)

    def token_bytes(self) -> int:
        """What one position takes in this rank's cache."""
        heads, k_dim, v_dim = self._cache_shape()
        return len(self.layers) * heads * (k_dim + v_dim) * self.dtype.itemsize

    def _cache_shape(self) -> tuple[int, int, int]:
        if mla := self.spec.mla:
            return 1, mla.kv_lora_rank + mla.rope_dim, 0
        return self.spec.num_kv_heads // self.ranks.tp_size, self.spec.head_dim, self.spec.head_dim

    @torch.inference_mode()
    def __call__(self, batch: Batch, cache: Cache) -> Tensor:
        """Logits [rows that are wanted, vocab], float32, on every rank. The batch's keys and values are in the cache then."""
        x = self._embed(batch) if self.ranks.first else self.ranks.receive(self._empty(len(batch.tokens_T)))
        turn = self._turn(batch)
        for index, layer in enumerate(self.layers):
            x = layer(x, turn, cache, index, batch)
        if not self.ranks.last:
            self.ranks.send(x)
            return self.ranks.from_last(torch.empty(len(batch.wanted), self.spec.vocab_size, device=self.device))
        return self.ranks.from_last(self._logits(x, batch))

    def _empty(self, tokens: int) -> Tensor:
        return torch.empty(tokens, self.spec.hidden_size, dtype=self.dtype, device=self.device)

    def _turn(self, batch: Batch) -> Turn | None:
        if self.spec.position != "rope":
            return None
        trained = self.spec.max_position_embeddings
        return cos_sin(self.spec.rope, self.turned, batch.positions_T, batch.lengths, trained)

    def _embed(self, batch: Batch) -> Tensor:
        assert self.embedding is not None
        if self.ranks.tp_size == 1:
            x = F.embedding(batch.tokens_T, self.embedding)
        else:  # each rank has its rows of the vocabulary
            local = batch.tokens_T - self.ranks.tp * len(self.embedding)
            here = (local >= 0) & (local < len(self.embedding))
            x = self.ranks.sum(F.embedding(local.where(here, 0), self.embedding) * here[:, None])
        if self.positions is not None:
            x = x + F.embedding(batch.positions_T, self.positions)
        if self.spec.embed_scale is not None:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype)  # rounded to the dtype, as it was in training
        return x

    def _logits(self, x_TH: Tensor, batch: Batch) -> Tensor:
        assert self.norm is not None
        assert self.head is not None
        logits = self.ranks.gather(self.head(self.norm(x_TH[batch.wanted])))[:, : self.spec.vocab_size].float()
        if cap := self.spec.final_softcap:
            logits = cap * torch.tanh(logits / cap)
        return logits


def _head(model: Tensors) -> Matrix:
    """The output layer, whose weight is the embedding's where they are tied."""
    weight = model.pop("output_layer.weight", model.get("embedding.word_embeddings.weight"))
    assert weight is not None
    return model.matrices(weight)
