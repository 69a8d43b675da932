"""Which torch and torch-npu belong to a CANN, of torch-npu's COMPATIBILITY.md; docs/versions.md shows it."""

from __future__ import annotations

from collections.abc import Mapping

RELEASES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "9.1.0": (("2.12.0", "2.12.0"), ("2.11.0", "2.11.0"), ("2.10.0", "2.10.0.post4"), ("2.7.1", "2.7.1.post8")),
    "9.0.0": (("2.10.0", "2.10.0"), ("2.9.0", "2.9.0.post2"), ("2.8.0", "2.8.0.post4"), ("2.7.1", "2.7.1.post4")),
    "8.5.0": (("2.9.0", "2.9.0"), ("2.8.0", "2.8.0.post2"), ("2.7.1", "2.7.1.post2")),
    "8.3.RC1": (("2.8.0", "2.8.0"), ("2.7.1", "2.7.1")),
}
"""CANN -> (torch, torch-npu), the newest first."""
SOURCE = "https://gitcode.com/Ascend/pytorch/blob/master/COMPATIBILITY.md"


def how_to_install(cann: str | None, torch: str | None) -> str:
    """What to type where torch-npu is missing. cann, torch: the versions that are here."""
    if cann is None:
        newest, ((ours, npu), *_) = next(iter(RELEASES.items()))
        pair = f"with CANN {newest}: pip install torch=={ours} torch-npu=={npu}"
        return f"install CANN, then torch and torch-npu of its row in docs/versions.md; {pair}"
    if cann not in RELEASES:
        return f"pip install torch==A torch-npu==B: those of CANN {cann}, by {SOURCE}"
    row = dict(RELEASES[cann])
    release = (torch or "").partition("+")[0]
    if release in row:
        return f"pip install torch-npu=={row[release]}"
    ours, npu = RELEASES[cann][0]
    return f"pip install torch=={ours} torch-npu=={npu}; other pairs of CANN {cann}: docs/versions.md"
