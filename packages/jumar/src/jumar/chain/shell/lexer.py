"""Text to words and operators, as bash parts it: quotes, comments, continued lines, `$...`."""

from __future__ import annotations

import re
from collections.abc import Callable

from jumar.chain.shell.words import Arithmetic, Heredoc, Literal, Notes, Piece, Unread, Variable, Word
from jumar.schema.errors import ToolError

OPERATORS = (";;&", "<<<", "&>>", ";;", ";&", "&&", "||", "<<-", "<<", ">>", ">&", "<&", "&>", ">|", "|&", *";&|<>()")
ENDS = frozenset(" \t\n;&|<>()")
PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[0-9]+|[@*#?$!-]")
OPERATOR = re.compile(r":[-=+?]|##|%%|//|\^\^|,,|/[#%]|[-=+?#%/^,:@]")
BROKEN = re.compile(r"\\[ \t]+(?:\n|\Z)|\\\Z")
NESTED = 50
"""Quotes and substitutions inside one another; more is no script that a person wrote."""


class Lexer:
    """A cursor over a script. `first`: the number of its first line."""

    def __init__(self, text: str, notes: Notes, first: int = 1, depth: int = 0) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at, self.line, self.notes, self.depth = 0, first, notes, depth
        self.heredocs: list[Heredoc] = []
        if depth > NESTED:
            raise ToolError(f"line {first}: more than {NESTED} substitutions inside one another", hint="is this a shell script?")

    def peek(self, length: int = 1) -> str:
        return self.text[self.at : self.at + length]

    def take(self, length: int = 1) -> str:
        taken = self.peek(length)
        self.at += length
        self.line += taken.count("\n")
        return taken

    # --- between words

    def blanks(self) -> None:
        """Passes over blanks, continued lines and comments; stops at a line's end."""
        while True:
            if self.peek() in (" ", "\t") and self.peek():
                self.take()
            elif not self.continuation():
                break
        if self.peek() == "#":
            while self.peek() not in ("\n", ""):
                self.take()

    def continuation(self) -> bool:
        """Takes a backslash that ends a line; one with blanks behind it too, which bash would not."""
        if self.peek(2) == "\\\n":
            self.take(2)
            return True
        if broken := BROKEN.match(self.text, self.at):
            if broken[0].endswith("\n"):
                self.notes.add(
                    self.line, "blanks after the backslash: bash would not go on with the next line; read as if it did"
                )
            self.take(len(broken[0]))
            return True
        return False

    def operator(self) -> str:
        """The operator here, a line's end among them; empty where a word begins or nothing is left."""
        if self.peek() == "\n":
            self.take()
            self.skip_heredocs()
            return "\n"
        return next((self.take(len(each)) for each in OPERATORS if self.text.startswith(each, self.at)), "")

    def skip_heredocs(self) -> None:
        """Takes the texts of here-documents, which begin where a line ends."""
        for each in self.heredocs:
            each.line, lines = self.line, []
            while self.peek():
                end = self.text.find("\n", self.at)
                line = self.take((end if end >= 0 else len(self.text)) + 1 - self.at).rstrip("\n")
                line = line.lstrip("\t") if each.tabs else line
                if line == each.delimiter:
                    break
                lines.append(line)
            each.text = "\n".join(lines)
        self.heredocs.clear()

    # --- words

    def word(self) -> Word | None:
        """The word that begins here; None at an operator or the end."""
        if self.peek(2) in ("<(", ">("):
            return Word((self.process(),), self.line)
        line, pieces = self.line, self.pieces(lambda: self.peek() in ENDS)
        return Word(tuple(pieces), line) if pieces else None

    def pieces(self, ended: Callable[[], bool]) -> list[Piece]:
        """Pieces until `ended` says so, outside quotes."""
        found: list[Piece] = []
        plain, line = "", self.line
        while self.peek() and not ended():
            char = self.peek()
            if char == "\\":
                if self.continuation():
                    continue
                self.take()
                found += [Literal(plain, line, False)] if plain else []
                found.append(Literal(self.take(), self.line, True))
                plain, line = "", self.line
            elif char in "'\"$`":
                if char == "$" and not self.expands():
                    plain += self.take()
                    continue
                found += [Literal(plain, line, False)] if plain else []
                found += self.quoted() if char in "'\"" or self.peek(2) in ("$'", '$"') else [self.dollar(quoted=False)]
                plain, line = "", self.line
            else:
                if not plain:
                    line = self.line
                plain += self.take()
        return [*found, *([Literal(plain, line, False)] if plain else [])]

    def expands(self) -> bool:
        """Whether this `$` begins something."""
        after = self.text[self.at + 1 : self.at + 2]
        return after in ("{", "(", "'", '"') or bool(PARAMETER.match(self.text, self.at + 1))

    def quoted(self) -> list[Piece]:
        """What stands in quotes, a piece for each line."""
        start = self.line
        opening = self.take(2 if self.peek() == "$" else 1)
        double = opening.endswith('"')
        found: list[Piece] = []
        text, line = "", self.line

        def close_line() -> None:
            nonlocal text
            if text:
                found.append(Literal(text, line, True))
            text = ""

        while self.peek() != opening[-1]:
            if not self.peek():
                raise ToolError(f"line {start}: the quote that begins here is not closed", hint=f"close it with {opening[-1]}")
            if double and self.peek() == "\\":
                if not self.continuation():
                    pair = self.take(2)
                    text += pair[1] if pair[1:] in ("$", "`", '"', "\\") else pair
            elif double and self.peek() in "$`" and (self.peek() == "`" or self.expands_in_quotes()):
                close_line()
                found.append(self.dollar(quoted=True))
            elif opening == "$'" and self.peek() == "\\":
                pair = self.take(2)
                text += {"n": "\n", "t": "\t"}.get(pair[1:], pair[1:])
            else:
                text += self.take()
            if self.line != line:
                close_line()
                line = self.line
        self.take()
        close_line()
        return found or [Literal("", start, True)]

    def expands_in_quotes(self) -> bool:
        return self.expands() and self.peek(2) not in ("$'", '$"')

    # --- what begins with a dollar

    def dollar(self, *, quoted: bool) -> Piece:
        line = self.line
        if self.peek() == "`":
            return Unread(self.until_backquote(), line, quoted)
        if self.peek(3) == "$((" and (text := self.balanced(3, "((", "))")) is not None:
            return Arithmetic(text, line, quoted)
        if self.peek(2) == "$(":
            return Unread("$(" + self.substitution() + ")", line, quoted)
        if self.peek(2) == "${":
            return self.braced(quoted)
        self.take()
        name = self.take(len(self.parameter()))
        return Variable(name, line, quoted, "$" + name)

    def parameter(self) -> str:
        found = PARAMETER.match(self.text, self.at)
        name = found[0] if found else ""
        return name[0] if name.isdigit() else name  # $10 is ${1}0

    def process(self) -> Unread:
        """`<(command)`."""
        line, sign = self.line, self.peek()
        return Unread(f"{sign}({self.substitution()})", line, True)

    def until_backquote(self) -> str:
        start, line = self.at, self.line
        self.take()
        while self.peek() != "`":
            if not self.peek():
                raise ToolError(f"line {line}: the backquote that begins here is not closed", hint="close it with `")
            self.take(2 if self.peek() == "\\" else 1)
        self.take()
        return self.text[start : self.at]

    def balanced(self, length: int, opening: str, closing: str) -> str | None:
        """What stands between `$((` and `))`; None where that is no arithmetic."""
        depth, here = 0, self.at + length
        while here < len(self.text):
            if depth == 0 and self.text.startswith(closing, here):
                text = self.text[self.at + length : here]
                self.take(here + len(closing) - self.at)
                return text
            depth += {"(": 1, ")": -1}.get(self.text[here], 0)
            if depth < 0:
                return None
            here += 1
        return None

    def substitution(self) -> str:
        """What stands between `$(` and its `)`."""
        line = self.line
        inner = Lexer(self.text[self.at + 2 :], Notes(), self.line, self.depth + 1)
        depth = 0
        while inner.peek() and not (depth == 0 and inner.peek() == ")"):
            if inner.peek() in "'\"`$\\":
                inner.pieces(lambda: inner.peek() not in "'\"`$\\")
            else:
                depth += {"(": 1, ")": -1}.get(inner.take(), 0)
        if not inner.peek():
            raise ToolError(f"line {line}: the $( that begins here is not closed", hint="close it with )")
        text = self.peek(2 + inner.at)[2:]
        self.take(3 + inner.at)
        return text

    def braced(self, quoted: bool) -> Piece:
        """`${...}`."""
        start, line = self.at, self.line
        self.take(2)
        prefix = self.take() if self.peek() in ("#", "!") and self.text[self.at + 1 : self.at + 2] != "}" else ""
        found = PARAMETER.match(self.text, self.at)
        name = self.take(len(found[0])) if found else ""
        index = ""
        if self.peek() == "[":
            end = self.text.find("]", self.at)
            index = self.take(end + 1 - self.at)[1:-1] if end >= 0 else ""
        sign = OPERATOR.match(self.text, self.at)
        operator = self.take(len(sign[0])) if sign else ""
        self.depth += 1
        if self.depth > NESTED:
            raise ToolError(f"line {line}: more than {NESTED} ${{...}} inside one another", hint="is this a shell script?")
        argument = tuple(self.pieces(lambda: self.peek() == "}"))
        self.depth -= 1
        if self.take() != "}":
            raise ToolError(f"line {line}: the ${{ that begins here is not closed", hint="close it with }")
        return Variable(name, line, quoted, self.text[start : self.at], index, prefix + operator, argument)
