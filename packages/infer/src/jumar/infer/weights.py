"""Weights: the tensors of one rank, read as slices of a checkpoint's mapped files, whatever its format and layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

from jumar.ckpt_convert import Checkpoint, slices_for
from jumar.infer.matrices import Matrices
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout, Shard
from jumar.schema.placement import Placed

DIALECT = "te"
"""Where latent attention's down-projections are whole on every rank. The names are megatron-core's all the same."""

NAMES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Tensors(dict[str, Tensor]):
    """Tensors by name, and what makes matrices of them."""

    def __init__(self, matrices: Matrices) -> None:
        super().__init__()
        self.matrices = matrices


@dataclass(slots=True)
class Weights:
    """The tensors of a rank by megatron-core's names: those of the model, those of each layer, and those of its experts.

    linear_qkv is interleaved by KV group, linear_fc1 is the gate over the up-projection, as Megatron fuses them.
    """

    model: Tensors
    layers: dict[int, Tensors] = field(default_factory=dict)
    experts: dict[int, dict[str, list[Tensor]]] = field(default_factory=dict)


def placed_tensors(checkpoint: Checkpoint, layout: ParallelLayout, shard: Shard) -> list[Placed]:
    """The tensors of a rank; multi-token-prediction layers are left out.

    Raises ToolError (3) where the layout does not fit the model.
    """
    found = []
    for placed in slices_for(checkpoint.spec, layout, shard, dialect=DIALECT):
        assert placed.origin is not None
        mtp = placed.origin.scope == "mtp" or placed.origin.stage == "mtp"
        if not mtp and (placed.layer or 0) < checkpoint.spec.num_layers:
            found.append(placed)
    if all(placed.layer is None for placed in found):
        what = f"{checkpoint.spec.num_layers} layers over {layout.pp} stages leave a stage without layers"
        raise ToolError(what, hint="lower pp")
    return found


def weights_bytes(placed: Sequence[Placed], dtype: torch.dtype, quantize: str | None) -> int:
    """What these take at least: matrices in int8 may be fewer than all."""
    return sum(
        prod(each.geometry.stored)
        * (4 if each.keep_dtype else 1 if quantize is not None and len(each.geometry.stored) > 1 else dtype.itemsize)
        for each in placed
    )


def load_weights(checkpoint: Checkpoint, placed: Sequence[Placed], *, dtype: torch.dtype, matrices: Matrices) -> Weights:
    """Reads a rank's tensors, one after another. Raises ToolError (3) where a file is damaged."""
    weights = Weights(Tensors(matrices))
    for each in placed:
        assert each.origin is not None
        name = each.origin.name.replace("local_experts.{e}.", "")
        tensor = checkpoint.read_placed(each).to(matrices.device, torch.float32 if each.keep_dtype else dtype)
        if each.layer is None:
            weights.model[name] = tensor
        elif each.expert is None:
            weights.layers.setdefault(each.layer, Tensors(matrices))[name] = tensor
        else:
            weights.experts.setdefault(each.layer, {}).setdefault(name, []).append(tensor)
    return weights
