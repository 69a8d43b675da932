"""What stands in a checkpoint's value tree for classes, enums and functions: their names. And the tree's bounds."""

from __future__ import annotations

import argparse
import reprlib
import types
from collections.abc import Iterable
from typing import Any

from jumar.ckpt_convert.tensors import TensorRef

MAX_DEPTH = 200
MAX_NODES = 50_000_000
SCALARS = frozenset((str, int, float, bool, complex, bytes, type(None)))
_LEAVES = frozenset((*SCALARS, TensorRef, bytearray, range, slice))


class Inert:
    """A global of the pickle by name, or what calling it would have made: nothing is imported and nothing is called.

    module, name: as pickled, e.g. "torch", "bfloat16"; "megatron.core.enums", "ModelType".
    args:         None for the bare global; else the arguments that it was called with (an enum's value is `args[0]`).
    state:        what the object's attributes would have been set from, or None.
    Equal and hashable by value. Items of list and dict subclasses are dropped; so are numpy's arguments and state.
    """

    __slots__ = ("args", "module", "name", "state")

    def __init__(self, module: str, name: str, args: tuple[Any, ...] | None = None, state: object = None) -> None:
        self.module, self.name, self.args, self.state = module, name, args, state

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Inert):
            return NotImplemented
        mine, theirs = (self.module, self.name, self.args), (other.module, other.name, other.args)
        return mine == theirs and self.state == other.state

    def __hash__(self) -> int:
        plain = tuple(arg for arg in self.args or () if type(arg) in SCALARS)
        return hash((self.module, self.name, plain))

    def __repr__(self) -> str:
        args = [reprlib.repr(arg) if type(arg) in SCALARS else "..." for arg in (self.args or ())[:4]]
        call = "" if self.args is None else f"({', '.join(args)})"
        return f"Inert({printable(self.module, self.name)}{call})"


def printable(module: str, name: str) -> str:
    """`module.name` for a message: ASCII, at most 200 characters, nothing that a terminal would obey."""
    return ascii(f"{module}.{name}"[:200])[1:-1]


def hashes_cheaply(key: object) -> bool:
    """If `key` is fit for a dict or set: plain, inert with at most 4 plain arguments, or a tuple of at most 16 such.

    Tuples in tuples, each holding the one before twice, would take 2^n steps to hash.
    """
    if type(key) is tuple and len(key) <= 16:
        return all(type(part) is not tuple and hashes_cheaply(part) for part in key)
    if type(key) is Inert:
        args = key.args or ()
        return len(args) <= 4 and all(type(arg) in SCALARS for arg in args) and key.state is None
    return type(key) in SCALARS


def check_tree(root: object) -> None:
    """Raise ValueError for a tree that holds anything but values, or that recursive code could not walk.

    That is one that holds itself, is deeper than MAX_DEPTH, or has shared parts that unfold to over MAX_NODES values.
    """
    seen: dict[int, tuple[int, int]] = {}  # id -> nodes, height

    def visit(value: object, depth: int) -> tuple[int, int]:
        parts = _parts(value)
        if parts is None:
            if type(value) not in _LEAVES:
                raise ValueError(f"a {type(value).__name__} stands where a value should")
            return 1, 0
        if id(value) not in seen:
            nodes, height = 1, 0
            for part in parts:
                if depth == MAX_DEPTH:
                    raise ValueError(f"values are nested more than {MAX_DEPTH} deep, or within themselves")
                part_nodes, part_height = visit(part, depth + 1)
                nodes, height = nodes + part_nodes, max(height, part_height + 1)
            seen[id(value)] = nodes, height
        nodes, height = seen[id(value)]
        if depth + height > MAX_DEPTH or nodes > MAX_NODES:
            raise ValueError(f"values are nested more than {MAX_DEPTH} deep, or unfold to more than {MAX_NODES}")
        return nodes, height

    visit(root, 0)


def _parts(value: object) -> Iterable[object] | None:
    """What `value` holds; None for a leaf."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return value
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return vars(value).values()
    if isinstance(value, Inert):
        return (value.args, value.state)
    return None
