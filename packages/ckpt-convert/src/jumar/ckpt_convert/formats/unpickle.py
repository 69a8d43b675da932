"""The value tree of a pickle that torch.save wrote, with no code run, no module imported and no tensor byte read.

`pickle.load` calls whatever the file names. Here every global is an `Inert`, a name and no more; calling one looks it
up in a table of builders, or makes another `Inert`. Opcodes that torch.save has no use for are refused; those that
change an object (BUILD, APPEND, SETITEM, ...) work on the few types listed here. That takes the opcode table, so the
base is Python's unpickler: the one in C lets BUILD set attributes of any object, and allocates a length field's worth.
Work is bounded too: builders copy no more than the pickle spells out (`spend`), and trees can be walked (`check_tree`).
"""

from __future__ import annotations

import _compat_pickle
import argparse
import io
import pickle
import pickletools
import reprlib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jumar.ckpt_convert.formats.builders import BUILDERS, DAMAGED, Locate, Storage, storage
from jumar.ckpt_convert.formats.inert import Inert as Inert
from jumar.ckpt_convert.formats.inert import check_tree, hashes_cheaply, printable
from jumar.ckpt_convert.formats.torch_names import BYTE_HOLDERS, UNREADABLE, is_inert, is_inert_call
from jumar.schema.errors import ToolError

_MAX_NAME = 200
_OPCODES = frozenset(
    """PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING
    SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST EMPTY_TUPLE
    EMPTY_DICT EMPTY_SET TUPLE TUPLE1 TUPLE2 TUPLE3 BINGET LONG_BINGET BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL
    BINPERSID""".split()
)
"""What protocols 2 to 5 need and Python's own methods do safely: values, the memo, and names handed to `find_class`."""

_ADD: dict[type, Callable[[Any, list[Any]], None]] = {list: list.extend, dict: dict.update, set: set.update}


def unpickle(data: bytes, file: Path, locate: Locate) -> Any:
    """The value tree in `data`: plain values, dict, list, tuple, set, Namespace, `TensorRef` and `Inert`.

    file:   the archive, for the refs and for messages.
    locate: storage key -> byte offset and length of its record in `file`.
    OrderedDict and defaultdict come as dict, deque as list, torch.Size as tuple, a Parameter as its tensor. Tensors
    that share a storage give refs to the same bytes. The tree is finite and at most `inert.MAX_DEPTH` deep.
    Raises ToolError for a global or opcode that is refused, a tensor that reaches out of its record, a broken pickle.
    """
    return guarded(Unpickler(data, file, locate), file, check_tree)


def guarded(reader: Unpickler, file: Path, check: Callable[[object], None]) -> Any:
    """What a reader reads, checked. Raises ToolError whatever goes wrong."""
    try:
        value = reader.load()
        check(value)
    except ToolError:
        raise
    except Exception as error:  # a hostile pickle fails in any way it likes; all of them are bad input
        reason = ascii(str(error))[1:-1][:200]
        what = "" if file.name.startswith(".") else "data.pkl "
        raise ToolError(f"{file}: {what}cannot be read: {type(error).__name__}: {reason}", hint=DAMAGED) from error
    return value


def _refuse_opcode(name: str) -> Callable[[Any], None]:
    def refuse(reader: Unpickler) -> None:
        raise reader.refusal(f"opcode {name}")

    return refuse


def _opcodes(own: dict[str, Any]) -> dict[int, Callable[[Any], None]]:
    """Opcode -> method: those of `own`, Python's for `_OPCODES`, and a refusal for the rest (INST, OBJ, EXT1, ...)."""
    table = {}
    for opcode in pickletools.opcodes:
        code = ord(opcode.code)
        method = own.get(f"load_{opcode.name.lower()}")
        table[code] = method or (pickle._Unpickler.dispatch[code] if opcode.name in _OPCODES else _refuse_opcode(opcode.name))
    return table


