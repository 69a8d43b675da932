"""Checkpoint: any checkpoint, of any format and layout, seen as Hugging Face tensors whose bytes lie in files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jumar.ckpt_convert.gather import record_array
from jumar.ckpt_convert.plan import ZEROS, Delta, Ints, SourceBox, compose
from jumar.ckpt_convert.training_state import TrainingState
from jumar.schema.errors import Exit, ToolError
from jumar.schema.family import Family
from jumar.schema.parallel import ParallelLayout, Shard
from jumar.schema.placement import ExpertLayout, Placed, Placement
from jumar.schema.registry import family_of
from jumar.schema.spec import ModelSpec
from jumar.schema.weights import Box, Geometry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """How a checkpoint is to be read, where its files do not say.

    iteration: of a Megatron root; None: the tracker's
    family:    model_type of a Megatron checkpoint that carries no config
    sets:      layout fields and Megatron args that override the checkpoint's own
    ignore:    config.json keys to pass over
    base:      the model that an adapter adapts, where the adapter does not say
    bearing:   whether shards that bear a LoRA beside their weights are opened; its adapter is then `Checkpoint.adapter`
    """

    iteration: str | None = None
    family: str | None = None
    sets: Mapping[str, Any] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    base: Path | None = None
    bearing: bool = False


@dataclass(frozen=True, slots=True)
class Lora:
    """The adapter of one HF module: its rank, and the factor of B @ A (alpha / rank)."""

    rank: int
    scale: Fraction


@dataclass(frozen=True, slots=True)
class Replica:
    """Two places of a source that should hold the same values."""

    name: str
    first: SourceBox
    other: SourceBox


def stamp(file: Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of a file; None where there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint whose bytes are still in its files.

    tensors:   HF name -> shape, in the model's order
    sources:   HF name -> where its boxes lie
    copies:    HF tensors that the source holds twice (name -> the tensor they repeat)
    dropped:   entries of the source that are no weights
    replicas:  pairs of boxes that repeat one another over ranks
    placement: how a Megatron source is laid out; None for Hugging Face
    extras:    the directory of config, tokenizer and template files; None where there is none
    args:      plain values of a Megatron source's own args
    optimizer: files that hold optimizer state -> its bytes; it is not read
    base:      whether HF names carry the family's base prefix ("transformer.h.0..." or "h.0...")
    training:  optimizer state and counters of a run, where they can be read
    notes:     what a user should know about the reading
    lora:      of an adapter: HF module -> rank and factor; its tensors are MODULE.lora_A.weight and MODULE.lora_B.weight
    peft:      of an adapter: what adapter_config.json says beside that
    adapter:   the LoRA that lies in the same shards, or goes along
    deltas:    HF name -> what is added to the tensor when it is written
    stamps:    size and time of change of each file when it was opened
    """

    paths: tuple[Path, ...]
    format: str
    family: Family
    spec: ModelSpec
    tensors: Mapping[str, Ints]
    sources: Mapping[str, Sequence[SourceBox]]
    extras: Path | None = None
    placement: Placement | None = None
    iteration: str | None = None
    copies: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    replicas: tuple[Replica, ...] = ()
    padding: int = 0
    args: Mapping[str, Any] = field(default_factory=dict)
    base: bool = True
    training: TrainingState | None = None
    notes: tuple[str, ...] = ()
    optimizer: Mapping[Path, int] = field(default_factory=dict)
    lora: Mapping[str, Lora] = field(default_factory=dict)
    peft: Mapping[str, Any] = field(default_factory=dict)
    adapter: Checkpoint | None = None
    deltas: Mapping[str, Delta] = field(default_factory=dict)
    stamps: Mapping[Path, tuple[int, int] | None] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "stamps", {file: stamp(file) for file in self.files})

    def hf_name(self, name: str) -> str:
        """The name in this checkpoint's Hugging Face files."""
        return name if self.base or not name.startswith(self.family.base) else name[len(self.family.base) :]

    @property
    def layout(self) -> ParallelLayout | None:
        return self.placement.layout if self.placement else None

    @property
    def files(self) -> list[Path]:
        """Every file that holds tensors, once."""
        own = (box.file for boxes in self.sources.values() for box in boxes if box.file != ZEROS)
        added = (box.file for delta in self.deltas.values() for box in (*delta.a, *delta.b))
        kept = self.training.files if self.training else []
        return list(dict.fromkeys((*own, *added, *kept, *(self.adapter.files if self.adapter else ()))))

    def dtype(self, name: str) -> str:
        """safetensors dtype of an HF tensor."""
        return self.sources[name][0].dtype

    def array(self, name: str, index: tuple[slice, ...] | None = None) -> np.ndarray:
        """A tensor, or a box of it, as a numpy array (bfloat16 by ml_dtypes). index: one slice (step 1) for each axis.

        Raises ToolError for a name that the checkpoint does not have.
        """
        if name not in self.tensors:
            raise ToolError(f"{self.paths[0]} has no tensor {name!r}", hint="see jumar-convert inspect")
        shape = self.tensors[name]
        if index is not None and (not isinstance(index, tuple) or len(index) != len(shape)):
            raise ToolError(
                f"{name} has {len(shape)} axes: index it with a tuple of as many slices",
                hint="slice(None) takes a whole axis",
                code=Exit.USAGE,
            )
        ranges = [range(n)[s] for n, s in zip(shape, index or (slice(None),) * len(shape), strict=True)]
        if any(r.step != 1 for r in ranges):
            raise ToolError(
                f"{name}: slices with a step are not read", hint="read the range and step through it", code=Exit.USAGE
            )
        size = tuple(len(r) for r in ranges)
        axes = tuple(range(len(shape)))
        box = Box(0, tuple(r.start for r in ranges), size, (0,) * len(shape), axes)
        return record_array(compose(name, Geometry(size, (box,), (), size), [name], self.sources, None, self.deltas))

    def read(self, name: str, index: tuple[slice, ...] | None = None) -> torch.Tensor:
        """`array` as a torch tensor. Raises ToolError (4) without torch."""
        return to_torch(self.array(name, index))

    def read_placed(self, placed: Placed) -> torch.Tensor:
        """The Megatron tensor that `slices_for` describes, in its stored shape."""
        record = compose(placed.name, placed.geometry, placed.sources, self.sources, None, self.deltas)
        return to_torch(record_array(record).reshape(record.stored))


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A numpy array as a torch tensor, sharing its memory."""
    try:
        import torch
    except ImportError:
        raise ToolError(
            "reading tensors needs torch", hint="pip install 'jumar-ckpt-convert[torch]'", code=Exit.ENVIRONMENT
        ) from None
    kinds = {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
    if array.dtype.name in kinds:
        raw = np.uint16 if array.dtype.itemsize == 2 else np.uint8
        return torch.from_numpy(array.view(raw)).view(kinds[array.dtype.name])
    return torch.from_numpy(array)


def slices_for(
    spec: ModelSpec,
    layout: ParallelLayout,
    rank: Shard,
    *,
    dialect: str = "mcore",
    expert_layout: ExpertLayout = "sequential",
    vocab_divisible_by: int = 1,
    mla_mm_split: bool = False,
) -> Iterator[Placed]:
    """The tensors of one rank, each as boxes of HF tensors: read them with `Checkpoint.read_placed`.

    rank: one of `layout.shards(...)`.
    """
    placement = Placement(
        family=family_of(spec.model_type),
        spec=spec,
        layout=layout,
        dialect=dialect,
        expert_layout=expert_layout,
        vocab_divisible_by=vocab_divisible_by,
        mla_mm_split=mla_mm_split,
    )
    return placement.tensors(rank)
