"""ParallelLayout: how a model's layers and tensors are spread over ranks.

Pure functions; nothing here knows a file or a device.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from jumar.schema.errors import ToolError

MAX_FILES = 1 << 18


@dataclass(frozen=True, slots=True)
class Chunk:
    """One model chunk: what one pipeline rank holds for one virtual stage.

    slots: the layers in order, by their number in the model; None for a no-op slot (it keeps its local number)
    first, last: whether it holds the embedding, and the final norm, output layer and MTP layers
    """

    pp: int
    vpp: int
    slots: tuple[int | None, ...]
    first: bool
    last: bool


@dataclass(frozen=True, slots=True)
class Shard:
    """One checkpoint file: the ranks that it speaks for and its directory's name."""

    name: str
    tp: int
    pp: int
    ep: int = 0
    etp: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """Parallel sizes. `vpp` counts model chunks per pipeline stage; `etp` None means the same as `tp`.

    layers_per_stage: uneven stages; excludes vpp > 1 and no-op layers
    noop_layers:      slots without weights, in the padded numbering
    schedule:         "dualpipev" gives each stage one chunk from the front and one from the back of the model (vpp = 2)
    tp_extend_ep:     experts are whole and spread over ep * tp ranks, number ep * TP + tp (MindSpeed's --moe-tp-extend-ep)
    cp, dp:           sizes that no checkpoint file depends on; carried for the tools that launch processes
    """

    tp: int = 1
    pp: int = 1
    vpp: int = 1
    cp: int = 1
    ep: int = 1
    etp: int | None = None
    dp: int = 1
    layers_per_stage: tuple[int, ...] | None = None
    noop_layers: tuple[int, ...] = ()
    schedule: Literal["1f1b", "dualpipev"] = "1f1b"
    tp_extend_ep: bool = False

    def __post_init__(self) -> None:
        for name in ("tp", "pp", "vpp", "cp", "ep", "dp"):
            if getattr(self, name) < 1:
                raise ToolError(f"{name}={getattr(self, name)}: expected a positive whole number", hint=f"--{name} 1, or more")
        if self.etp is not None and self.etp < 1:
            raise ToolError(f"etp={self.etp}: expected a positive whole number", hint="--etp 1, or more")
        if self.layers_per_stage is not None:
            self._check_uneven(self.layers_per_stage)
        if self.schedule == "dualpipev" and self.vpp != 2:
            raise ToolError(f"schedule dualpipev holds two chunks a stage, not vpp={self.vpp}", hint="--vpp 2, or leave it out")
        if self.schedule == "1f1b" and self.vpp > 1 and self.pp == 1:
            raise ToolError(f"vpp={self.vpp} needs more than one pipeline stage", hint="add --pp, or leave --vpp out")
        if self.tp_extend_ep and self.etp not in (None, 1):
            raise ToolError(f"tp_extend_ep keeps experts whole; etp={self.etp} would cut them", hint="leave --etp out")
        if len(set(self.noop_layers)) != len(self.noop_layers):
            raise ToolError(f"noop_layers {list(self.noop_layers)} names a slot twice", hint="name each slot once")

    def _check_uneven(self, layers: tuple[int, ...]) -> None:
        if len(layers) != self.pp:
            raise ToolError(
                f"layers_per_stage has {len(layers)} numbers for pp={self.pp}",
                hint="give one number of layers for each pipeline stage",
            )
        if min(layers) < 1:
            raise ToolError(f"layers_per_stage {list(layers)}: every stage needs at least one layer", hint="choose a smaller pp")
        if self.vpp > 1 or self.noop_layers:
            raise ToolError("layers_per_stage cannot be combined with vpp, dualpipev or noop_layers", hint="use one of them")

    @property
    def expert_tp(self) -> int:
        """How many ranks one expert's matrices are cut over."""
        return 1 if self.tp_extend_ep else self.tp if self.etp is None else self.etp

    @property
    def expert_ranks(self) -> int:
        """How many ranks the experts are spread over (each holds num_experts / expert_ranks)."""
        return self.ep * self.tp if self.tp_extend_ep else self.ep

    def chunks(self, num_layers: int) -> tuple[Chunk, ...]:
        """The chunks of every pipeline rank, rank by rank. Raises ToolError where `num_layers` does not fit."""
        return _chunks(self, num_layers)

    def place(self, layer: int, num_layers: int) -> tuple[int, int, int]:
        """(pipeline rank, virtual stage, local number) of a layer."""
        for chunk in self.chunks(num_layers):
            if layer in chunk.slots:
                return chunk.pp, chunk.vpp, chunk.slots.index(layer)
        raise ToolError(f"layer {layer} is not in a model of {num_layers} layers", hint=f"name one from 0 to {num_layers - 1}")

    def shards(self, *, moe: bool) -> tuple[Shard, ...]:
        """One entry for each file, pipeline rank by pipeline rank.

        The names are Megatron's: mp_rank_TT, mp_rank_TT_PPP (pp > 1), mp_rank_TT_EEE (ep > 1), mp_rank_TT_PPP_EEE.
        With experts, max(tp, ep * etp) distinct files a stage: rank r holds tp = r % tp and ep = r // etp % ep.
        """
        self.check_ranks(moe=moe)
        return tuple(Shard(self._name(tp, pp, ep), tp, pp, ep, etp) for pp in range(self.pp) for tp, ep, etp in self._grid(moe))

    def check_ranks(self, *, moe: bool) -> None:
        """Raises ToolError for sizes that no checkpoint has, before every rank is counted out."""
        if not moe and (self.ep > 1 or self.etp not in (None, 1, self.tp) or self.tp_extend_ep):
            raise ToolError(
                f"{self._expert_sizes()}: this model has no experts",
                hint="leave out --ep, --etp and --moe-tp-extend-ep",
            )
        etp, a, b = self.expert_tp, max(self.tp, self.ep * self.expert_tp), min(self.tp, self.ep * self.expert_tp)
        if moe and not self.tp_extend_ep and (a % b or etp > self.tp):
            raise ToolError(
                f"tp={self.tp}, ep={self.ep}, etp={etp}: Megatron's torch format cannot hold this layout "
                "(two ranks with different experts would share a file)",
                hint="one of tp and ep * etp must divide the other, and etp must not exceed tp; or use --etp 1",
            )
        files = self.pp * (a if not self.tp_extend_ep else self.tp * self.ep)
        if files > MAX_FILES:
            raise ToolError(
                f"{files} checkpoint files (one a rank) are more than {MAX_FILES}", hint="choose smaller parallel sizes"
            )

    def _expert_sizes(self) -> str:
        etp = "" if self.etp is None else f", etp={self.etp}"
        return f"ep={self.ep}{etp}" + (", tp_extend_ep" if self.tp_extend_ep else "")

    def _grid(self, moe: bool) -> list[tuple[int, int, int]]:
        if not moe:
            return [(tp, 0, 0) for tp in range(self.tp)]
        if self.tp_extend_ep:
            return [(tp, ep, 0) for ep in range(self.ep) for tp in range(self.tp)]
        etp, ranks = self.expert_tp, max(self.tp, self.ep * self.expert_tp)
        grid = [(r % self.tp, r // etp % self.ep, r % etp) for r in range(ranks)]
        assert len({(tp, ep) for tp, ep, _ in grid}) == len(grid)  # check_ranks
        return grid

    def _name(self, tp: int, pp: int, ep: int) -> str:
        return f"mp_rank_{tp:02d}" + (f"_{pp:03d}" if self.pp > 1 else "") + (f"_{ep:03d}" if self.ep > 1 else "")


@lru_cache(maxsize=256)
def _chunks(layout: ParallelLayout, num_layers: int) -> tuple[Chunk, ...]:
    if layout.layers_per_stage is not None:
        return _uneven_chunks(layout.layers_per_stage, num_layers)
    pp, vpp, noop = layout.pp, layout.vpp, set(layout.noop_layers)
    total = num_layers + len(noop)
    if wrong := sorted(n for n in noop if not 0 <= n < total):
        raise ToolError(
            f"noop_layers {wrong}: with {num_layers} layers and {len(noop)} no-ops the slots are 0 to {total - 1}",
            hint="number the slots with the no-ops among them",
        )
    if total % (pp * vpp):
        slots = f"{num_layers} layers" + (f" + {len(noop)} no-op layers" if noop else "")
        raise ToolError(
            f"{slots} cannot be shared out evenly over pp={pp}" + (f" x vpp={vpp}" if vpp > 1 else ""),
            hint="choose another --pp, give --layers-per-stage, or fill up with --noop-layers",
        )
    order = iter(range(num_layers))
    layers = [None if slot in noop else next(order) for slot in range(total)]
    size = total // (pp * vpp)
    parts = [tuple(layers[i * size : (i + 1) * size]) for i in range(pp * vpp)]
    if layout.schedule == "dualpipev":
        return tuple(
            Chunk(p, v, parts[p if v == 0 else 2 * pp - 1 - p], first=(p, v) == (0, 0), last=(p, v) == (0, 1))
            for p in range(pp)
            for v in range(2)
        )
    return tuple(
        Chunk(p, v, parts[v * pp + p], first=(p, v) == (0, 0), last=(p, v) == (pp - 1, vpp - 1))
        for p in range(pp)
        for v in range(vpp)
    )


def _uneven_chunks(layers: tuple[int, ...], num_layers: int) -> tuple[Chunk, ...]:
    if sum(layers) != num_layers:
        raise ToolError(
            f"layers_per_stage {','.join(map(str, layers))} adds up to {sum(layers)}, the model has {num_layers} layers",
            hint=f"give {len(layers)} numbers that add up to {num_layers}",
        )
    ends = [sum(layers[: i + 1]) for i in range(len(layers))]
    return tuple(
        Chunk(p, 0, tuple(range(end - layers[p], end)), first=p == 0, last=p == len(layers) - 1) for p, end in enumerate(ends)
    )
