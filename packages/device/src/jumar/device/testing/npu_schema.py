"""What torch-npu's operators take: the schemas of a wheel, parsed by torch, and its shape kernels on CPU torch."""

from __future__ import annotations

import sys
import types
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jumar.device.testing.wheels import META, YAMLS

OWN_SECTIONS = ("custom", "symint", "autograd", "quant")
# Data types that only torch_npu has, by the numbers that the shape kernels compare with.
DTYPES = {"int4": 285, "hifloat8": 290, "float8_e8m0fnu": 293, "float4_e2m1fn_x2": 296, "float4_e1m2fn_x2": 297}


@dataclass(frozen=True, slots=True)
class Call:
    """A call of an operator as it was made: its name, and the kinds of what it was given ("Tensor", "int[]", ...)."""

    name: str
    args: tuple[str, ...]
    kwargs: tuple[tuple[str, str], ...]


def kind(value: object) -> str:
    """How a schema would call the type of `value`."""
    import torch

    if isinstance(value, torch.Tensor):
        return "Tensor"
    if isinstance(value, (list, tuple)):
        return f"{kind(value[0])}[]" if value else "[]"
    return {bool: "bool", int: "int", float: "float", str: "str", type(None): "None"}.get(type(value), type(value).__name__)


def schema_texts(wheel: Path) -> list[str]:
    """The schemas of torch-npu's own operators, as its YAML files write them."""
    import yaml

    texts: dict[str, None] = {}  # some stand in both files
    with zipfile.ZipFile(wheel) as archive:
        for name in YAMLS:
            if name not in archive.namelist():
                continue
            sections = yaml.safe_load(archive.read(name))
            entries = (entry for section in OWN_SECTIONS for entry in sections.get(section) or [])
            texts.update(
                (text, None) for entry in entries if "(" in (text := entry["func"] if isinstance(entry, dict) else entry)
            )
    return list(texts)


def parse_schemas(wheel: Path) -> dict[str, list[Any]]:
    """Operator name -> its overloads' torch.FunctionSchema. What this torch cannot parse is left out."""
    import torch

    schemas: dict[str, list[Any]] = {}
    for text in schema_texts(wheel):
        try:
            schema = torch._C.parse_schema(f"npu::{text}")
        except RuntimeError:
            continue
        schemas.setdefault(schema.name.removeprefix("npu::"), []).append(schema)
    return schemas


def bind(overloads: Sequence[Any], call: Call) -> str | None:
    """None if one overload takes the call; else what is wrong with the one that fits best."""
    wrong = [_problems(schema, call) for schema in overloads]
    if not wrong:
        return "no such operator"
    best = min(wrong, key=len)
    return "; ".join(best) or None


def _problems(schema: Any, call: Call) -> list[str]:
    positional = [a for a in schema.arguments if not a.kwarg_only]
    by_name = {a.name: a for a in schema.arguments}
    outs = [a.name for a in schema.arguments if a.is_out]
    given: dict[str, str] = {}
    problems = []
    for index, what in enumerate(call.args):
        if index < len(positional):
            given[positional[index].name] = what
        else:
            problems.append(f"takes {len(positional)} positional arguments, not {len(call.args)}")
            break
    for name, what in call.kwargs:
        if name == "out" and outs:  # the Python binding takes a tuple for all of them
            given.update(dict.fromkeys(outs, "Tensor"))
        elif name in by_name:
            given[name] = what
        else:
            problems.append(f"no argument {name}")
    problems += [f"{n} is {by_name[n].type}, not {what}" for n, what in given.items() if not _fits(str(by_name[n].type), what)]
    missing = [a.name for a in schema.arguments if a.name not in given and not a.has_default_value()]
    return problems + [f"{name} is not given" for name in missing]


def _fits(declared: str, what: str) -> bool:
    optional = declared.startswith("Optional[")
    declared = declared.removeprefix("Optional[").removesuffix("]") if optional else declared
    declared = declared.replace("List[", "").replace("]", "") + "[]" if declared.startswith("List[") else declared
    if what == "None":
        return optional
    if what == "[]":
        return declared.endswith("[]")
    taken = {"number": ("int", "float", "bool"), "float": ("float", "int"), "int": ("int",)}
    return what == declared or what in taken.get(declared, ())


def define_operators(wheel: Path) -> tuple[Any, dict[str, Any]]:
    """Register the wheel's schemas as torch.ops.npu.*, and its shape kernels for tensors on "meta". Once a process.

    Returns what keeps the registrations alive. Raises RuntimeError if the shape kernels do not load.
    """
    import torch

    library = torch.library.Library("npu", "DEF")  # type: ignore[no-untyped-call]
    for text in schema_texts(wheel):
        try:
            library.define(text)  # type: ignore[no-untyped-call]
        except RuntimeError:  # an overload that is there twice, or types of a newer torch: absent, and a call says so
            continue
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read(META).decode()
    module = types.ModuleType("torch_npu_meta_registrations")
    with _stubs(), _forgiving_impl():
        exec(compile(source, META, "exec"), module.__dict__)
    return library, module.__dict__


@contextmanager
def _stubs() -> Iterator[None]:
    """Modules of torch_npu that the shape kernels import, for as long as they are loaded."""

    class Codes:
        def __getattr__(self, name: str) -> str:
            return name

    stubs: Mapping[str, dict[str, Any]] = {
        "torch_npu": {"__getattr__": _dtype},
        "torch_npu.utils": {},
        "torch_npu.utils._error_code": dict(ErrCode=Codes(), ops_error=lambda *words: str(words)),
        "torch_npu.npu": {},
        "torch_npu.npu.utils": dict(get_cann_version=lambda *_: "8.5.0"),
        "torch_npu.npu._backends": dict(get_soc_version=lambda: 220),
    }
    before = {name: sys.modules.get(name) for name in stubs}
    for name, contents in stubs.items():
        module = types.ModuleType(name)
        module.__dict__.update(contents, __path__=[])
        sys.modules[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                del sys.modules[name]
            else:
                sys.modules[name] = old


def _dtype(name: str) -> int:
    if name not in DTYPES:
        raise AttributeError(name)
    return DTYPES[name]


@contextmanager
def _forgiving_impl() -> Iterator[None]:
    """Kernels for operators that are not defined are passed over: those of newer torch, and of other libraries."""
    import torch.library

    real = torch.library.impl

    def impl(*where: Any) -> Any:
        def register(function: Any) -> Any:
            try:
                return real(*where)(function)
            except RuntimeError:
                return function

        return register

    torch.library.impl = impl  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.library.impl = real
