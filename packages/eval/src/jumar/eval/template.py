"""Prompts and values of a task: Jinja, in a sandbox that reaches nothing.

A prompt is a template ("Question: {{ question }}\\nAnswer:"), a value an expression ("'ABCD'.index(answer)").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jumar.schema.errors import ToolError

if TYPE_CHECKING:
    import jinja2

Values = Mapping[str, Any]


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, finalize=_there
    )
    environment.filters["sub"] = lambda text, pattern, by: re.sub(pattern, by, text)
    environment.filters["find"] = _find
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

    try:
        compiled = _environment().from_string(template)
    except jinja2.TemplateError as fault:
        raise ToolError(f"not a Jinja template: {template!r:.200}: {fault}", hint="mend the task's file") from None

    def render(values: Values) -> str:
        with _said(template):
            return str(compiled.render(values))

    return render


@lru_cache(maxsize=1024)
def value_of(expression: str) -> Callable[[Values], Any]:
    """An expression as a function; as `text_of`."""
    import jinja2

    try:
        compiled = _environment().compile_expression(expression, undefined_to_none=False)
    except jinja2.TemplateError as fault:
        raise ToolError(f"not a Jinja expression: {expression!r:.200}: {fault}", hint="mend the task's file") from None

    def value(values: Values) -> Any:
        with _said(expression):
            found = compiled(**values)
            if isinstance(found, jinja2.Undefined):
                str(found)  # raises, naming what is missing
            return found

    return value


class _said:
    """Faults of a template as ToolErrors that show it."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, fault: BaseException | None, trace: object) -> None:
        from jinja2 import TemplateError

        if isinstance(fault, TemplateError | TypeError | ValueError | LookupError | AttributeError | ArithmeticError):
            raise ToolError(f"{self.source!r:.200}: {fault}", hint="are these the columns that the task expects?") from None
