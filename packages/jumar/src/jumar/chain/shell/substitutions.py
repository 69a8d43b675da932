"""What `$(command)` would print, where the command says it by itself: names of paths and numbers. Nothing is ever run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from jumar.chain.shell.parser import Parser
from jumar.chain.shell.values import Scope, arguments
from jumar.chain.shell.words import Chain, Node, Notes, Simple, Word
from jumar.schema.errors import ToolError

MOST_NUMBERS = 1000


def printed(text: str, line: int, scope: Scope) -> str | None:
    """The text that stands for `$(...)` or backquotes; None where it is not known before the script runs.

    Understood are dirname, basename, realpath, readlink -f, pwd, cd, echo, seq and expr, alone or joined by `&&`.
    """
    if text.startswith("$(("):
        return None
    inner = text[2:-1] if text.startswith("$(") else text[1:-1].replace("\\`", "`")
    try:
        nodes = Parser(inner, Notes(), line).script()
    except ToolError:
        return None
    folder, found = scope.folder, list[str]()
    try:
        for node in nodes:
            for each in _simple(node):
                said = _one(each, scope)
                if said is None:
                    return None
                found += [said] if said else []
    finally:
        scope.folder = folder
    return "\n".join(found)


def _simple(node: Node) -> list[Node]:
    if isinstance(node, Chain) and not node.negated and all(sign == "&&" for sign, _ in node.rest):
        return [node.first, *(following for _, following in node.rest)]
    return [node]


def _one(node: Node, scope: Scope) -> str | None:
    if not isinstance(node, Simple) or node.assigned or not node.words or node.redirected.heredoc or node.redirected.word:
        return None
    words = arguments(tuple(word for word in node.words if isinstance(word, Word)), scope)
    if not words or any(word.unknown for word in words):
        return None
    work = COMMANDS.get(words[0].text)
    return None if work is None else work([word.text for word in words[1:] if word.text != "--"], scope)


def _cd(words: list[str], scope: Scope) -> str | None:
    scope.folder = _absolute(words, scope) or scope.folder
    return "" if len(words) == 1 else None


def _absolute(words: list[str], scope: Scope) -> str | None:
    paths = [word for word in words if not word.startswith("-")]
    return os.path.normpath(os.path.join(scope.folder, paths[0])) if len(paths) == 1 else None


def _readlink(words: list[str], scope: Scope) -> str | None:
    return _absolute(words, scope) if set(words) & {"-f", "-m", "-e"} else None


def _dirname(words: list[str], scope: Scope) -> str | None:
    return (os.path.dirname(words[0].rstrip("/")) or ("/" if words[0].startswith("/") else ".")) if len(words) == 1 else None


def _basename(words: list[str], scope: Scope) -> str | None:
    if len(words) not in (1, 2) or words[0].startswith("-"):
        return None
    name = os.path.basename(words[0].rstrip("/")) or words[0][:1]
    return name.removesuffix(words[1]) if len(words) == 2 and name != words[1] else name


def _echo(words: list[str], scope: Scope) -> str | None:
    options = [word for word in words if word in ("-e", "-E", "-n")]
    return None if "-e" in options or any("\\" in word for word in words) else " ".join(words[len(options) :])


def _seq(words: list[str], scope: Scope) -> str | None:
    if not 1 <= len(words) <= 3 or not all(word.lstrip("-").isdecimal() for word in words):
        return None
    numbers = [int(word) for word in words]
    first, last = numbers[0] if len(numbers) > 1 else 1, numbers[-1]
    step = numbers[1] if len(numbers) == 3 else 1
    if not step or abs(last - first) // abs(step) > MOST_NUMBERS:
        return None
    return "\n".join(str(number) for number in range(first, last + (1 if step > 0 else -1), step))


def _expr(words: list[str], scope: Scope) -> str | None:
    number = scope.number(" ".join(words)) if all(word.lstrip("-").isdecimal() or word in "+-*/%()" for word in words) else None
    return None if number is None else str(number)


COMMANDS: Mapping[str, Callable[[list[str], Scope], str | None]] = {
    "basename": _basename,
    "cd": _cd,
    "dirname": _dirname,
    "echo": _echo,
    "expr": _expr,
    "pwd": lambda words, scope: scope.folder if not words else None,
    "readlink": _readlink,
    "realpath": _absolute,
    "seq": _seq,
}
