"""Verification: two checkpoints of any formats, compared tensor by tensor through the rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from jumar.ckpt_convert.checkpoint import Checkpoint
from jumar.ckpt_convert.compare import largest_difference, same_values
from jumar.ckpt_convert.gather import SourceFiles
from jumar.ckpt_convert.plan import SourceBox
from jumar.ckpt_convert.tensors import DTYPES


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that is not the same in both, and how. largest: greatest absolute difference where both are floating-point."""

    name: str
    what: str
    largest: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What was found.

    equal: tensors whose dtype, shape and bytes agree; differences: the others
    nbytes: bytes compared; replicas: pairs compared within A and within B
    """

    equal: int
    differences: tuple[Difference, ...]
    nbytes: int
    replicas: int

    @property
    def same(self) -> bool:
        return not self.differences


def verify(a: Checkpoint, b: Checkpoint, *, threads: int = 2, progress: Callable[[int], None] | None = None) -> Report:
    """Compares every tensor of two checkpoints, and within each the replicas that its ranks hold. A LoRA is part of them."""
    a, b = _with_lora(a), _with_lora(b)
    differences: list[Difference] = []
    if a.spec.model_type != b.spec.model_type:
        differences.append(Difference("model_type", f"{a.spec.model_type} against {b.spec.model_type}"))
    for one, other, side in ((a, b, "second"), (b, a, "first")):
        differences += [Difference(n, f"not in the {side} checkpoint") for n in one.tensors if n not in other.tensors]
    factors = ((m, a.lora[m].scale, b.lora[m].scale) for m in a.lora if m in b.lora)
    differences += [Difference(m, f"alpha / rank {float(x):g} against {float(y):g}") for m, x, y in factors if x != y]
    files = SourceFiles()
    names = [n for n in a.tensors if n in b.tensors]

    def compare(name: str) -> Difference | None:
        found = _compare(name, a, b, files)
        if progress:
            progress(sum(box.nbytes for box in a.sources[name]))
        return found

    with ThreadPoolExecutor(threads) as pool:
        found = [d for d in pool.map(compare, names) if d is not None]
    nbytes = sum(box.nbytes for n in names for box in a.sources[n])
    apart = [Difference(name, where) for c, label in ((a, "first"), (b, "second")) for name, where in _replicas(c, label, files)]
    return Report(len(names) - len(found), (*differences, *found, *apart), nbytes, len(a.replicas) + len(b.replicas))


def _with_lora(checkpoint: Checkpoint) -> Checkpoint:
    """The adapter's tensors among the model's."""
    if (lora := checkpoint.adapter) is None:
        return checkpoint
    return replace(
        checkpoint,
        tensors={**checkpoint.tensors, **lora.tensors},
        sources={**checkpoint.sources, **lora.sources},
        replicas=(*checkpoint.replicas, *lora.replicas),
        lora=lora.lora,
        adapter=None,
    )


def _compare(name: str, a: Checkpoint, b: Checkpoint, files: SourceFiles) -> Difference | None:
    if a.tensors[name] != b.tensors[name]:
        return Difference(name, f"shape {list(a.tensors[name])} against {list(b.tensors[name])}")
    kinds = a.dtype(name), b.dtype(name)
    largest, same = 0.0, True
    for left in a.sources[name]:
        for right in b.sources[name]:
            pair = _common(left, right)
            if pair is not None and not same_values(*pair, files):
                same = False
                largest = max(largest, largest_difference(*pair, files))
    if same:
        return None
    what = "values" if kinds[0] == kinds[1] else f"dtype {kinds[0]} against {kinds[1]}"
    return Difference(name, what, largest)


def _common(a: SourceBox, b: SourceBox) -> tuple[SourceBox, SourceBox] | None:
    """The part of a tensor that both boxes hold."""
    start = tuple(map(max, a.start, b.start))
    size = tuple(min(s + n, t + m) - lo for s, n, t, m, lo in zip(a.start, a.size, b.start, b.size, start, strict=True))
    if any(n <= 0 for n in size):
        return None
    return _narrow(a, start, size), _narrow(b, start, size)


def _narrow(box: SourceBox, start: tuple[int, ...], size: tuple[int, ...]) -> SourceBox:
    skipped = sum((lo - s) * t for lo, s, t in zip(start, box.start, box.strides, strict=True))
    return replace(box, start=start, size=size, offset=box.offset + skipped * DTYPES[box.dtype].itemsize)


def _replicas(checkpoint: Checkpoint, label: str, files: SourceFiles) -> Iterator[tuple[str, str]]:
    for replica in checkpoint.replicas:
        if not same_values(replica.first, replica.other, files):
            where = f"{replica.first.file.parent.name} and {replica.other.file.parent.name}"
            yield replica.name, f"ranks {where} of the {label} checkpoint hold different values"
