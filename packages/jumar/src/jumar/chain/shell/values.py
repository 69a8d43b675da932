"""Values of variables, and words expanded to the arguments that a command would be given."""

from __future__ import annotations

import ast
import fnmatch
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from jumar.chain.shell.words import Arithmetic, Literal, Notes, Piece, Unread, Variable, Word
from jumar.schema.errors import ToolError

LONGEST = 1 << 18
"""Characters that a value may have."""
PLACEHOLDER = re.compile(r"\s*(your\b|<[^<>]+>$|please\b)", re.IGNORECASE)
GAP = "\ue000"
"""A blank of a value that stands for a path to be filled in: it does not part words."""


class Run(NamedTuple):
    """Text of one line. known: False where it stands for what is not known. quoted: it is not parted at blanks."""

    text: str
    line: int
    quoted: bool = False
    known: bool = True


Scalar = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A variable: its elements, one where it is no list."""

    elements: tuple[Scalar, ...]
    listed: bool = False

    @property
    def text(self) -> str:
        return "".join(run.text for run in self.elements[0]) if self.elements else ""

    @property
    def known(self) -> bool:
        return all(run.known for element in self.elements for run in element)


class Argument(NamedTuple):
    """One argument of a command, with the line where it begins. unknown: what in it could not be expanded."""

    text: str
    line: int
    unknown: tuple[str, ...] = ()


@dataclass(slots=True)
class Scope:
    """Variables, and `$1`, `$2`, ..."""

    notes: Notes
    variables: dict[str, Value] = field(default_factory=dict)
    arguments: tuple[Scalar, ...] | None = None
    name: str = "script.sh"

    def find(self, name: str) -> Value | None:
        """The value of a variable or parameter; None where the script does not set it."""
        if name in self.variables:
            return self.variables[name]
        given = self.arguments
        if given is None:
            return None
        if name in ("@", "*"):
            return Value(given, listed=True)
        if name == "#":
            return plain(str(len(given)))
        if name.isdigit() and int(name) >= 1:
            return Value((given[int(name) - 1],)) if int(name) <= len(given) else plain("")
        return None


def plain(text: str, line: int = 0) -> Value:
    return Value(((Run(text, line),),))


# --- words to arguments


def arguments(words: tuple[Word, ...], scope: Scope) -> list[Argument]:
    """What a command would be given: expanded, and parted where bash parts."""
    return [_argument(parts, scope) for word in words for parts in fields(word, scope)]


def _argument(runs: list[Run], scope: Scope) -> Argument:
    unknown = tuple(run.text for run in runs if not run.known)
    return Argument("".join(run.text for run in runs).replace(GAP, " "), runs[0].line, unknown)


def fields(word: Word, scope: Scope) -> list[list[Run]]:
    """The arguments that one word becomes."""
    parting = _Parting(word.line, scope.notes)
    for piece in word.pieces:
        expanded = expand(piece, scope)
        for number, element in enumerate(expanded.elements):
            if number:
                parting.end()
            for run in element:
                parting.add(run, whole=isinstance(piece, Literal) or piece.quoted or run.quoted)
        if isinstance(piece, Literal) or (piece.quoted and not expanded.listed):
            parting.begin()
    parting.end()
    return parting.found


class _Parting:
    """Runs to fields, at blanks. A `#` that begins a word of a quoted block is read as the comment that it was meant to be."""

    def __init__(self, line: int, notes: Notes) -> None:
        self.line, self.notes = line, notes
        self.found: list[list[Run]] = []
        self.open: list[Run] | None = None
        self.comment = -1

    def begin(self) -> None:
        self.open = [] if self.open is None else self.open

    def end(self) -> None:
        if self.open is not None:
            self.found.append(self.open or [Run("", self.line)])
        self.open = None

    def add(self, run: Run, whole: bool) -> None:
        if whole or not run.known:
            self.begin()
            assert self.open is not None
            self.open.append(run)
            return
        for blank, text in re.findall(r"(\s+)|(\S+)", run.text):
            if self.comment == run.line:
                continue
            if blank:
                self.end()
            elif self.open is None and text.startswith("#"):
                self.comment = run.line
                self.notes.add(run.line, "# inside quotes: bash would pass it on; read as the comment that it was meant to be")
            elif self.open is None and text == "\\":
                self.notes.add(run.line, "a lone backslash inside quotes: bash would pass it on; left out")
            else:
                self.begin()
                assert self.open is not None
                self.open.append(run._replace(text=text))


def scalar(word: Word, scope: Scope) -> Scalar:
    """The value that a word has where bash does not part it: assigned, or a subject."""
    runs = [
        run for piece in word.pieces for i, element in enumerate(expand(piece, scope).elements) for run in _spaced(i, element)
    ]
    if sum(len(run.text) for run in runs) > LONGEST:
        raise ToolError(f"line {word.line}: a value of more than {LONGEST} characters", hint="is this a launch script?")
    return tuple(runs)


def _spaced(number: int, element: Scalar) -> Iterator[Run]:
    if number and element:
        yield Run(" ", element[0].line)
    yield from element


def to_fill_in(value: Scalar) -> Scalar:
    """A value such as "your model path" with blanks that part nothing; others as they are."""
    if not PLACEHOLDER.match("".join(run.text for run in value)):
        return value
    return tuple(run._replace(text=run.text.replace(" ", GAP)) for run in value)


# --- pieces


def expand(piece: Piece, scope: Scope) -> Value:
    if isinstance(piece, Literal):
        return Value(((Run(piece.text, piece.line),),))
    if isinstance(piece, Unread):
        return Value(((Run(piece.text, piece.line, known=False),),))
    if isinstance(piece, Arithmetic):
        number = arithmetic(piece.text, scope)
        return plain(str(number), piece.line) if number is not None else _unknown(piece.line, f"$(({piece.text}))")
    value = _parameter(piece, scope)
    lines = len({run.line for element in value.elements for run in element})
    if lines > 1:
        return value
    return Value(tuple(tuple(run._replace(line=run.line or piece.line) for run in e) for e in value.elements), value.listed)


def _unknown(line: int, text: str) -> Value:
    return Value(((Run(text, line, known=False),),))


def _parameter(piece: Variable, scope: Scope) -> Value:
    value = _indexed(piece, scope)
    sign, colon = piece.operator.lstrip(":"), piece.operator.startswith(":")
    if sign in ("-", "=", "+") or (sign == "?" and value is not None):
        empty = value is None or (colon and value.known and not value.text and len(value.elements) <= 1)
        if sign == "+":
            return plain("", piece.line) if empty else _default(piece, scope)
        if empty:
            value = _default(piece, scope)
            if sign == "=":
                scope.variables[piece.name] = Value((tuple(run._replace(quoted=False) for run in value.elements[0]),))
        assert value is not None
        return value
    if value is None or not value.known:
        return value if value is not None and not piece.operator else _unknown(piece.line, piece.text)
    if not piece.operator:
        return value
    changed = _changed(value, piece, scope)
    return plain(changed, piece.line) if changed is not None else _unknown(piece.line, piece.text)


def _indexed(piece: Variable, scope: Scope) -> Value | None:
    value = scope.find(piece.name)
    if value is None or not value.listed:
        return value
    if piece.index in ("@", "*") or piece.name in ("@", "*"):
        return value
    number = arithmetic(piece.index or "0", scope)
    inside = number is not None and -len(value.elements) <= number < len(value.elements)
    return Value((value.elements[number],)) if inside and number is not None else plain("", piece.line)


def _default(piece: Variable, scope: Scope) -> Value:
    runs: list[Run] = []
    for each in piece.argument:  # what is quoted in it is not parted
        runs += [run._replace(quoted=each.quoted) for run in scalar(Word((each,), piece.line), scope)]
    return Value((to_fill_in(tuple(runs)),))


def _changed(value: Value, piece: Variable, scope: Scope) -> str | None:
    """`${x%.*}` and its like; None for what is not understood."""
    text, sign = value.text, piece.operator
    runs = scalar(Word(piece.argument, piece.line), scope)
    argument = "".join(run.text for run in runs)
    if not all(run.known for run in runs):
        return None
    if sign == "#" and not argument:  # ${#x}
        return str(len(value.elements) if value.listed else len(text))
    if sign in ("#", "##", "%", "%%"):
        ends = range(len(text) + 1) if sign in ("#", "%%") else range(len(text), -1, -1)
        front = sign[0] == "#"
        cut = next((i for i in ends if fnmatch.fnmatchcase(text[:i] if front else text[i:], argument)), None)
        return text if cut is None else text[cut:] if front else text[:cut]
    if sign in ("/", "//"):
        old, _, new = argument.partition("/")
        return text.replace(old, new, -1 if sign == "//" else 1) if old and not set(old) & set("*?[") else None
    if sign in ("^", "^^", ",", ",,") and not argument:
        change: Callable[[str], str] = str.upper if sign[0] == "^" else str.lower
        return change(text) if len(sign) == 2 else change(text[:1]) + text[1:]
    return None


# --- arithmetic

BINARY: Mapping[type[ast.AST], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda a, b: (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1),
    ast.Mod: lambda a, b: a - b * ((abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)),
    ast.Pow: lambda a, b: a**b if 0 <= b <= 64 else 0,
    ast.LShift: lambda a, b: a << min(b, 64),
    ast.RShift: operator.rshift,
}
COMPARED: Mapping[type[ast.AST], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
BITS = 1 << 64


def arithmetic(text: str, scope: Scope) -> int | None:
    """The number that `$((text))` is; None where a variable of it is not known, or it is not understood."""
    named = re.sub(r"\$\{(\w+)\}|\$(\w+)", lambda found: found[1] or found[2], text).strip()
    if len(named) > 1000:
        return None
    try:
        return _number(ast.parse(named, mode="eval").body, scope)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _number(node: ast.expr, scope: Scope) -> int | None:
    if isinstance(node, ast.Constant):
        return node.value if type(node.value) is int else None
    if isinstance(node, ast.Name):
        value = scope.find(node.id)
        return int(value.text) if value is not None and value.known and re.fullmatch(r"\s*-?\d{1,18}\s*", value.text) else None
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        inner = _number(node.operand, scope)
        return inner if inner is None or isinstance(node.op, ast.UAdd) else -inner
    pair: tuple[ast.expr, ast.AST, ast.expr] | None = None
    if isinstance(node, ast.BinOp):
        pair = node.left, node.op, node.right
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        pair = node.left, node.ops[0], node.comparators[0]
    if pair is None:
        return None
    left, right = _number(pair[0], scope), _number(pair[2], scope)
    work = BINARY.get(type(pair[1])) or COMPARED.get(type(pair[1]))
    if left is None or right is None or work is None:
        return None
    found = int(work(left, right))
    return found if -BITS < found < BITS else None
