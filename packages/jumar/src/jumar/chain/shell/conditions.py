"""Conditions of `[`, `[[` and `((`: whether they hold, as far as a script's own variables tell."""

from __future__ import annotations

import fnmatch

from jumar.chain.shell.values import Scope, scalar
from jumar.chain.shell.words import Literal, Test, Variable, Word


def holds(node: Test, scope: Scope) -> bool | None:
    """None where it is not known."""
    if node.arithmetic is not None:
        number = scope.number(node.arithmetic, sets=True)
        return None if number is None else bool(number)
    return of_words(node.words, scope)


def of_words(words: tuple[Word, ...], scope: Scope) -> bool | None:
    for sign, ends in (("||", True), ("-o", True), ("&&", False), ("-a", False)):
        at = next((i for i, word in enumerate(words) if word.bare == sign and i), None)
        if at is not None:
            found = (of_words(words[:at], scope), of_words(words[at + 1 :], scope))
            return ends if ends in found else None if None in found else not ends
    if words and words[0].bare == "!":
        inner = of_words(words[1:], scope)
        return None if inner is None else not inner
    if len(words) == 2:
        return _of_one(words[0].bare, words[1], scope)
    if len(words) == 1:
        text = value(words[0], scope)
        return None if text is None else bool(text)
    if len(words) != 3:
        return None
    left, right = value(words[0], scope), value(words[2], scope)
    return None if left is None or right is None else _compared(left, words[1].bare or "", right)


def _of_one(sign: str | None, word: Word, scope: Scope) -> bool | None:
    """`-z`, `-n`, `-v`; nothing is known of files."""
    if sign == "-v":
        return scope.find(word.bare or "") is not None
    if sign not in ("-z", "-n"):
        return None
    text = value(word, scope)
    return None if text is None else (not text) == (sign == "-z")


def value(word: Word, scope: Scope) -> str | None:
    """A word's text, variables that the script does not set as empty; None where it is not known."""
    pieces = tuple(Literal("", piece.line, True) if _unset(piece, scope) else piece for piece in word.pieces)
    runs = scalar(Word(pieces, word.line), scope)
    return "".join(run.text for run in runs) if all(run.known for run in runs) else None


def _unset(piece: object, scope: Scope) -> bool:
    return (
        isinstance(piece, Variable)
        and not piece.operator
        and (piece.name.isidentifier() or (piece.name.isdigit() and scope.arguments is not None))
        and scope.find(piece.name) is None
    )


def unset_in(words: tuple[Word, ...], scope: Scope) -> list[str]:
    """Variables of a condition that the script does not set."""
    return [piece.name for word in words for piece in word.pieces if isinstance(piece, Variable) and _unset(piece, scope)]


def _compared(left: str, sign: str, right: str) -> bool | None:
    if sign in ("=", "=="):
        return fnmatch.fnmatchcase(left, right)
    if sign == "!=":
        return not fnmatch.fnmatchcase(left, right)
    try:
        a, b = int(left), int(right)
    except ValueError:
        return None
    signs = {"-eq": a == b, "-ne": a != b, "-lt": a < b, "-le": a <= b, "-gt": a > b, "-ge": a >= b, "<": a < b, ">": a > b}
    return signs.get(sign)
