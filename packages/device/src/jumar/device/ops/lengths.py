"""Cumulative lengths on the host, read from a device once per tensor."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def host_lengths(cu_seqlens: Tensor) -> list[int]:
    """The numbers in `cu_seqlens`. Every layer of a model asks for the same tensor: the answer is kept on it.

    Not for tensors made in inference mode: they do not count their changes. Keep those on the host.
    """
    if cu_seqlens.is_inference():
        now: list[int] = cu_seqlens.tolist()
        return now
    kept = getattr(cu_seqlens, "_jumar_host", None)
    if kept is None or kept[0] != cu_seqlens._version:
        kept = (cu_seqlens._version, cu_seqlens.tolist())
        cu_seqlens._jumar_host = kept  # type: ignore[attr-defined]
    numbers: list[int] = kept[1]
    return numbers


def check_lengths(cu: list[int], tokens: int, which: str) -> list[int]:
    """The lengths between cumulative ones. ValueError unless they rise from 0 to `tokens`."""
    if not cu or cu[0] != 0 or cu[-1] != tokens or any(a > b for a, b in pairwise(cu)):
        raise ValueError(f"cu_seqlens_{which} must rise from 0 to the {tokens} tokens of {which}, not {cu[:8]}")
    return [b - a for a, b in pairwise(cu)]
