"""What stands in a record's columns, by our names for them, and whether it is what it should be."""

from __future__ import annotations

from typing import Any

import orjson

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.mapping import Mapping

Row = dict[str, Any]


def text(value: Any, where: str) -> str:
    """The value, if it is text that can be encoded."""
    if not isinstance(value, str):
        raise BadRecord("not text", f"{where} is {kind(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise BadRecord("not Unicode", f"{where} has half a surrogate pair at character {error.start}") from None
    return value


def kind(value: Any) -> str:
    """A word for what it is, for messages."""
    return {dict: "an object", list: "a list", type(None): "null"}.get(type(value), f"of type {type(value).__name__}")


def cell(row: Row, mapping: Mapping, name: str) -> Any:
    """What stands in the column for this; None if there is no such column."""
    column = mapping.columns.get(name)
    return None if column is None else row.get(column)


def needed(row: Row, mapping: Mapping, name: str) -> Any:
    """The same; raises BadRecord without the column."""
    column = mapping.columns.get(name)
    if column is None or column not in row:
        raise BadRecord("wrong columns", f"no {column or name}; there are {', '.join(map(str, row)) or 'none'}")
    return row[column]


def listed(value: Any) -> Any:
    """A list or object that is kept as JSON text, as CSV and some Parquet files do, as what it is."""
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return orjson.loads(value)
        except ValueError:
            return value
    return value


def refuse_media(row: Row) -> None:
    """Raises BadRecord if there is more to the record than text: what stands for an image in it would be learnt as text."""
    for column in ("images", "videos", "audios"):
        if row.get(column):
            raise BadRecord("not text", f"it has {column}")


def messages_in(value: Any) -> list[dict[str, Any]] | None:
    """Messages: a list of objects, one object, either as JSON text; None if it is something else."""
    value = listed(value)
    many = value if isinstance(value, list) else [value]
    return many if all(isinstance(one, dict) for one in many) else None
