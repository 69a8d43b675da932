"""Which share of a checkpoint's bytes a rank reads, by the pages that the kernel then has in memory.

torchrun --nproc-per-node N slices_worker.py RECIPE.yaml REPORT.json FILE...; REPORT.json: a share for each rank.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import sys
from pathlib import Path

import torch.distributed as dist

from jumar.device import open_device
from jumar.schema.recipe import load_recipe
from jumar.train_core.job import resolve
from jumar.train_core.recipe import Recipe
from jumar.train_core.run.main import engine

C = ctypes.CDLL(None, use_errno=True)
C.mmap.restype = ctypes.c_void_p
C.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
C.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
C.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def forget(path: Path) -> None:
    """The kernel drops what it has of a file."""
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


def in_memory(path: Path) -> int:
    """Pages of a file that are in memory: looked at through a mapping, which reads nothing."""
    size = path.stat().st_size
    file = os.open(path, os.O_RDONLY)
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    start = C.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)
    if C.mincore(start, size, pages):
        raise OSError(ctypes.get_errno(), "mincore")
    C.munmap(start, size)
    os.close(file)
    return sum(page & 1 for page in pages)


def main() -> None:
    recipe, report, *names = sys.argv[1:]
    files = [Path(name) for name in names]
    with engine(open_device("cpu")) as (hardware, where):
        from jumar.train_core.model.build import build
        from jumar.train_core.run.groups import joined, model_parallel
        from jumar.train_core.run.weights import load_weights

        with joined(hardware):
            job = resolve(load_recipe(Recipe, Path(recipe)), world=dist.get_world_size(), device="cpu")
            assert job.recipe.load.path is not None
            shares = []
            with model_parallel(job, hardware):
                _, chunks = build(job, hardware.ops(), where)
                for rank in range(dist.get_world_size()):
                    gc.collect()
                    dist.barrier()
                    if dist.get_rank() == 0:
                        for path in files:
                            forget(path)
                        assert sum(map(in_memory, files)) < 50, "the kernel keeps them"
                    dist.barrier()
                    if dist.get_rank() == rank:
                        load_weights(job, chunks, job.recipe.load.path, None)
                    dist.barrier()
                    shares.append(sum(map(in_memory, files)) * mmap.PAGESIZE / sum(path.stat().st_size for path in files))
            if dist.get_rank() == 0:
                Path(report).write_text(json.dumps(shares))


if __name__ == "__main__":
    main()
