"""A table of checkpoints, through the public API: summary.py DIR..."""

import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jumar.ckpt_convert import open_checkpoint, verify

first = open_checkpoint(sys.argv[1])
table = Table(title="What happened")
for column in ("directory", "format", "layout", "files", "weights", f"tensors equal to {Path(sys.argv[1]).name}"):
    table.add_column(column, overflow="fold", justify="left" if column in ("directory", "format", "layout") else "right")
for path in sys.argv[1:]:
    checkpoint = open_checkpoint(path)
    layout = checkpoint.layout
    size = sum(file.stat().st_size for file in checkpoint.files) / 2**20
    report = verify(first, checkpoint)
    table.add_row(
        Path(path).name,
        checkpoint.format,
        f"tp={layout.tp} pp={layout.pp}" if layout else "",
        str(len(checkpoint.files)),
        f"{size:.1f} MiB",
        f"{report.equal} of {len(first.tensors)}",
    )
Console().print(table)
