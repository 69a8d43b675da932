"""Prompts and values of a task: Jinja, in a sandbox that reaches nothing and whose loops have a bound.

A prompt is a template ("Question: {{ question }}\\nAnswer:"), a value an expression ("'ABCD'.index(answer)").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jumar.schema.errors import ToolError

if TYPE_CHECKING:
    from jumar.eval.template_bounds import Bounded

Values = Mapping[str, Any]


class SourceFault(ToolError):
    """A template or an expression at fault. source: its text, by which the task's file and key are found."""

    source = ""


@lru_cache(maxsize=1)
def _environment() -> Bounded:
    from jumar.eval.template_bounds import Bounded

    environment = Bounded(finalize=_there)
    environment.filters["sub"] = lambda text, pattern, by: re.sub(pattern, by, text)
    environment.filters["find"] = _find
    environment.filters["position"] = lambda values, wanted: values.index(wanted) if wanted in values else -1
    environment.filters["letter"] = lambda letter: ord(letter) - ord("A")
    return environment


def _there(value: Any) -> Any:
    """What a template writes; nothing is written for a value that a row leaves empty."""
    if value is None:
        raise ValueError("a value is null")
    return value


def _find(text: str, pattern: str) -> str:
    """The first group of the first match, else an empty text."""
    found = re.search(pattern, text)
    return found[1] if found else ""


@lru_cache(maxsize=1024)
def text_of(template: str) -> Callable[[Values], str]:
    """A template as a function. Raises ToolError (3) for what is no Jinja; the function for what a document does not have."""
    import jinja2

    environment = _environment()
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as fault:
        raise _fault(template, f"not a Jinja template: {template!r:.200}: {fault}", "mend the task's file") from None

    def render(values: Values) -> str:
        with _said(template):
            return environment.text(compiled, values)

    return render


@lru_cache(maxsize=1024)
def value_of(expression: str) -> Callable[[Values], Any]:
    """An expression as a function; as `text_of`."""
    import jinja2

    environment = _environment()
    try:
        compiled = environment.compile_expression(expression, undefined_to_none=False)
    except jinja2.TemplateError as fault:
        raise _fault(expression, f"not a Jinja expression: {expression!r:.200}: {fault}", "mend the task's file") from None

    def value(values: Values) -> Any:
        with _said(expression):
            environment.begin()
            found = compiled(**values)
            if isinstance(found, jinja2.Undefined):
                str(found)  # raises, naming what is missing
            return found

    return value


class _said:
    """Faults of a template as SourceFaults that show it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        from jinja2 import TemplateError

        from jumar.eval.template_bounds import Bound

        if isinstance(fault, Bound | OverflowError | RecursionError | MemoryError):
            said = str(fault) or "it takes more memory than there is"
            raise _fault(
                self.source, f"{self.source!r:.200}: {said}", "mend the task's file: what a template computes has a bound"
            )
        if isinstance(fault, TemplateError | TypeError | ValueError | LookupError | AttributeError | ArithmeticError):
            raise _fault(self.source, f"{self.source!r:.200}: {fault}", "are these the columns that the task expects?") from None


def _fault(source: str, message: str, hint: str) -> SourceFault:
    fault = SourceFault(message, hint=hint)
    fault.source = source
    return fault
