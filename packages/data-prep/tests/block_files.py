"""Files of every kind, and what is read of them, for the tests of the readers."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jumar.data_prep.blocks import blocks
from jumar.data_prep.inputs import find_inputs
from jumar.data_prep.payloads import BadRow, Fault, Row
from jumar.data_prep.rows import Rows

Record = dict[str, Any]
THREE = [{"text": "你好"}, {"text": "b\nc"}, {"text": "d" * 50}]


class Read:
    """All that comes out of a file: (line counted from 1, record), what is bad, the fault."""

    def __init__(self, path: Path, block_bytes: int = 64, **options: Any) -> None:
        self.rows: list[tuple[int, Record]] = []
        self.bad: list[BadRow] = []
        self.fault: Fault | None = None
        self.blocks = list(blocks(find_inputs([str(path)]), block_bytes, **options))
        self.blank = lines = 0
        for block in self.blocks:
            assert self.fault is None, "a fault comes with the last block"
            rows = Rows(pickle.loads(pickle.dumps(block)))
            base = lines if block.base is None else block.base
            for row in rows:
                if isinstance(row, Row):
                    self.rows.append((base + row.line + 1, row.value))
                else:
                    self.bad.append(row._replace(line=base + row.line + 1))
            lines, self.blank, self.fault = base + rows.lines, self.blank + rows.blank, rows.fault

    @property
    def records(self) -> list[Record]:
        return [record for _, record in self.rows]


def lines_of(records: list[Record]) -> bytes:
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode()


def zst(data: bytes) -> bytes:
    return bytes(pa.compress(data, codec="zstd", asbytes=True))


def parquet(path: Path, records: list[Record], **options: Any) -> None:
    pq.write_table(pa.Table.from_pylist(records, schema=pa.schema([("text", pa.string())])), path, **options)


def arrow(path: Path, records: list[Record], new: Callable[..., Any], rows: int = 2) -> None:
    table = pa.Table.from_pylist(records, schema=pa.schema([("text", pa.string())]))
    with new(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


def csv_of(records: list[Record], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(records[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue().encode()


def write(path: Path, records: list[Record]) -> None:
    """The records as a file of the kind that its name says."""
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    if name.endswith(".parquet"):
        return parquet(path, records, row_group_size=2)
    if name.endswith((".arrow", ".feather")):
        return arrow(path, records, pa.ipc.new_stream if "stream" in name else pa.ipc.new_file)
    if name.endswith((".csv", ".tsv")):
        data = csv_of(records, "\t" if name.endswith(".tsv") else ",")
    elif name.startswith("array"):
        data = json.dumps(records, ensure_ascii=False, indent=None if "flat" in name else 2).encode()
    elif name.startswith("values"):
        data = b"\n".join(json.dumps(r, indent=1).encode() for r in records)
    else:
        data = lines_of(records)
    path.write_bytes({".gz": gzip.compress, ".zst": zst}.get(path.suffix, bytes)(data))
    return None
