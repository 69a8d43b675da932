"""Commands of the shell itself that set variables, parameters or the working directory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from jumar.chain.shell.values import Argument, Run, Scope, Value

Builtin = Callable[[list[Argument], int, Scope], None]


def _shift(words: list[Argument], line: int, scope: Scope) -> None:
    if scope.arguments is not None:
        scope.arguments = scope.arguments[int(words[0].text) if words and words[0].text.isdigit() else 1 :]


def _set(words: list[Argument], line: int, scope: Scope) -> None:
    """`set -- a b`."""
    at = next((i for i, word in enumerate(words) if word.text == "--"), None)
    if at is not None:
        scope.arguments = tuple((Run(w.text, w.line, known=not w.unknown),) for w in words[at + 1 :])


def _unset(words: list[Argument], line: int, scope: Scope) -> None:
    for each in words:
        scope.variables.pop(each.text, None)


def _read(words: list[Argument], line: int, scope: Scope) -> None:
    """`read` and its like: what they set is not known."""
    for name in (each.text for each in words if each.text.isidentifier()):
        scope.variables[name] = scope.given(name, Value(((Run(f"${name}", line, known=False),),)))


def _let(words: list[Argument], line: int, scope: Scope) -> None:
    for each in words:
        scope.number(each.text, sets=True)


def _cd(words: list[Argument], line: int, scope: Scope) -> None:
    paths = [word for word in words if not word.text.startswith("-")]
    if len(paths) == 1 and not paths[0].unknown:
        scope.folder = os.path.normpath(os.path.join(scope.folder, paths[0].text))


BUILTINS: Mapping[str, Builtin] = {
    "cd": _cd,
    "let": _let,
    "mapfile": _read,
    "read": _read,
    "readarray": _read,
    "set": _set,
    "shift": _shift,
    "unset": _unset,
}
