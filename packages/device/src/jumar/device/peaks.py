"""Dense matmul peaks of one device in TFLOP/s, as their makers publish them, without structured sparsity."""

from __future__ import annotations

# Longer names first: "H100 PCIe" before "H100". bf16 and fp16 (with fp32 sums), then fp32 outside tensor cores.
# NVIDIA: the product datasheets. Ascend 910A: 256 by its announcement; 910B: the figures that are given for Atlas A2 servers, per
# NPU (B1's is the least certain); 910C: each of its two dies is a device to torch, half of 752 (arXiv:2506.12708, section 3).
_PEAKS: tuple[tuple[str, float | None, float | None, float | None], ...] = (
    # name,          bf16,    fp16,   fp32
    ("B200", 2250.0, 2250.0, 75.0),
    ("H100 PCIe", 756.0, 756.0, 51.0),
    ("H100 NVL", 835.0, 835.0, 60.0),
    ("H800 PCIe", 756.0, 756.0, 51.0),
    ("H100", 989.4, 989.4, 67.0),
    ("H800", 989.4, 989.4, 67.0),
    ("H200", 989.4, 989.4, 67.0),
    ("H20", 148.0, 148.0, 44.0),
    ("A100", 312.0, 312.0, 19.5),
    ("A800", 312.0, 312.0, 19.5),
    ("A10G", 70.0, 70.0, 35.0),
    ("A10", 125.0, 125.0, 31.2),
    ("A40", 149.7, 149.7, 37.4),
    ("L40S", 362.0, 362.0, 91.6),
    ("L40", 181.0, 181.0, 90.5),
    ("L4", 121.0, 121.0, 30.3),
    ("RTX 4090", 165.2, 165.2, 82.6),
    ("RTX 3090", 71.0, 71.0, 35.6),
    ("V100", None, 125.0, 15.7),
    ("T4", None, 65.0, 8.1),
    ("Ascend910_93", 376.0, 376.0, None),
    ("Ascend910B1", 414.0, 414.0, None),
    ("Ascend910B2", 376.0, 376.0, None),
    ("Ascend910B3", 313.0, 313.0, None),
    ("Ascend910B4", 280.0, 280.0, None),
    ("Ascend910A", None, 256.0, None),
    ("Ascend910ProA", None, 256.0, None),
)
_COLUMN = {"bfloat16": 0, "bf16": 0, "float16": 1, "fp16": 1, "float32": 2, "fp32": 2}


def dense_peak(device_name: str, dtype_name: str) -> float | None:
    """FLOP/s of the device that torch calls `device_name`, for "bfloat16", "float16" or "float32"; None if not known."""
    column = _COLUMN.get(dtype_name.removeprefix("torch."))
    words = f" {device_name.replace('-', ' ')} "
    for name, *peaks in _PEAKS:
        found = device_name.startswith(name) if name.startswith("Ascend") else f" {name} " in words
        if found and column is not None:
            peak = peaks[column]
            return None if peak is None else peak * 1e12
    return None
