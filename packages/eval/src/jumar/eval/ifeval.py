"""IFEval: which instructions of a document an answer follows, strictly and after what often surrounds an answer is taken away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jumar.eval.checks import Check, check_of
from jumar.schema.errors import ToolError


def checks_of(doc: Mapping[str, Any]) -> list[Check]:
    """A check for each instruction of a document. Raises ToolError as `check_of`, (3) for a document without instructions."""
    names, arguments = doc.get("instruction_id_list"), doc.get("kwargs")
    if not isinstance(names, list) or not isinstance(arguments, list) or not names or len(names) != len(arguments):
        what = "instruction_id_list and kwargs are to be two lists of the same length"
        raise ToolError(what, hint="is the file the published one?")
    return [check_of(name, given or {}) for name, given in zip(names, arguments, strict=True)]


def strictly(doc: Mapping[str, Any], answer: str) -> list[bool]:
    """Whether the answer follows each instruction."""
    return [_follows(check, [answer]) for check in checks_of(doc)]


def loosely(doc: Mapping[str, Any], answer: str) -> list[bool]:
    """Whether it does as it is, or without its asterisks, its first line, its last line, or any of these together."""
    lines = answer.split("\n")
    cut = ["\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])]
    texts = list(dict.fromkeys(text for whole in (answer, *cut) for text in (whole, whole.replace("*", ""))))
    return [_follows(check, texts) for check in checks_of(doc)]


def _follows(check: Check, texts: Sequence[str]) -> bool:
    return any(check(text) for text in texts if text.strip())
