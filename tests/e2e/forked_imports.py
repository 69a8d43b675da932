"""What `forked` imports once: all that a run on a CPU does, in the order in which it does."""

from __future__ import annotations

from importlib import import_module

from jumar.device import open_device
from jumar.train_core.megatron import mend

mend("cpu", open_device("cpu").ops())
for name in (
    *(
        "start",
        "checks",
        "engine_check",
        "data.batch",
        "data.pretrain",
        "data.tuning",
        "model.build",
        "model.hybrid",
        "parallel.packed",
    ),
    *("run.main", "run.claim", "run.checkpoint", "run.export", "run.loop", "run.metrics", "run.optimizer", "run.weights"),
):
    import_module(f"jumar.train_core.{name}")
