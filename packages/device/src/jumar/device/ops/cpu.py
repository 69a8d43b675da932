"""The CPU's table: the reference, with torch's fused AdamW.

torch's int8 kernel, aten._weight_int8pack_mm, is left alone: torch 2.13 crashes in it on 33 x 7, and in fp32 it is slower.
"""

from __future__ import annotations

from dataclasses import replace

from jumar.device.ops.fused_adamw import adamw
from jumar.device.ops.reference import REFERENCE

CPU_OPS = replace(REFERENCE, name="cpu", adamw=adamw)
