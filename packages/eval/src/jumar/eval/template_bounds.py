"""The sandbox of templates: it reaches nothing, and what it computes has a bound, so that a slip does not hang a run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 1_000_000
"""Of one rendering: a round of a loop is a step, a call is `OF_A_CALL`, for it takes so much longer."""
OF_A_CALL = 20
MAX_CHARS = 50_000_000
"""Of one text, and items of one list; a context of a million tokens has some five million characters."""
MAX_BITS = 10_000
"""Of a number that is a power."""


class Bound(Exception):
    """What a template does goes beyond a bound."""


class Bounded(ImmutableSandboxedEnvironment):
    """Counts rounds and calls of a rendering, by thread; bounds products and powers before they are made."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self, **options: Any) -> None:
        super().__init__(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False, **options)
        self._spent = threading.local()
        self.filters["_counted"] = self._counted

    def text(self, template: Template, values: Mapping[str, Any]) -> str:
        """Raises Bound, and what rendering raises."""
        self._spent.steps, pieces, left = 0, list[str](), MAX_CHARS
        for piece in template.generate(values):
            left -= len(piece)
            if left < 0:
                raise Bound(f"it writes more than {MAX_CHARS:,} characters")
            pieces.append(piece)
        return "".join(pieces)

    def begin(self) -> None:
        """Of an expression, which is called and not rendered."""
        self._spent.steps = 0

    def _spend(self, steps: int) -> None:
        self._spent.steps = getattr(self._spent, "steps", 0) + steps
        if self._spent.steps > MAX_STEPS:
            raise Bound(f"its loops and calls take more than {MAX_STEPS:,} steps")

    def _counted(self, values: Iterable[Any]) -> Iterator[Any]:
        for value in values:
            self._spend(1)
            yield value

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Every loop goes over what is counted."""
        found = super()._parse(source, name, filename)
        for loop in found.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        return found

    def call(self, *arguments: Any, **words: Any) -> Any:
        self._spend(OF_A_CALL)
        return super().call(*arguments, **words)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > MAX_BITS:
            raise Bound(f"{left} ** {right} is a number of more than {MAX_BITS:,} bits")
        for texts, times in ((left, right), (right, left)):
            sized = operator == "*" and isinstance(texts, str | bytes | list | tuple) and isinstance(times, int)
            if sized and len(texts) * times > MAX_CHARS:
                raise Bound(f"a {type(texts).__name__} times {times} has more than {MAX_CHARS:,} items")
        return super().call_binop(context, operator, left, right)
