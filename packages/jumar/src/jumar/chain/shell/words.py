"""What a script is made of: words in pieces, and commands. Every piece knows its line."""

from __future__ import annotations

from dataclasses import dataclass, field


class Line(int):
    """A line's number, with its file where that is not the script itself: "7 of conf/model.sh"."""

    file: str

    def __new__(cls, number: int, file: str = "") -> Line:
        line = super().__new__(cls, number)
        line.file = file
        return line

    def __add__(self, lines: int) -> Line:
        return Line(int(self) + lines, self.file)

    def __str__(self) -> str:
        return f"{int(self)} of {self.file}" if self.file else str(int(self))

    def __format__(self, form: str) -> str:
        return format(str(self), form)


@dataclass(frozen=True, slots=True)
class Literal:
    """Text of one line as it stands."""

    text: str
    line: int
    quoted: bool


@dataclass(frozen=True, slots=True)
class Variable:
    """`$name`, `${name}`, `${name[@]}`, `${name:-argument}`.

    index: what stands in brackets; operator: "" or one of `:-`, `##`, `//`, ...; argument: what stands behind it
    """

    name: str
    line: int
    quoted: bool
    text: str
    index: str = ""
    operator: str = ""
    argument: tuple[Piece, ...] = ()


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`$((...))`."""

    text: str
    line: int
    quoted: bool


@dataclass(frozen=True, slots=True)
class Unread:
    """`$(command)` and its like: what it would print is not known."""

    text: str
    line: int
    quoted: bool


Piece = Literal | Variable | Arithmetic | Unread


@dataclass(frozen=True, slots=True)
class Word:
    pieces: tuple[Piece, ...]
    line: int

    @property
    def bare(self) -> str | None:
        """Its text where it is plain and unquoted: what a keyword must be."""
        if len(self.pieces) == 1 and isinstance(piece := self.pieces[0], Literal) and not piece.quoted:
            return piece.text
        return None


@dataclass(frozen=True, slots=True)
class Assignment:
    """`name=word`, `name+=word`, `name[index]=word`, `name=(words)`; keys: of words in `name=([key]=word)`."""

    name: str
    value: Word | tuple[Word, ...]
    append: bool
    line: int
    index: Word | None = None
    keys: tuple[Word | None, ...] = ()


@dataclass(slots=True)
class Heredoc:
    """`<<END`: its text, which the lexer reads where the next line begins."""

    delimiter: str
    tabs: bool
    expands: bool
    text: str = ""
    line: int = 0


@dataclass(frozen=True, slots=True)
class Redirected:
    """What a command reads and where it writes, as far as it matters: `<<END`, `<<< word`, `> word`."""

    heredoc: Heredoc | None = None
    word: Word | None = None
    into: Word | None = None


@dataclass(frozen=True, slots=True)
class Simple:
    """A command with its words; `assigned` stand before it."""

    assigned: tuple[Assignment, ...]
    words: tuple[Word | Assignment, ...]
    line: int
    redirected: Redirected = Redirected()


@dataclass(frozen=True, slots=True)
class Test:
    """`[[ ... ]]` and `((...))`: words and operators as they stand."""

    words: tuple[Word, ...]
    line: int
    arithmetic: str | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """Commands joined by `&&`, `||` or `|`: first, then (operator, command)."""

    first: Node
    rest: tuple[tuple[str, Node], ...]
    line: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class If:
    """branches: (condition, body); a body without condition is `else`."""

    branches: tuple[tuple[tuple[Node, ...] | None, tuple[Node, ...]], ...]
    line: int


@dataclass(frozen=True, slots=True)
class Case:
    subject: Word
    branches: tuple[tuple[tuple[Word, ...], tuple[Node, ...]], ...]
    line: int


@dataclass(frozen=True, slots=True)
class Loop:
    """`for name in words`; `for ((first; holds; next))`; without either `while` and, negated, `until`."""

    body: tuple[Node, ...]
    line: int
    name: str = ""
    words: tuple[Word, ...] | None = None
    counted: tuple[str, str, str] | None = None
    condition: tuple[Node, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    body: tuple[Node, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Group:
    """`{ ...; }` and `( ... )`."""

    body: tuple[Node, ...]
    line: int


Node = Simple | Test | Chain | If | Case | Loop | Function | Group


@dataclass(slots=True)
class Notes:
    """What is told of a script beside its commands: (line, text), each once."""

    found: dict[tuple[int, str], None] = field(default_factory=dict)

    def add(self, line: int, text: str) -> None:
        self.found[line, text] = None
