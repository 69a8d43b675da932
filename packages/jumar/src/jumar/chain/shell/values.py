"""Values of variables, and words expanded to the arguments that a command would be given."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from jumar.chain.shell.arithmetic import calculate
from jumar.chain.shell.words import Arithmetic, Literal, Notes, Piece, Unread, Variable, Word
from jumar.schema.errors import ToolError

LONGEST = 1 << 18
"""Characters that a value may have."""
PLACEHOLDER = re.compile(
    r"\s*(your(\b|_)|<(?=[^<>]*([ _A-Z]|path|dir|file|name))[^<>]+>|please\b|path to\b|enter\b|master node\b|ip (for|of)\b|"
    r"socket ifname\b|(vocab|merge) file\b)",
    re.IGNORECASE,
)
INSIDE = re.compile(r"<[A-Za-z][\w.,/]*( [\w.,/-]+)+>")
FILLED = str.maketrans({" ": "\ue000", "<": "\ue001", ">": "\ue002"})
"""Signs of a value that stands for a path to be filled in, as it is carried on: they part no words and redirect nothing."""
SHOWN = str.maketrans({"\ue000": " ", "\ue001": "<", "\ue002": ">"})


class Run(NamedTuple):
    """Text of one line. known: False where it stands for what is not known. quoted: it is not parted at blanks."""

    text: str
    line: int
    quoted: bool = False
    known: bool = True


Scalar = tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Value:
    """A variable: its elements, one where it is no list. keys: of the elements, where they are named."""

    elements: tuple[Scalar, ...]
    listed: bool = False
    keys: tuple[str, ...] | None = None

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

    @property
    def shown(self) -> Argument:
        """As a command is given it, blanks of what is to be filled in among it."""
        return self._replace(text=self.text.translate(SHOWN))


@dataclass(slots=True)
class Scope:
    """Variables, and `$1`, `$2`, ...

    arguments: None where they are not known; outside: variables that were given, for what the script cannot say either
    file: of the script, as `$0` has it; folder: the working directory; printed: what a `$(command)` would print, or None
    """

    notes: Notes
    variables: dict[str, Value] = field(default_factory=dict)
    arguments: tuple[Scalar, ...] | None = None
    outside: dict[str, str] = field(default_factory=dict)
    file: str = ""
    sourced: str = ""
    folder: str = field(default_factory=os.getcwd)
    printed: Callable[[str, int], str | None] = lambda text, line: None

    def find(self, name: str) -> Value | None:
        """The value of a variable or parameter; None where the script does not set it."""
        if name in self.variables:
            return self.variables[name]
        if name in ("0", "BASH_SOURCE") and self.file:
            return plain(self.file if name == "0" else self.sourced or self.file)
        if name == "PWD":
            return plain(self.folder)
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

    def given(self, name: str, value: Value) -> Value:
        """A value that is not known, or what was given for it."""
        return plain(self.outside[name]) if name in self.outside else value

    def number(self, text: str, *, sets: bool = False) -> int | None:
        """What an arithmetic expression is; None where it is not known. sets: assignments in it are carried out."""

        def set_(name: str, number: int) -> None:
            self.variables[name] = plain(str(number))

        def known(name: str) -> str | None:
            value = self.find(name)
            return value.text if value is not None and value.known else None

        return calculate(text, known, set_ if sets else None)


def plain(text: str, line: int = 0) -> Value:
    return Value(((Run(text, line),),))


# --- words to arguments


def arguments(words: tuple[Word, ...], scope: Scope) -> list[Argument]:
    """What a command would be given: expanded, and parted where bash parts."""
    return [_argument(parts, scope) for word in words for parts in fields(word, scope)]


def _argument(runs: list[Run], scope: Scope) -> Argument:
    unknown = tuple(run.text for run in runs if not run.known)
    return Argument("".join(run.text for run in runs), runs[0].line, unknown)


def fields(word: Word, scope: Scope) -> list[list[Run]]:
    """The arguments that one word becomes."""
    if (several := _braces(word)) is not None:
        return [found for each in several for found in fields(each, scope)]
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


BRACES = re.compile(r"(.*?)\{([^{}\s]*)\}(.*)", re.DOTALL)
MOST_BRACES = 1000


def _braces(word: Word) -> list[Word] | None:
    """`a{1..3}`, `x{b,c}y`: the words that it becomes; None for others."""
    text = word.bare
    found = BRACES.fullmatch(text) if text else None
    if found is None:
        return None
    numbers = re.fullmatch(r"(-?\d{1,9})\.\.(-?\d{1,9})", found[2])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if abs(last - first) > MOST_BRACES:
            return None
        parts = [str(number) for number in range(first, last + 1)] or [str(number) for number in range(first, last - 1, -1)]
    elif "," in found[2]:
        parts = found[2].split(",")
    else:
        return None
    return [Word((Literal(f"{found[1]}{part}{found[3]}", word.line, False),), word.line) for part in parts]


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
    """A value such as "your model path", or `<path to it>` in one, with blanks that part nothing; others as they are."""
    if PLACEHOLDER.match("".join(run.text for run in value)):
        return tuple(run._replace(text=run.text.translate(FILLED)) for run in value)
    return tuple(
        run._replace(text=INSIDE.sub(lambda found: found[0].translate(FILLED), run.text)) if "<" in run.text else run
        for run in value
    )


# --- pieces


def expand(piece: Piece, scope: Scope) -> Value:
    if isinstance(piece, Literal):
        return Value(((Run(piece.text, piece.line),),))
    if isinstance(piece, Unread):
        said = scope.printed(piece.text, piece.line)
        return plain(said, piece.line) if said is not None else _unknown(piece.line, piece.text)
    if isinstance(piece, Arithmetic):
        number = scope.number(piece.text, sets=True)
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
    if piece.operator == "!":
        return _indirect(piece, value, scope)
    if value is None or not value.known:
        return value if value is not None and not piece.operator else _unknown(piece.line, piece.text)
    if not piece.operator:
        return value
    if sign == "" and colon:
        return _sliced(value, piece, scope)
    changed = _changed(value, piece, scope)
    return plain(changed, piece.line) if changed is not None else _unknown(piece.line, piece.text)


def _indexed(piece: Variable, scope: Scope) -> Value | None:
    value = scope.find(piece.name)
    if value is None or not value.listed:
        return value
    if piece.index in ("@", "*") or piece.name in ("@", "*"):
        return value
    if value.keys is not None:
        key = index_of(piece.index or "0", piece.line, scope)
        if key is None:
            return _unknown(piece.line, piece.text)
        return Value((value.elements[value.keys.index(key)],)) if key in value.keys else plain("", piece.line)
    number = scope.number(piece.index or "0")
    if number is None:
        return _unknown(piece.line, piece.text)
    inside = number is not None and -len(value.elements) <= number < len(value.elements)
    return Value((value.elements[number],)) if inside else plain("", piece.line)


def index_of(text: str, line: int, scope: Scope) -> str | None:
    """The key that `$name` or a word in brackets is; None where it is not known."""
    found = scope.find(text.strip("${}\"'")) if text.lstrip("\"'").startswith("$") else None
    if found is not None:
        return found.text if found.known else None
    return None if "$" in text else text.strip("\"'")


def _default(piece: Variable, scope: Scope) -> Value:
    runs: list[Run] = []
    for each in piece.argument:  # what is quoted in it is not parted
        runs += [run._replace(quoted=each.quoted) for run in scalar(Word((each,), piece.line), scope)]
    return Value((to_fill_in(tuple(runs)),))


def _indirect(piece: Variable, value: Value | None, scope: Scope) -> Value:
    """`${!name}` and `${!list[@]}`."""
    if piece.index in ("@", "*"):
        keys = () if value is None else value.keys or tuple(map(str, range(len(value.elements))))
        return Value(tuple((Run(key, piece.line),) for key in keys), listed=True)
    found = scope.find(value.text) if value is not None and value.known else None
    return found if found is not None else _unknown(piece.line, piece.text)


def _sliced(value: Value, piece: Variable, scope: Scope) -> Value:
    """`${x:first}`, `${x:first:length}`, of a text or of a list."""
    said = "".join(run.text for run in scalar(Word(piece.argument, piece.line), scope))
    first, sign, length = (part.strip() for part in said.partition(":"))
    start, count = scope.number(first), scope.number(length) if sign else None
    if start is None or (sign and count is None):
        return _unknown(piece.line, piece.text)
    if piece.name in ("@", "*") and start > 0:
        start -= 1  # $@ counts from 1
    whole: Sequence[Scalar] | str = value.elements if value.listed else value.text
    size = len(whole)
    start = max(0, size + start) if start < 0 else min(start, size)
    end = size if count is None else start + count if count >= 0 else size + count
    if isinstance(whole, str):
        return plain(whole[start:end], piece.line)
    return Value(tuple(whole[start:end]), listed=True)


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
