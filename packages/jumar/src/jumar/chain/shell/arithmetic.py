"""Numbers of `$((...))` and `((...))`, as bash reckons them: 64 bits, C's operators and their order."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

TOKEN = re.compile(
    r"\s*(0[xX][0-9a-fA-F]+|\d+|\$?\{?[A-Za-z_]\w*\}?|<<=|>>=|\*\*|<<|>>|[-+*/%&|^<>=!]=|&&|\|\||\+\+|--|[-+*/%<>!~&|^?:=,()])"
)
LONGEST = 1000
BITS = 64
Find = Callable[[str], str | None]
Set = Callable[[str, int], None]


class Unknown(Exception):
    """A number that cannot be told."""


def _divided(a: int, b: int) -> int:
    if not b:
        raise Unknown
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: Mapping[str, tuple[int, Callable[[int, int], int]]] = {
    "||": (1, lambda a, b: int(bool(a) or bool(b))),
    "&&": (2, lambda a, b: int(bool(a) and bool(b))),
    "|": (3, lambda a, b: a | b),
    "^": (4, lambda a, b: a ^ b),
    "&": (5, lambda a, b: a & b),
    "==": (6, lambda a, b: int(a == b)),
    "!=": (6, lambda a, b: int(a != b)),
    "<": (7, lambda a, b: int(a < b)),
    "<=": (7, lambda a, b: int(a <= b)),
    ">": (7, lambda a, b: int(a > b)),
    ">=": (7, lambda a, b: int(a >= b)),
    "<<": (8, lambda a, b: a << (b % BITS)),
    ">>": (8, lambda a, b: a >> (b % BITS)),
    "+": (9, lambda a, b: a + b),
    "-": (9, lambda a, b: a - b),
    "*": (10, lambda a, b: a * b),
    "/": (10, _divided),
    "%": (10, lambda a, b: a - b * _divided(a, b)),
    "**": (11, lambda a, b: pow(a, b, 1 << BITS) if b >= 0 else 0),
}
"""Operators, how strongly they bind, and what they do."""


def calculate(text: str, find: Find, set_: Set | None = None) -> int | None:
    """The number that an expression is; None where a variable of it is not known, or it is not understood.

    find: a variable's text; set_: what an assignment in it does, where there may be one
    """
    if len(text) > LONGEST:
        return None
    tokens, at = [], 0
    while at < len(text.rstrip()):
        found = TOKEN.match(text, at)
        if found is None:
            return None
        tokens.append(found[1])
        at = found.end()
    try:
        reckoner = _Reckoner(tokens, find, set_)
        return reckoner.all() if tokens else 0
    except (Unknown, RecursionError):
        return None


class _Reckoner:
    def __init__(self, tokens: list[str], find: Find, set_: Set | None) -> None:
        self.tokens, self.at, self.find, self.set_ = tokens, 0, find, set_

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Unknown
        self.at += 1
        return token

    def all(self) -> int:
        number = self.several()
        if self.peek():
            raise Unknown
        return number

    def several(self) -> int:
        number = self.choice()
        while self.peek() == ",":
            self.take()
            number = self.choice()
        return number

    def choice(self) -> int:
        """Assignments and `a ? b : c`."""
        name, sign = self.peek(), self.tokens[self.at + 1] if self.at + 1 < len(self.tokens) else ""
        if _named(name) and (sign == "=" or (sign.endswith("=") and sign[:-1] in BINARY and sign not in BINARY)):
            self.at += 2
            right = self.choice()
            return self.assigned(name, right if sign == "=" else BINARY[sign[:-1]][1](self.number(name), right))
        number = self.binary(1)
        if self.peek() != "?":
            return number
        self.take()
        first = self.several()
        self.take(":")
        second = self.choice()
        return first if number else second

    def binary(self, weakest: int) -> int:
        left = self.unary()
        while (found := BINARY.get(self.peek())) is not None and found[0] >= weakest:
            sign = self.take()
            left = _wrapped(found[1](left, self.binary(found[0] + (sign != "**"))))
        return left

    def unary(self) -> int:
        token = self.take()
        if token in ("+", "-", "!", "~"):
            number = self.unary()
            return {"+": number, "-": -number, "!": int(not number), "~": ~number}[token]
        if token in ("++", "--"):
            name = self.take()
            return self.assigned(name, self.number(name) + (1 if token == "++" else -1))
        if token == "(":
            number = self.several()
            self.take(")")
            return number
        if token[0].isdigit():
            octal = token[0] == "0" and token.isdecimal()
            try:
                return _wrapped(int(token, 8 if octal else 0))
            except ValueError:
                raise Unknown from None
        number = self.number(token)
        if self.peek() in ("++", "--"):
            self.assigned(token, number + (1 if self.take() == "++" else -1))
        return number

    def number(self, token: str) -> int:
        """The number of a variable. One that holds an expression is not gone into."""
        if not _named(token):
            raise Unknown
        text = self.find(token.strip("${}"))
        if text is None or not re.fullmatch(r"\s*(-?\d{1,18})?\s*", text):
            raise Unknown
        return int(text) if text.strip() else 0

    def assigned(self, name: str, number: int) -> int:
        if self.set_ is None or not name.isidentifier():
            raise Unknown
        self.set_(name, number := _wrapped(number))
        return number


def _named(token: str) -> bool:
    return token.strip("${}").isidentifier()


def _wrapped(number: int) -> int:
    """In 64 bits, as bash has it."""
    return (number + (1 << BITS - 1)) % (1 << BITS) - (1 << BITS - 1)
