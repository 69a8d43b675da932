"""Weights: the tensors of one rank, read as slices of a checkpoint's mapped files, whatever its format and layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from jumar.ckpt_convert import Checkpoint, slices_for
from jumar.infer.matrices import Matrices
from jumar.schema.errors import ToolError
from jumar.schema.parallel import ParallelLayout, Shard

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


def load_weights(
    checkpoint: Checkpoint,
    layout: ParallelLayout,
    shard: Shard,
    *,
    dtype: torch.dtype,
    matrices: Matrices,
) -> Weights:
    """Reads a rank's tensors, one after another; multi-token-prediction layers are left out.

    Raises ToolError (3) where the layout does not fit the model, or a file is damaged.
    """
    weights, spec = Weights(Tensors(matrices)), checkpoint.spec
    for name, layer, expert, read in _tensors(checkpoint, layout, shard):
        keep, tensor = read
        tensor = tensor.to(matrices.device, torch.float32 if keep else dtype)
        if layer is None:
            weights.model[name] = tensor
        elif expert is None:
            weights.layers.setdefault(layer, Tensors(matrices))[name] = tensor
        else:
            weights.experts.setdefault(layer, {}).setdefault(name, []).append(tensor)
    if not weights.layers:
        raise ToolError(f"{spec.num_layers} layers over {layout.pp} stages leave a stage without layers", hint="lower pp")
    return weights


def _tensors(
    checkpoint: Checkpoint, layout: ParallelLayout, shard: Shard
) -> Iterator[tuple[str, int | None, int | None, tuple[bool, Tensor]]]:
    for placed in slices_for(checkpoint.spec, layout, shard, dialect=DIALECT):
        assert placed.origin is not None
        if placed.origin.scope == "mtp" or placed.origin.stage == "mtp" or (placed.layer or 0) >= checkpoint.spec.num_layers:
            continue
        name = placed.origin.name.replace("local_experts.{e}.", "")
        yield name, placed.layer, placed.expert, (placed.keep_dtype, checkpoint.read_placed(placed))