class Unpickler(pickle._Unpickler):
    """Reads one pickle. Every object that it makes is plain, a Namespace, an `Inert`, a `Storage` or a `TensorRef`."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes, file: Path, locate: Locate) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self.file, self.locate = file, locate
        self.budget = 2 * len(data) + 65536

    def refusal(self, what: str) -> ToolError:
        return ToolError(
            f"{self.file}: the pickle asks for {what}, which is refused",
            hint="unpickling it could run code. If you trust the file, load it with torch where it was made, "
            "and save it again without that object",
        )

    def spend(self, items: int) -> None:
        """Count what is copied: a value that stands in the pickle once cannot be copied a million times."""
        self.budget -= items
        if self.budget < 0:
            raise ValueError("the pickle copies more than it holds")

    # Globals and what is made by calling them

    def find_class(self, module: str, name: str) -> Inert:
        renamed = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), renamed)  # protocol 2 has the names of Python 2
        if module == "torch._utils" and name in UNREADABLE:
            raise ToolError(
                f"{self.file}: holds {UNREADABLE[name]} ({module}.{name}); only dense tensors can be read",
                hint="load it with torch, make it dense (`.to_dense()`, `.dequantize()`) or drop it, and save again",
            )
        if len(module) + len(name) > _MAX_NAME or not ((module, name) in BUILDERS or is_inert(module, name)):
            raise self.refusal(printable(module, name))
        return Inert(module, name)

    def call(self, function: object, args: object) -> object:
        if type(function) is not Inert or function.args is not None or type(args) is not tuple:
            raise ValueError("the pickle calls something that is not a global")
        module, name = function.module, function.name
        if (module, name) in BUILDERS:
            return BUILDERS[module, name](self, *args)
        if is_inert_call(module, name):
            return Inert(module, name, () if module.split(".")[0] in BYTE_HOLDERS else args)
        raise self.refusal(f"a call of {printable(module, name)}")

    def load_reduce(self) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, args))

    load_newobj = load_reduce  # to make an object without its `__init__` is the same here

    def load_build(self) -> None:
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def build(self, target: Any, state: Any) -> None:
        """Gives an object its state."""
        if type(target) is Inert and target.args is not None:
            target.state = None if target.module.split(".")[0] in BYTE_HOLDERS else state
        elif type(target) in (argparse.Namespace, types.SimpleNamespace) and type(state) is dict:
            self.spend(len(state))
            for key, value in state.items():
                if type(key) is not str or hasattr(type(target), key):
                    raise ValueError(f"a Namespace with the attribute {reprlib.repr(key)}")
                vars(target)[key] = value
        elif type(target) is not dict:  # a dict's attributes are dropped: `_metadata` of a Module's state_dict
            raise ValueError(f"the pickle sets attributes of a {type(target).__name__}")

    # Containers: only the real ones change; what is added to an `Inert` is dropped

    def fill(self, kind: type, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is kind:
            _ADD[kind](target, items)
        elif type(target) is not Inert:
            raise ValueError(f"the pickle adds items to a {type(target).__name__}")

    def keys(self, items: list[Any]) -> list[Any]:
        self.spend(len(items))
        for item in items:
            if not hashes_cheaply(item):
                raise ValueError(f"a {type(item).__name__} as key of a dict or item of a set")
        return items

    def load_append(self) -> None:
        item = self.stack.pop()
        self.fill(list, [item])

    def load_appends(self) -> None:
        items = self.pop_mark()
        self.fill(list, items)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.fill(dict, [(*self.keys([key]), value)])

    def load_setitems(self) -> None:
        items = self.pop_mark()
        self.fill(dict, list(zip(self.keys(items[::2]), items[1::2], strict=True)))

    def load_additems(self) -> None:
        items = self.pop_mark()
        self.fill(set, self.keys(items))

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.stack.append(frozenset(self.keys(items)))

    def persistent_load(self, pid: object) -> Storage:
        return storage(self.file, pid, self.locate)

    dispatch = _opcodes(locals())
