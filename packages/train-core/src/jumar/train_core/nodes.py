"""Where this machine stands among those of a run, from torchrun's own variables.

Kubeflow's training operator sets PET_NNODES, PET_NODE_RANK, PET_NPROC_PER_NODE, PET_MASTER_ADDR and PET_MASTER_PORT in every pod
of a PyTorchJob; examples/slurm and examples/ssh set them likewise. https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jumar.schema.errors import Exit, ToolError


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """count: machines of the run; rank: which of them this is; nproc: ranks on each, where the variables say so."""

    count: int = 1
    rank: int = 0
    nproc: int | None = None


def nodes(environ: Mapping[str, str]) -> Nodes:
    """This machine's place. Raises ToolError (2) if the variables do not say what torchrun needs."""
    if "PET_NNODES" not in environ:
        return Nodes()
    count, rank = _number(environ, "PET_NNODES", 1), _number(environ, "PET_NODE_RANK", 0)
    if rank >= count:
        raise ToolError(
            f"PET_NODE_RANK is {rank}, PET_NNODES {count}", hint=f"number the machines from 0 to {count - 1}", code=Exit.USAGE
        )
    if count > 1 and not environ.get("PET_MASTER_ADDR"):
        raise ToolError(
            "PET_MASTER_ADDR is not set", hint="export PET_MASTER_ADDR=HOST, the machine with PET_NODE_RANK=0", code=Exit.USAGE
        )
    nproc = environ.get("PET_NPROC_PER_NODE", "")
    return Nodes(count=count, rank=rank, nproc=int(nproc) if nproc.isdecimal() and int(nproc) else None)


def _number(environ: Mapping[str, str], name: str, least: int) -> int:
    text = environ.get(name, str(least) if name == "PET_NODE_RANK" and environ["PET_NNODES"] == "1" else "")
    if text.isdecimal() and int(text) >= least:
        return int(text)
    hint = "a run has the same machines from beginning to end" if ":" in text else "torchrun and jumar-train read it"
    raise ToolError(f"{name}={text!r} is not a number of {least} or more", hint=f"export {name}={least}; {hint}", code=Exit.USAGE)
