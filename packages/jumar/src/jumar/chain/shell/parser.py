"""Words and operators to commands: lists, branches, loops, functions."""

from __future__ import annotations

import re

from jumar.chain.shell.lexer import NESTED, Lexer
from jumar.chain.shell.words import (
    Assignment,
    Case,
    Chain,
    Function,
    Group,
    Heredoc,
    If,
    Literal,
    Loop,
    Node,
    Notes,
    Redirected,
    Simple,
    Test,
    Word,
)
from jumar.schema.errors import ToolError

ASSIGNED = re.compile(r"([A-Za-z_]\w*)(?:\[([^\]\s]*)\])?(\+?)=")
TO_FILL_IN = re.compile(r"<[A-Za-z](?:[^<>|&;\n]*[^\s<>|&;])?>(?=\s|$)")
"""`<path to it>`, which bash would take for redirections."""
KEYED = re.compile(r"\[([^\]\n]*)\]=")
FUNCTION = re.compile(r"(?:function[ \t]+([\w:.-]+)[ \t]*(?:\([ \t]*\))?|([\w:.-]+)[ \t]*\([ \t]*\))\s*(?=[{(])")
DECLARING = ("export", "declare", "local", "readonly", "typeset")
ENDS = ("\n", ";", "&")


class Parser:
    def __init__(self, text: str, notes: Notes, first: int = 1, depth: int = 0) -> None:
        self.lexer = Lexer(text, notes, first, depth)
        self.depth = 0

    def script(self) -> tuple[Node, ...]:
        """All commands. What cannot be parsed stops it, with its line."""
        nodes = self.commands(())
        if self.lexer.peek():
            self.unexpected()
        return nodes

    def unexpected(self) -> None:
        lexer = self.lexer
        here = lexer.text[lexer.at :].split("\n", 1)[0][:40]
        raise ToolError(f"line {lexer.line}: not shell as it is read here: {here!r}", hint="`bash -n SCRIPT` says what is wrong")

    def keyword(self, *names: str) -> bool:
        """Takes one of these words, where it stands here."""
        lexer = self.lexer
        lexer.blanks()
        for name in names:
            if re.match(rf"{re.escape(name)}(?=[\s;&|()]|$)", lexer.text[lexer.at : lexer.at + len(name) + 1]):
                lexer.take(len(name))
                return True
        return False

    def at_keyword(self, names: tuple[str, ...]) -> bool:
        at, line = self.lexer.at, self.lexer.line
        found = bool(names) and self.keyword(*names)
        self.lexer.at, self.lexer.line = at, line
        return found

    def expect(self, *names: str) -> None:
        self.separators()
        if not self.keyword(*names):
            self.unexpected()

    def separators(self) -> None:
        lexer = self.lexer
        lexer.blanks()
        while lexer.peek() in ENDS and lexer.peek() and lexer.peek(2) not in (";;", ";&", "&&", "&>"):
            lexer.operator()
            lexer.blanks()

    def commands(self, ends: tuple[str, ...]) -> tuple[Node, ...]:
        """Commands up to one of these words or a closing operator, which are left."""
        self.depth += 1
        if self.depth > NESTED:
            raise ToolError(
                f"line {self.lexer.line}: more than {NESTED} blocks inside one another", hint="is this a shell script?"
            )
        nodes: list[Node] = []
        while True:
            self.separators()
            if not self.lexer.peek() or self.lexer.peek() == ")" or self.lexer.peek(2) in (";;", ";&") or self.at_keyword(ends):
                self.depth -= 1
                return tuple(nodes)
            if nodes and self.lexer.peek() == "|" and self.lexer.peek(2) != "||":
                self.lexer.notes.add(
                    self.lexer.line, "a line that begins with |: bash would stop; read as part of the one before"
                )
                self.lexer.take()
            nodes.append(self.chain())

    def chain(self) -> Node:
        lexer = self.lexer
        line, negated = lexer.line, False
        while self.keyword("!"):
            negated = not negated
        first, rest = self.command(), []
        while True:
            lexer.blanks()
            sign = next((each for each in ("&&", "||", "|&", "|") if lexer.text.startswith(each, lexer.at)), "")
            if not sign:
                break
            lexer.take(len(sign))
            lexer.blanks()
            while lexer.peek() == "\n":
                lexer.operator()
                lexer.blanks()
            rest.append((sign[:2] if sign in ("&&", "||") else "|", self.command()))
        return Chain(first, tuple(rest), line, negated) if rest or negated else first

    def command(self) -> Node:
        line = self.lexer.line
        if self.keyword("if"):
            return self.branches(line)
        if self.keyword("case"):
            return self.case(line)
        if self.keyword("for", "select"):
            return self.loop(line)
        for word in ("while", "until"):
            if self.keyword(word):
                condition = self.commands(("do",))
                body = self.block("do", "done")
                return self.redirected(Loop(body, line, condition=condition, negated=word == "until"))
        if self.lexer.peek(2) == "((" and (text := self.lexer.balanced(2, "((", "))")) is not None:
            return Test((), line, text)
        if self.keyword("[["):
            return self.test(line)
        if self.keyword("{"):
            return self.redirected(Group(self.closed("}"), line))
        if self.lexer.peek() == "(":
            self.lexer.take()
            body = self.commands(())
            if self.lexer.take() != ")":
                self.unexpected()
            return self.redirected(Group(body, line))
        if found := FUNCTION.match(self.lexer.text, self.lexer.at):
            self.lexer.take(len(found[0]))
            return Function(found[1] or found[2], (self.command(),), line)
        return self.simple()

    def closed(self, *ends: str) -> tuple[Node, ...]:
        body = self.commands(ends)
        self.expect(*ends)
        return body

    def block(self, opening: str, closing: str) -> tuple[Node, ...]:
        self.expect(opening)
        return self.closed(closing)

    def redirected(self, node: Node) -> Node:
        """Passes over the redirections behind a block."""
        while self.redirection() is not None:
            pass
        return node

    def branches(self, line: int) -> Node:
        found: list[tuple[tuple[Node, ...] | None, tuple[Node, ...]]] = []
        condition: tuple[Node, ...] | None = self.closed("then")
        while True:
            found.append((condition, self.commands(("elif", "else", "fi"))))
            self.separators()
            if self.keyword("elif"):
                condition = self.closed("then")
            elif self.keyword("else"):
                condition = None
            else:
                self.expect("fi")
                return self.redirected(If(tuple(found), line))

    def case(self, line: int) -> Node:
        self.lexer.blanks()
        subject = self.lexer.word()
        self.expect("in")
        found: list[tuple[tuple[Word, ...], tuple[Node, ...]]] = []
        while True:
            self.separators()
            if self.keyword("esac") or subject is None:
                break
            if self.lexer.peek() == "(":
                self.lexer.take()
            patterns: list[Word] = []
            while self.lexer.peek() != ")":
                self.lexer.blanks()
                pattern = self.lexer.word()
                if pattern is None:
                    self.unexpected()
                    break
                patterns.append(pattern)
                self.lexer.blanks()
                if self.lexer.peek() == "|":
                    self.lexer.take()
            self.lexer.take()
            found.append((tuple(patterns), self.commands(("esac",))))
            if self.lexer.peek(2) in (";;", ";&"):
                self.lexer.operator()
        if subject is None:
            self.unexpected()
            raise AssertionError
        return self.redirected(Case(subject, tuple(found), line))

    def loop(self, line: int) -> Node:
        self.lexer.blanks()
        if self.lexer.peek(2) == "((":
            header = (self.lexer.balanced(2, "((", "))") or "").split(";")
            counted = (header[0], header[1], header[2]) if len(header) == 3 else ("", "", "")
            return self.redirected(Loop(self.block("do", "done"), line, counted=counted))
        name = self.lexer.word()
        words: tuple[Word, ...] | None = None
        self.separators()
        if self.keyword("in"):
            found = []
            self.lexer.blanks()
            while (word := self.lexer.word()) is not None:
                found.append(word)
                self.lexer.blanks()
            words = tuple(found)
        return self.redirected(Loop(self.block("do", "done"), line, (name and name.bare) or "", words))

    def test(self, line: int) -> Node:
        """`[[ ... ]]`: operators in it are words."""
        lexer, words = self.lexer, []
        while not self.keyword("]]"):
            lexer.blanks()
            if lexer.peek() == "\n" or lexer.peek() == "":
                if not lexer.peek():
                    self.unexpected()
                lexer.take()
                continue
            word = lexer.word()
            words.append(word or Word((Literal(lexer.operator(), lexer.line, False),), lexer.line))
        return Test(tuple(words), line)

    # --- simple commands

    def simple(self) -> Node:
        lexer, line = self.lexer, self.lexer.line
        assigned: list[Assignment] = []
        words: list[Word | Assignment] = []
        redirected, some = Redirected(), False
        while True:
            lexer.blanks()
            declares = bool(words) and isinstance(words[0], Word) and words[0].bare in DECLARING
            if (not words or declares) and (found := self.assignment()) is not None:
                words.append(found) if words else assigned.append(found)
                continue
            if words and (to_fill_in := TO_FILL_IN.match(lexer.text, lexer.at)):
                words.append(Word((Literal(lexer.take(len(to_fill_in[0])), lexer.line, True),), lexer.line))
                continue
            if (more := self.redirection()) is not None:
                redirected = Redirected(
                    more.heredoc or redirected.heredoc, more.word or redirected.word, more.into or redirected.into
                )
                some = True
                continue
            word = lexer.word()
            if word is None:
                break
            words.append(word)
        if not words and not assigned and not some:
            self.unexpected()
        return Simple(tuple(assigned), tuple(words), line, redirected)

    def assignment(self) -> Assignment | None:
        lexer = self.lexer
        found = ASSIGNED.match(lexer.text, lexer.at)
        if found is None:
            return None
        line = lexer.line
        lexer.take(len(found[0]))
        if lexer.peek() == "(":
            keys, values = self.elements(found[1], line)
            return Assignment(found[1], values, bool(found[3]), line, keys=keys)
        index = self.key(found[2], line) if found[2] is not None else None
        if to_fill_in := TO_FILL_IN.match(lexer.text, lexer.at):
            value = Word((Literal(lexer.take(len(to_fill_in[0])), line, True),), line)
            return Assignment(found[1], value, bool(found[3]), line, index)
        return Assignment(found[1], lexer.word() or Word((), line), bool(found[3]), line, index)

    def key(self, text: str, line: int) -> Word:
        """What stands in the brackets of an assignment."""
        return Lexer(text, self.lexer.notes, line, self.lexer.depth + 1).word() or Word((), line)

    def elements(self, name: str, line: int) -> tuple[tuple[Word | None, ...], tuple[Word, ...]]:
        """The words of `(...)`, with the keys of those that have one."""
        lexer, keys, values = self.lexer, list[Word | None](), list[Word]()
        lexer.take()
        while lexer.peek() != ")":
            lexer.blanks()
            if lexer.peek() == "\n":
                lexer.operator()
                continue
            key = KEYED.match(lexer.text, lexer.at)
            if key:
                lexer.take(len(key[0]))
            word = lexer.word()
            if word is not None or key:
                keys.append(self.key(key[1], line) if key else None)
                values.append(word or Word((), line))
            elif lexer.peek() != ")":
                raise ToolError(f"line {line}: the list {name}=( is not closed", hint="close it with )")
        lexer.take()
        return tuple(keys), tuple(values)

    def redirection(self) -> Redirected | None:
        """Takes `2>&1`, `> file`, `<<END`; None where there is none."""
        lexer = self.lexer
        lexer.blanks()
        number = re.match(r"[0-9]*(?=[<>])", lexer.text[lexer.at : lexer.at + 8])
        at = lexer.at + (len(number[0]) if number else 0)
        signs = ("<<-", "<<<", "&>>", "<<", ">>", ">&", "<&", "&>", ">|", ">", "<")
        sign = next((each for each in signs if lexer.text.startswith(each, at)), "")
        if not sign or lexer.text.startswith(("<(", ">("), at):
            return None
        lexer.take(at + len(sign) - lexer.at)
        lexer.blanks()
        word = lexer.word()
        if word is None:
            return Redirected()
        if sign == "<<<":
            return Redirected(word=word)
        if sign in ("<<", "<<-"):
            quoted = any(isinstance(piece, Literal) and piece.quoted for piece in word.pieces)
            text = "".join(piece.text for piece in word.pieces)
            lexer.heredocs.append(heredoc := Heredoc(text, sign == "<<-", not quoted))
            return Redirected(heredoc=heredoc)
        return Redirected(into=word) if sign in (">", ">|") and not (number and number[0]) else Redirected()
