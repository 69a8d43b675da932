"""A script carried out as far as its variables go: the commands that it would start, and what of it is not known."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jumar.chain.shell.parser import DECLARING, Parser
from jumar.chain.shell.values import Argument, Run, Scope, Value, arguments, arithmetic, fields, plain, scalar, to_fill_in
from jumar.chain.shell.words import (
    Assignment,
    Case,
    Chain,
    Function,
    Group,
    If,
    Literal,
    Loop,
    Node,
    Notes,
    Simple,
    Test,
    Variable,
    Word,
)
from jumar.schema.errors import ToolError

MOST_COMMANDS = 20_000
MOST_DEEP = 40
FIRST = "this condition is not known before it runs: the first branch is read as the one taken"


@dataclass(frozen=True, slots=True)
class Started:
    """A command that the script would start."""

    words: tuple[Argument, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Script:
    """commands: in order. notes: (line, text) of what is not read as bash would."""

    commands: tuple[Started, ...]
    notes: tuple[tuple[int, str], ...]


def read_script(
    text: str, given: Iterable[str] | None = None, variables: Mapping[str, str] | None = None, home: Path | None = None
) -> Script:
    """A script, read.

    given: what stands for `$1`, `$2`, ...; None: they are not known. variables: set before it, as by the environment.
    home: where files that it sources are looked for, the working directory apart; None: nowhere.
    """
    notes = Notes()
    scope = Scope(notes, {name: plain(value) for name, value in (variables or {}).items()})
    if given is not None:
        scope.arguments = tuple((Run(each, 0),) for each in given)
    reader = _Reader(scope, home)
    reader.run(Parser(text, notes).script())
    return Script(tuple(reader.started), tuple(sorted(notes.found)))


class _Exit(Exception):
    pass


@dataclass(slots=True)
class _Reader:
    scope: Scope
    home: Path | None
    started: list[Started] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    count: int = 0
    depth: int = 0
    decided: bool = True

    def run(self, nodes: tuple[Node, ...]) -> None:
        """A script's commands. `exit` ends it."""
        try:
            self.body(nodes)
        except _Exit:
            return

    def body(self, nodes: tuple[Node, ...]) -> None:
        self.depth += 1
        if self.depth > MOST_DEEP:
            raise ToolError(f"line {nodes[0].line if nodes else 0}: calls without end", hint="is this a launch script?")
        for node in nodes:
            self.node(node)
        self.depth -= 1

    def node(self, node: Node) -> bool | None:
        """Carries a command out; whether it succeeds, where that is known."""
        self.count += 1
        if self.count > MOST_COMMANDS:
            raise ToolError(f"line {node.line}: more than {MOST_COMMANDS} commands", hint="is this a launch script?")
        if isinstance(node, Simple):
            return self.simple(node)
        if isinstance(node, Test):
            return self.test(node)
        if isinstance(node, Chain):
            return self.chain(node)
        if isinstance(node, If):
            self.branches(node)
        elif isinstance(node, Case):
            self.case(node)
        elif isinstance(node, Loop):
            self.loop(node)
        elif isinstance(node, Function):
            self.functions[node.name] = node
        elif isinstance(node, Group):
            self.body(node.body)
        return None

    # --- what decides

    def chain(self, node: Chain) -> bool | None:
        result = self.node(node.first)
        for sign, following in node.rest:
            if sign == "&&" and result is False:
                continue
            if sign == "||" and result is not False:
                continue
            result = self.node(following) if sign != "|" or isinstance(following, Simple) else None
        return (not result if result is not None else None) if node.negated else result

    def branches(self, node: If) -> None:
        unknown = False
        for condition, body in node.branches:
            holds: bool | None = True
            for each in condition or ():
                holds = self.node(each)
            if holds is None:
                self.scope.notes.add(node.line, FIRST)
            if holds is not False:
                self.in_doubt(body, doubt=unknown or holds is None, kept=not unknown)
                if holds:
                    return
                unknown = True

    def in_doubt(self, body: tuple[Node, ...], *, doubt: bool, kept: bool) -> None:
        """A branch. doubt: it may not be the one taken. kept: what it sets holds afterwards."""
        before, decided = dict(self.scope.variables), self.decided
        self.decided = decided and not doubt
        self.body(body)
        self.decided = decided
        if not kept:
            self.scope.variables = before

    def case(self, node: Case) -> None:
        subject = self.value(node.subject)
        if subject is None:
            self.scope.notes.add(node.line, FIRST)
        for number, (patterns, body) in enumerate(node.branches):
            if subject is None:
                self.in_doubt(body, doubt=True, kept=number == 0)
            elif any(fnmatch.fnmatchcase(subject, self.value(pattern) or "") for pattern in patterns):
                self.body(body)
                return

    def loop(self, node: Loop) -> None:
        if not node.name:
            self.scope.notes.add(node.line, "a loop whose end is not known before it runs: its commands are read once")
            self.in_doubt(node.body, doubt=True, kept=True)
            return
        words = (Variable("@", node.line, True, "$@"),) if node.words is None else ()
        for each in arguments(node.words or (Word(words, node.line),), self.scope):
            self.scope.variables[node.name] = Value(((Run(each.text, each.line, known=not each.unknown),),))
            self.body(node.body)

    def value(self, word: Word) -> str | None:
        """A word's text, variables that the script does not set as empty; None where it is not known."""
        pieces = tuple(
            Literal("", piece.line, True)
            if isinstance(piece, Variable)
            and not piece.operator
            and self.scope.find(piece.name) is None
            and not piece.name.isdigit()
            else piece
            for piece in word.pieces
        )
        runs = scalar(Word(pieces, word.line), self.scope)
        return "".join(run.text for run in runs) if all(run.known for run in runs) else None

    def test(self, node: Test) -> bool | None:
        if node.arithmetic is not None:
            number = arithmetic(node.arithmetic, self.scope)
            return None if number is None else bool(number)
        return self.holds(node.words)

    def holds(self, words: tuple[Word, ...]) -> bool | None:
        """A condition of `[` and `[[`; None where it is not known."""
        for sign, ends in (("||", True), ("-o", True), ("&&", False), ("-a", False)):
            at = next((i for i, word in enumerate(words) if word.bare == sign and i), None)
            if at is not None:
                found = (self.holds(words[:at]), self.holds(words[at + 1 :]))
                return ends if ends in found else None if None in found else not ends
        if words and words[0].bare == "!":
            inner = self.holds(words[1:])
            return None if inner is None else not inner
        if len(words) == 2 and words[0].bare in ("-z", "-n"):
            text = self.value(words[1])
            return None if text is None else (not text) == (words[0].bare == "-z")
        if len(words) == 1:
            text = self.value(words[0])
            return None if text is None else bool(text)
        if len(words) != 3:
            return None
        left, right = self.value(words[0]), self.value(words[2])
        return None if left is None or right is None else _compare(left, words[1].bare or "", right)

    # --- simple commands

    def simple(self, node: Simple) -> bool | None:
        if not node.words:
            for each in node.assigned:
                self.assign(each)
            return True
        plain_words = tuple(word for word in node.words if isinstance(word, Word))
        name = plain_words[0].bare
        if name in DECLARING:
            for item in node.words[1:]:
                if isinstance(item, Assignment):
                    self.assign(item)
            return True
        if name in ("[", "test"):
            return self.holds(plain_words[1:-1] if name == "[" else plain_words[1:])
        if name in ("true", ":", "false"):
            return name != "false"
        words = arguments(plain_words, self.scope)
        return self.started_by(words, node.line) if words else None

    def started_by(self, words: list[Argument], line: int) -> bool | None:
        name = words[0].text
        if name == "exit" and self.decided:
            raise _Exit
        if name in self.functions:
            before, self.scope.arguments = (
                self.scope.arguments,
                tuple((Run(w.text, w.line, known=not w.unknown),) for w in words[1:]),
            )
            self.body(self.functions[name].body)
            self.scope.arguments = before
        elif name == "shift" and self.scope.arguments is not None:
            self.scope.arguments = self.scope.arguments[int(words[1].text) if words[1:] and words[1].text.isdigit() else 1 :]
        elif name == "unset":
            for each in words[1:]:
                self.scope.variables.pop(each.text, None)
        elif name == "eval":
            self.again(" ".join(word.text for word in words[1:]), line)
        elif name in ("source", ".") and len(words) > 1:
            self.source(words[1].text, line)
        elif (text := _inner_script(words)) is not None:
            self.again(text, line)
        else:
            self.started.append(Started(tuple(words), line))
        return None

    def again(self, text: str, line: int) -> None:
        """Commands that stand in a text."""
        self.body(Parser(text, self.scope.notes, line, self.depth).script())

    def source(self, name: str, line: int) -> None:
        found = next((path for path in (Path(name), *([self.home / name] if self.home else [])) if path.is_file()), None)
        if self.home is None or found is None:
            self.scope.notes.add(line, f"{name} is not here: what it sets is not known")
            return
        notes, self.scope.notes = self.scope.notes, Notes()
        try:
            self.body(Parser(found.read_text(encoding="utf-8", errors="replace"), self.scope.notes).script())
        finally:
            self.scope.notes = notes

    def assign(self, node: Assignment) -> None:
        old = self.scope.variables.get(node.name)
        if isinstance(node.value, tuple):
            elements = tuple(to_fill_in(tuple(runs)) for word in node.value for runs in fields(word, self.scope))
            before = old.elements if node.append and old is not None else ()
            self.scope.variables[node.name] = Value((*before, *elements), listed=True)
            return
        value = to_fill_in(scalar(node.value, self.scope))
        if node.append and old is not None and old.elements:
            value = (*old.elements[0], *value)
        rest = old.elements[1:] if old is not None and old.listed else ()  # what is assigned to a list is its first element
        self.scope.variables[node.name] = Value((value, *rest), listed=old is not None and old.listed)


def _inner_script(words: list[Argument]) -> str | None:
    """The text of `bash -c TEXT`, also behind srun and the like."""
    for at, word in enumerate(words[:-2]):
        if word.text.rpartition("/")[2] in ("bash", "sh") and words[at + 1].text in ("-c", "-lc"):
            return words[at + 2].text
    return None


def _compare(left: str, sign: str, right: str) -> bool | None:
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
