"""A script carried out as far as its variables go: the commands that it would start, and what of it is not known."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jumar.chain.shell import conditions
from jumar.chain.shell.assigning import assign
from jumar.chain.shell.builtins import BUILTINS
from jumar.chain.shell.files import PASSED_OVER, WRAPPERS, Files, inner_script, reads_script, wrapped
from jumar.chain.shell.parser import DECLARING, Parser
from jumar.chain.shell.substitutions import printed
from jumar.chain.shell.values import Argument, Run, Scope, Value, arguments, plain, scalar
from jumar.chain.shell.words import (
    Assignment,
    Case,
    Chain,
    Function,
    Group,
    If,
    Line,
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
SETTING_UP = ("set_env.sh", "/activate", ".bashrc", ".profile")
"""Files of the machine, which say nothing of a run."""
STOPS = "the script would stop here with an error; read on as if it did not"


@dataclass(frozen=True, slots=True)
class Started:
    """A command that the script would start."""

    words: tuple[Argument, ...]
    line: int


@dataclass(frozen=True, slots=True)
class Script:
    """commands: in order. notes: (line, text) of what is not read as bash would. settings: variables that hold flags."""

    commands: tuple[Started, ...]
    notes: tuple[tuple[int, str], ...]
    settings: tuple[tuple[str, tuple[Argument, ...]], ...] = ()


def read_script(
    text: str, given: Iterable[str] | None = None, variables: Mapping[str, str] | None = None, path: Path | None = None
) -> Script:
    """A script, read.

    given: what stands for `$1`, `$2`, ...; None: they are not known. variables: set before it, as by the environment.
    path: where the script lies, for the files that it sources; None: it names no file.
    """
    notes = Notes()
    scope = Scope(notes, {name: plain(value) for name, value in (variables or {}).items()}, outside=dict(variables or {}))
    scope.file = str(path) if path is not None else ""
    if given is not None:
        scope.arguments = tuple((Run(each, 0),) for each in given)
    scope.printed = lambda inner, line: printed(inner, line, scope)
    reader = _Reader(scope, Files(path.parent if path is not None else None))
    reader.run(Parser(text, notes).script())
    return Script(tuple(reader.started), tuple(sorted(notes.found)), tuple(_settings(scope)))


def _settings(scope: Scope) -> Iterable[tuple[str, tuple[Argument, ...]]]:
    for name in list(scope.variables):
        found = arguments((Word((Variable(name, 0, False, f"${name}", "@"),), 0),), scope)
        if any(word.text.startswith("--") for word in found):
            yield name, tuple(word.shown for word in found)


class _Left(Exception):
    """`break`, `continue`, `return` and `exit`: a block is left."""

    def __init__(self, how: str, line: int = 0) -> None:
        self.how, self.line = how, line


@dataclass(slots=True)
class _Reader:
    scope: Scope
    files: Files
    started: list[Started] = field(default_factory=list)
    functions: dict[str, Function] = field(default_factory=dict)
    count: int = 0
    depth: int = 0

    def run(self, nodes: tuple[Node, ...]) -> None:
        """A script's commands. `exit` ends it; with an error it goes on behind the branch that says so."""
        for node in nodes:
            try:
                self.body((node,))
            except _Left as left:
                if left.how == "exit":
                    return
                self.stopped(left)

    def stopped(self, left: _Left) -> None:
        if left.how == "error":
            self.scope.notes.add(left.line, STOPS)

    def body(self, nodes: tuple[Node, ...]) -> None:
        self.depth += 1
        if self.depth > MOST_DEEP:
            raise ToolError(f"line {nodes[0].line if nodes else 0}: calls without end", hint="is this a launch script?")
        try:
            for node in nodes:
                self.node(node)
        finally:
            self.depth -= 1

    def node(self, node: Node) -> bool | None:
        """Carries a command out; whether it succeeds, where that is known."""
        self.count += 1
        if self.count > MOST_COMMANDS:
            raise ToolError(f"line {node.line}: more than {MOST_COMMANDS} commands", hint="is this a launch script?")
        if isinstance(node, Simple):
            return self.simple(node)
        if isinstance(node, Test):
            return conditions.holds(node, self.scope)
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
        result, before = self.node(node.first), node.first
        for sign, following in node.rest:
            if sign == "&&" and result is False:
                continue
            if sign == "||" and result is not False:
                continue
            if sign == "|" and isinstance(following, Simple):
                self.piped(before, following)
            if sign == "&&" and result is None and not isinstance(before, Simple):
                self.in_doubt((following,), kept=True)
            elif sign != "|" or isinstance(following, Simple):
                result = self.node(following)
            else:
                result = None
            before = following
        return (not result if result is not None else None) if node.negated else result

    def piped(self, before: Node, following: Simple) -> None:
        """`cat <<END | bash`: the text is a script."""
        heredoc = before.redirected.heredoc if isinstance(before, Simple) else None
        if heredoc is not None and (words := self.plain_words(following)) and reads_script(words):
            self.again(self.files.expanded(heredoc, self.scope), heredoc.line)

    def branches(self, node: If) -> None:
        unknown = False
        for condition, body in node.branches:
            unset = [name for each in condition or () for name in self.unset(each)]
            holds: bool | None = True
            for each in condition or ():
                holds = self.node(each)
            if holds and not unknown:
                self.branch(body, unset)
                return
            if holds is not False:
                if self.in_doubt(body, kept=not unknown):
                    self.scope.notes.add(node.line, FIRST)
                if holds:
                    return
                unknown = True

    def unset(self, node: Node) -> list[str]:
        if isinstance(node, Chain):
            return [name for each in (node.first, *(following for _, following in node.rest)) for name in self.unset(each)]
        words = node.words if isinstance(node, Test | Simple) else ()
        return conditions.unset_in(tuple(word for word in words if isinstance(word, Word)), self.scope)

    def branch(self, body: tuple[Node, ...], unset: Iterable[str] = ()) -> None:
        """A branch that is taken. unset: variables that decided so, since nothing sets them."""
        try:
            self.body(body)
        except _Left as left:
            if left.how != "error":
                raise
            names = " or ".join(dict.fromkeys(unset))
            wanted = f"{names} is set nowhere: the script would stop here; read on: --var {names.partition(' ')[0]}=... gives it"
            self.scope.notes.add(left.line, wanted if names else STOPS)

    def in_doubt(self, body: tuple[Node, ...], *, kept: bool) -> bool:
        """A branch that may not be the one taken; whether it does anything. kept: what it sets holds afterwards."""
        before, count = dict(self.scope.variables), len(self.started)
        try:
            self.body(body)
        except _Left as left:
            kept = kept and left.how not in ("exit", "error")
        changed = {name: value for name, value in self.scope.variables.items() if before.get(name) != value}
        if not kept:
            self.scope.variables = before
            for name, value in changed.items():
                given = name in self.scope.outside and value.text == self.scope.outside[name]
                if (given or not value.known) and not (name in before and before[name].text):
                    self.scope.variables[name] = self.scope.given(name, Value(((Run(f"${{{name}}}", 0, known=False),),)))
        does = [each for each in self.started[count:] if each.words[0].text not in PASSED_OVER]
        return bool(changed) or bool(does)

    def case(self, node: Case) -> None:
        subject = conditions.value(node.subject, self.scope)
        does = False
        for number, (patterns, body) in enumerate(node.branches):
            if subject is None:
                parsing = any((pattern.bare or "").startswith("-") for pattern in patterns)
                does = (self.in_doubt(body, kept=number == 0 and not parsing) and not parsing) or does
            elif any(fnmatch.fnmatchcase(subject, conditions.value(pattern, self.scope) or "") for pattern in patterns):
                self.branch(body)
                return
        if does:
            self.scope.notes.add(node.line, FIRST)

    def loop(self, node: Loop) -> None:
        try:
            if node.counted is not None:
                self.counted(node, node.counted)
            elif node.name:
                self.each(node)
            else:
                self.repeated(node)
        except _Left as left:
            if left.how != "break":
                raise

    def each(self, node: Loop) -> None:
        words = (Variable("@", node.line, True, "$@"),) if node.words is None else ()
        for each in arguments(node.words if node.words is not None else (Word(words, node.line),), self.scope):
            self.scope.variables[node.name] = Value(((Run(each.text, each.line, known=not each.unknown),),))
            self.once(node.body)

    def counted(self, node: Loop, header: tuple[str, str, str]) -> None:
        self.scope.number(header[0], sets=True)
        while (holds := self.scope.number(header[1] or "1", sets=True)) != 0:
            if holds is None:
                self.endless(node)
                return
            self.once(node.body)
            if self.scope.number(header[2], sets=True) is None or not header[2].strip():
                return

    def repeated(self, node: Loop) -> None:
        """`while` and `until`: as long as the condition is known to hold and something changes."""
        while True:
            holds: bool | None = None
            for each in node.condition:
                holds = self.node(each)
            holds = not holds if node.negated and holds is not None else holds
            if holds is False:
                return
            if holds is None:
                self.endless(node)
                return
            before = dict(self.scope.variables), self.scope.arguments
            self.once(node.body)
            if before == (self.scope.variables, self.scope.arguments):
                return

    def endless(self, node: Loop) -> None:
        if self.in_doubt(node.body, kept=True):
            self.scope.notes.add(node.line, "a loop whose end is not known before it runs: its commands are read once")

    def once(self, body: tuple[Node, ...]) -> None:
        self.count += 1
        if self.count > MOST_COMMANDS:
            raise ToolError(f"line {body[0].line if body else 0}: a loop without end", hint="is this a launch script?")
        try:
            self.body(body)
        except _Left as left:
            if left.how != "continue":
                raise

    # --- simple commands

    def plain_words(self, node: Simple) -> list[Argument]:
        return arguments(tuple(word for word in node.words if isinstance(word, Word)), self.scope)

    def simple(self, node: Simple) -> bool | None:
        if not node.words:
            for each in node.assigned:
                assign(each, self.scope)
            return True
        plain_words = tuple(word for word in node.words if isinstance(word, Word))
        name = plain_words[0].bare
        if name in DECLARING:
            for item in node.words[1:]:
                if isinstance(item, Assignment):
                    assign(item, self.scope)
            return True
        if name in ("[", "test"):
            return conditions.of_words(plain_words[1:-1] if name == "[" else plain_words[1:], self.scope)
        if name in ("true", ":", "false"):
            return name != "false"
        words = arguments(plain_words, self.scope)
        if not words:
            return None
        if node.redirected.heredoc is not None:
            if node.redirected.into is not None:
                self.files.write(node.redirected.into, node.redirected.heredoc, self.scope)
            elif reads_script(words):
                self.again(self.files.expanded(node.redirected.heredoc, self.scope), node.redirected.heredoc.line)
                return None
        if node.redirected.word is not None and reads_script(words):
            self.again("".join(run.text for run in scalar(node.redirected.word, self.scope)), node.line)
            return None
        return self.started_by(words, node.line)

    def started_by(self, words: list[Argument], line: int) -> bool | None:
        name, rest = words[0].text, words[1:]
        if name in ("exit", "return", "break", "continue"):
            said = rest[0].text if rest else "0"
            raise _Left("error" if name == "exit" and said != "0" else name, line)
        if name in self.functions:
            self.call(self.functions[name], rest)
        elif name in BUILTINS:
            BUILTINS[name](rest, line, self.scope)
        elif name == "eval":
            self.again(" ".join(word.text for word in rest), line)
        elif name in ("source", ".") and rest:
            self.read(rest[0].text, line)
        elif (text := inner_script(words)) is not None:
            if name in WRAPPERS:
                self.scope.notes.add(line, wrapped(name))
            self.again(text, line)
        elif (script := self.files.script_of(words, self.scope)) is not None:
            before, self.scope.arguments = dict(self.scope.variables), tuple((Run(w.text, w.line),) for w in script[1])
            self.read(script[0], line, whole=True)
            self.scope.variables = before
        else:
            self.started.append(Started(tuple(word.shown for word in words), line))
        return None

    def call(self, function: Function, given: list[Argument]) -> None:
        before = self.scope.arguments
        self.scope.arguments = tuple((Run(w.text, w.line, known=not w.unknown),) for w in given)
        try:
            self.body(function.body)
        except _Left as left:
            if left.how != "return":
                raise
        finally:
            self.scope.arguments = before

    def again(self, text: str, line: int) -> None:
        """Commands that stand in a text."""
        self.body(Parser(text, self.scope.notes, line, self.depth).script())

    def read(self, name: str, line: int, *, whole: bool = False) -> None:
        """The commands of another file, with lines of its own. whole: `exit` ends it alone."""
        found = self.files.text_of(name, self.scope)
        if found is None:
            if not name.endswith(SETTING_UP):
                self.scope.notes.add(line, f"{name} is not here: what it sets and starts is not known")
            return
        place, text = found
        before, arguments_ = self.scope.sourced, self.scope.arguments
        self.scope.sourced = place
        try:
            nodes = Parser(text, self.scope.notes, Line(1, self.files.shown(place)), self.depth).script()
            if whole:
                self.run(nodes)
            else:
                self.body(nodes)
        except _Left as left:
            if left.how != "return":
                raise
        finally:
            self.scope.sourced, self.scope.arguments = before, arguments_
