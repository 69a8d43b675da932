"""Worked examples as one text that stands in the prompt: from the user's own JSON file, or made of the task's own examples.

A file holds an object, subject -> text (a task without subjects: `few_shot`), as MindSpeed-LLM's `fewshot_template/*.json` do;
that of AGIEval has a list of three texts for each: the examples, what stands before the options, what asks for the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jumar.eval.data import Doc
from jumar.eval.task import Task
from jumar.eval.template import text_of
from jumar.schema.errors import Exit, ToolError

ALONE = "few_shot"
"""The key of a task without subjects."""


def read_fewshot(named: Sequence[str], tasks: Sequence[Task]) -> dict[str, Path]:
    """Task -> its file, of `FILE` (one task that takes texts is run) or `TASK=FILE`. Raises ToolError (2) for what names none."""
    able = [task.task for task in tasks if task.baked]
    found = {}
    for name in named:
        task, equals, path = name.partition("=")
        if not equals and len(able) == 1:
            task, path = able[0], name
        if task not in able or not path:
            hint = f"--fewshot {' --fewshot '.join(f'{task}=FILE' for task in able)}" if able else "leave it out"
            what = f"--fewshot {name}: which task is it for?" if able else f"--fewshot {name}: no task here takes worked examples"
            raise ToolError(what, hint=hint, code=Exit.USAGE)
        found[task] = Path(path)
    return found


def given_texts(path: Path, task: Task, subject: str | None) -> dict[str, str]:
    """Part -> text of one subject. Raises ToolError (3) for a file that is no such JSON, or has not the subject."""
    texts, key = _object(path), ALONE if subject is None else subject
    kind = "a text" if len(task.parts) == 1 else f"a list of {len(task.parts)} texts"
    if key not in texts:
        known = ", ".join(sorted(texts)[:5]) or "none"
        raise ToolError(f"{path} has no {key!r}; it has {known}", hint=f"add {json.dumps(key)}: {kind}")
    value = texts[key]
    parts = value if len(task.parts) > 1 else [value]
    if not isinstance(parts, list) or len(parts) != len(task.parts) or not all(isinstance(part, str) for part in parts):
        shown = json.dumps(value, ensure_ascii=False)
        raise ToolError(f"{path}: {key!r} is {shown:.60}, expected {kind}", hint=f"in order: {', '.join(task.parts)}")
    return dict(zip(task.parts, parts, strict=True))


def _object(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as fault:
        raise ToolError(f"{path} cannot be read: {fault.strerror}", hint="give the path of a JSON file: --fewshot FILE") from None
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path}: not JSON: {fault}", hint='expected {"SUBJECT": "worked examples", ...}') from None
    if not isinstance(found, dict):
        what = f"{path}: a {type(found).__name__}, expected an object"
        raise ToolError(what, hint='expected {"SUBJECT": "worked examples", ...}')
    return found


def texts_of(task: Task, given: Mapping[str, str] | None) -> Callable[[Doc, Sequence[Doc]], Mapping[str, str]]:
    """(document, its worked examples) -> what the prompt is told of them; made once where they are the same."""
    made: dict[tuple[int, ...], Mapping[str, str]] = {}

    def texts(doc: Doc, examples: Sequence[Doc]) -> Mapping[str, str]:
        if given is not None:
            return given
        key = tuple(map(id, examples))
        if key not in made:
            made.clear()
            made[key] = {task.parts[0]: text_of(task.baked)({**doc, "examples": examples})}
        return made[key]

    return texts
