"""What an assignment makes of a variable: texts, lists, lists with keys."""

from __future__ import annotations

from jumar.chain.shell.values import Run, Scope, Value, fields, index_of, scalar, to_fill_in
from jumar.chain.shell.words import Assignment, Word


def assign(node: Assignment, scope: Scope) -> None:
    old = scope.variables.get(node.name)
    if isinstance(node.value, tuple):
        scope.variables[node.name] = _listed(node, node.value, old, scope)
        return
    value = to_fill_in(scalar(node.value, scope))
    if node.index is not None:
        scope.variables[node.name] = _element(node, node.index, old, value, scope)
        return
    if node.append and old is not None and old.elements:
        value = (*old.elements[0], *value)
    rest = old.elements[1:] if old is not None and old.listed else ()  # what is assigned to a list is its first element
    made = Value((value, *rest), listed=old is not None and old.listed)
    scope.variables[node.name] = made if made.known else scope.given(node.name, made)


def _listed(node: Assignment, words: tuple[Word, ...], old: Value | None, scope: Scope) -> Value:
    """`name=(a b)`, `name=([k]=a)`."""
    before = old.elements if node.append and old is not None else ()
    if not any(node.keys):
        elements = tuple(to_fill_in(tuple(runs)) for word in words for runs in fields(word, scope))
        return Value((*before, *elements), listed=True)
    keys = [index_of(_text(key), node.line, scope) or "" if key else str(i) for i, key in enumerate(node.keys)]
    named = dict(zip((old.keys or ()) if before and old is not None else (), before, strict=False))
    named |= {key: tuple(scalar(word, scope)) for key, word in zip(keys, words, strict=True)}
    return Value(tuple(named.values()), listed=True, keys=tuple(named))


def _element(node: Assignment, index: Word, old: Value | None, value: tuple[Run, ...], scope: Scope) -> Value:
    """`name[index]=value`."""
    text = _text(index)
    number = scope.number(text) if old is None or old.keys is None else None
    size = len(old.elements) if old is not None else 0
    if number is not None and 0 <= number <= size and (old is None or old.listed):
        elements = list(old.elements) if old is not None else []
        if node.append and number < size:
            value = (*elements[number], *value)
        elements[number : number + 1] = [value]
        return Value(tuple(elements), listed=True)
    keys = (old.keys or tuple(map(str, range(size)))) if old is not None else ()
    named = dict(zip(keys, old.elements if old is not None else (), strict=True))
    named[index_of(text, node.line, scope) or text] = value
    return Value(tuple(named.values()), listed=True, keys=tuple(named))


def _text(word: Word | None) -> str:
    return "".join(piece.text for piece in word.pieces) if word is not None else ""
