"""Which chat templates put the contents of messages unchanged between fixed texts, and for which contents that is proven.

A template is read once, without running it (an abstract interpretation of its syntax tree). What an expression may hold is a
set of kinds: FIXED is the same whatever the contents are, CONTENT is one content unchanged, TEXT fixed texts and contents
joined. What is done with a content either keeps it, or observes it in a way whose outcome is the same for all *plain* contents:
`'</think>' in content` is false for all that do not hold it. These conditions are collected. Names are taken together wherever
they are set.

Whatever is not known to be such is *unproven*, and in the `guarded` copy of the template it raises. So a conversation that the
guarded copy renders without raising takes the same way through the template as every other conversation with the same roles and
plain contents (by induction over the steps of the two runs: equal FIXED values, the same branches), and its text differs from
theirs in the contents alone. A message has two keys here, role and content, both str.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

FIXED, CONTENT, TEXT, MESSAGE, MESSAGES = "FIXED", "CONTENT", "TEXT", "MESSAGE", "MESSAGES"
NAMESPACE, LOOP, MACRO = "NAMESPACE", "LOOP", "MACRO"
Kinds = frozenset[str]
ONLY_FIXED: Kinds = frozenset({FIXED})
ANY_TEXT: Kinds = frozenset({FIXED, CONTENT, TEXT})

# The pieces of a content that does not hold the separator, by method: at which places the content stands, where nothing.
PIECES: dict[str, dict[int, str]] = {
    "split": {0: CONTENT, -1: CONTENT},
    "rsplit": {0: CONTENT, -1: CONTENT},
    "partition": {0: CONTENT, 1: FIXED, 2: FIXED, -1: FIXED},
    "rpartition": {0: FIXED, 1: FIXED, 2: CONTENT, -1: CONTENT},
}
STRIPS = {"strip": ("starts", "ends"), "lstrip": ("starts",), "rstrip": ("ends",)}
TYPE_TESTS = "defined undefined none string mapping iterable sequence number integer float boolean true false".split()
FUNCTIONS = {"range", "strftime_now", "dict", "raise_exception", "namespace"}
# Filters that make fixed values of fixed values. Not here: `random`; what makes Markup, which escapes what is added to it.
FILTERS = """abs capitalize center count dictsort first float format indent int items join last length list lower max min
replace reverse round sort string sum title tojson trim truncate unique upper wordcount""".split()
SELECTS = {"select": 0, "reject": 0, "selectattr": 1, "rejectattr": 1}  # filters by a test, and which argument names it
MESSAGES_FILTERS: dict[str, Kinds] = {
    **dict.fromkeys(("length", "count"), ONLY_FIXED),
    **dict.fromkeys(("first", "last"), frozenset({FIXED, MESSAGE})),
    **dict.fromkeys(("list", "reverse"), frozenset({MESSAGES})),
}
LOOP_FIXED = "index index0 revindex revindex0 first last length depth depth0".split()
HIDDEN = ("self", "super", "caller", "varargs", "kwargs")  # names that Jinja binds itself


class Unproven(Exception):
    """Of an expression nothing is known; and the guarded template came to it."""


@dataclass
class Plain:
    """What a content must be: none of `unequal`, without any of `without`, no such beginning or end, nor white space there."""

    unequal: set[str] = field(default_factory=set)
    without: set[str] = field(default_factory=set)
    starts: set[str] = field(default_factory=set)
    ends: set[str] = field(default_factory=set)
    stripped: bool = False

    def predicate(self) -> Callable[[str], bool]:
        unequal, without, starts, ends = (tuple(sorted(texts)) for texts in (self.unequal, self.without, self.starts, self.ends))
        stripped = self.stripped

        def plain(text: str) -> bool:
            if text in unequal or text.startswith(starts) or text.endswith(ends):
                return False
            if stripped and len(text.strip()) != len(text):
                return False
            for piece in without:  # noqa: SIM110  # any() is three times as slow
                if piece in text:
                    return False
            return True

        return plain


@dataclass(frozen=True, slots=True)
class Opaque:
    """plain: whether a content is plain. guarded: the template, raising Unproven where nothing is known."""

    plain: Callable[[str], bool]
    guarded: Any


def analyse(environment: Any, source: str, forbidden: Iterable[str] = ()) -> Opaque | None:
    """None: there are statements that are not known here (blocks, imports). forbidden: what is in no plain content."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    tree = environment.parse(source)
    analysis = _Analysis(environment, tree)
    try:
        analysis.run()
    except Unproven:
        return None

    class Guard(NodeTransformer):
        def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
            if id(node) not in analysis.unproven:
                return self.generic_visit(node, *args, **kwargs)
            call = nodes.Call(nodes.EnvironmentAttribute("unproven"), [], [], None, None, lineno=node.lineno)
            call.set_environment(environment)
            return call

    def unproven() -> None:
        raise Unproven

    environment.unproven = unproven
    analysis.plain.without.update(forbidden)
    return Opaque(analysis.plain.predicate(), environment.from_string(Guard().visit(tree)))


class _Analysis:
    """kinds() of expressions, run() over statements; methods named after jinja2.nodes, in lower case."""

    def __init__(self, environment: Any, tree: Any) -> None:
        from jinja2 import nodes

        self.tree, self.functions = tree, set(environment.globals)
        # By name, ".attribute" of namespaces, and "loop.item" for what is looped over.
        self.names: dict[str, set[str]] = defaultdict(set)
        self.names["messages"].add(MESSAGES)
        self.names["loop"].add(LOOP)
        self.stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
        self.macros: dict[str, list[Any]] = defaultdict(list)
        for macro in tree.find_all(nodes.Macro):
            self.macros[macro.name].append(macro)
            self.names[macro.name].add(MACRO)

    def run(self) -> None:
        """To the fixed point: names only gain kinds. Unproven: a statement that is not known."""
        size = -1
        while size != (size := sum(map(len, self.names.values()))):
            self.plain, self.unproven = Plain(), set[int]()
            self.body(self.tree.body)

    def kinds(self, node: Any, allowed: Kinds | None = None) -> Kinds:
        """What an expression may hold. Nothing, if it is unproven, or holds what is not allowed where it stands."""
        try:
            if getattr(node, "dyn_args", None) is not None or getattr(node, "dyn_kwargs", None) is not None:
                raise Unproven
            found = self.method("of_", node)(node)
            return _need(found, allowed) if allowed is not None else found
        except Unproven:
            self.unproven.add(id(node))
            return frozenset()

    def method(self, prefix: str, node: Any) -> Callable[[Any], Any]:
        method = getattr(self, prefix + type(node).__name__.lower(), None)
        if method is None:
            raise Unproven
        return method  # type: ignore[no-any-return]

    # --- statements

    def body(self, statements: list[Any]) -> None:
        for statement in statements:
            self.method("do_", statement)(statement)

    def do_output(self, node: Any) -> None:
        for child in node.nodes:
            self.kinds(child, ANY_TEXT)

    def do_if(self, node: Any) -> None:
        self.truth(node.test)
        for part in (node.body, node.elif_, node.else_):
            self.body(part)

    def do_for(self, node: Any) -> None:
        if node.recursive:
            raise Unproven
        items = {FIXED: FIXED, MESSAGES: MESSAGE}
        simple = type(node.target).__name__ == "Name"
        found = self.kinds(node.iter, frozenset(items) if simple else ONLY_FIXED)
        item = frozenset(items[kind] for kind in found)
        self.store(node.target, item)
        self.names["loop.item"] |= item
        if node.test is not None:
            self.truth(node.test)
        self.body(node.body)
        self.body(node.else_)

    def do_assign(self, node: Any) -> None:
        self.store(node.target, self.kinds(node.node, ONLY_FIXED if type(node.target).__name__ == "Tuple" else None))

    def do_assignblock(self, node: Any) -> None:
        if node.filter is not None:
            raise Unproven
        self.body(node.body)
        self.store(node.target, frozenset({TEXT}))

    def do_macro(self, node: Any) -> None:
        for argument, default in zip(reversed(node.args), reversed(node.defaults), strict=False):
            self.store(argument, self.kinds(default))
        self.body(node.body)

    def do_callblock(self, node: Any) -> None:
        if type(node.call.node).__name__ != "ExtensionAttribute":  # {% generation %} is one
            raise Unproven
        self.body(node.body)

    def do_with(self, node: Any) -> None:
        for target, value in zip(node.targets, node.values, strict=True):
            self.store(target, self.kinds(value))
        self.body(node.body)

    def do_continue(self, node: Any) -> None: ...

    do_break = do_continue

    def store(self, target: Any, kinds: Kinds) -> None:
        match type(target).__name__:
            case "Name":
                self.names[target.name] |= kinds
            case "NSRef":
                self.names["." + target.attr] |= kinds
            case "Tuple" if kinds <= ONLY_FIXED:
                for item in target.items:
                    self.store(item, kinds)
            case _:
                raise Unproven

    # --- expressions

    def truth(self, node: Any) -> Kinds:
        """The kinds of what is asked whether it is true. A text that has a content in it is, if no content is empty."""
        found = self.kinds(node)
        if found & {CONTENT, TEXT}:
            self.plain.unequal.add("")
        return found

    def fixed(self, *nodes: Any) -> Kinds:
        for node in nodes:
            self.kinds(node, ONLY_FIXED)
        return ONLY_FIXED

    def of_parts(self, node: Any) -> Kinds:
        return self.fixed(*node.iter_child_nodes())

    of_const = of_templatedata = of_list = of_tuple = of_dict = of_pair = of_keyword = of_slice = of_parts
    of_neg = of_pos = of_sub = of_mul = of_div = of_floordiv = of_mod = of_pow = of_parts

    def of_name(self, node: Any) -> Kinds:
        if node.name in HIDDEN or (node.name in self.functions and node.name not in self.stored):
            raise Unproven
        return ONLY_FIXED | self.names.get(node.name, set())

    def of_add(self, node: Any) -> Kinds:
        """Of joined parts. Lists are joined too, fixed ones."""
        found = frozenset[str]().union(*(self.kinds(part, ANY_TEXT) for part in node.iter_child_nodes()))
        return ONLY_FIXED if found <= ONLY_FIXED else frozenset({TEXT})

    of_concat = of_add

    def of_not(self, node: Any) -> Kinds:
        self.truth(node.node)
        return ONLY_FIXED

    def of_and(self, node: Any) -> Kinds:
        return self.truth(node.left) | self.kinds(node.right)

    of_or = of_and

    def of_condexpr(self, node: Any) -> Kinds:
        self.truth(node.test)
        return self.kinds(node.expr1) | (ONLY_FIXED if node.expr2 is None else self.kinds(node.expr2))

    def of_compare(self, node: Any) -> Kinds:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        found = [self.kinds(side) for side in sides]
        if all(kinds <= ONLY_FIXED for kinds in found):
            return ONLY_FIXED
        if len(sides) != 2:
            raise Unproven
        (left, right), (before, behind), op = sides, found, node.ops[0].op
        if op in ("in", "notin"):
            _need(before, ONLY_FIXED)
            if CONTENT in _need(behind, frozenset({FIXED, CONTENT, MESSAGE})):
                self.plain.without |= {_text(left)} - {""}
            return ONLY_FIXED
        if op not in ("eq", "ne"):
            raise Unproven
        constant, kinds = (left, behind) if type(left).__name__ == "Const" else (right, before)
        if CONTENT in _need(kinds, frozenset({FIXED, CONTENT, MESSAGE, MESSAGES})) and isinstance(_const(constant), str):
            self.plain.unequal.add(constant.value)
        _const(constant)
        return ONLY_FIXED

    def of_test(self, node: Any) -> Kinds:
        if node.name in TYPE_TESTS:
            self.kinds(node.node)  # the type of what it may hold is always the same
            return self.arguments(node)
        if node.name == "sameas":  # equal values, not the same objects
            raise Unproven
        return self.arguments(node, node.node)

    def arguments(self, node: Any, *more: Any) -> Kinds:
        """All arguments of a filter, a test or a call are fixed."""
        return self.fixed(*more, *node.args, *node.kwargs)

    def of_getattr(self, node: Any) -> Kinds:
        return self.part(node, node.attr)

    def of_getitem(self, node: Any) -> Kinds:
        if type(node.arg).__name__ == "Slice":
            self.fixed(node.arg)
            return self.kinds(node.node, frozenset({FIXED, MESSAGES}))
        return self.part(node, _index(node.arg))

    def part(self, node: Any, key: Any) -> Kinds:
        """`value.key` or `value[key]`; key None: some fixed one."""
        if key is None:
            self.fixed(node.arg)
        if isinstance(key, str) and key.startswith("_"):
            raise Unproven
        out: set[str] = set()
        for kind in self.kinds(node.node):
            match kind, key:
                case ("FIXED", _):
                    out |= {FIXED}
                case ("MESSAGE", str()):
                    out |= {_of_message(key)}
                case ("MESSAGES", int() | None):
                    out |= {MESSAGE, FIXED}
                case ("CONTENT" | "TEXT", str()) if not hasattr(str, key):
                    out |= {FIXED}  # undefined
                case ("NAMESPACE", str()):
                    out |= {FIXED} | self.names["." + key]
                case ("LOOP", "previtem" | "nextitem"):
                    out |= {FIXED} | self.names["loop.item"]
                case ("LOOP", str()) if key in LOOP_FIXED:
                    out |= {FIXED}
                case _ if key in PIECES.get(kind, {}):
                    out |= {PIECES[kind][key]}
                case _:
                    raise Unproven
        return frozenset(out)

    def of_filter(self, node: Any) -> Kinds:
        if node.node is None:
            raise Unproven
        found = self.kinds(node.node)
        if node.name in ("default", "d") and not node.kwargs and len(node.args) in (1, 2):
            self.truth(node.node)
            self.fixed(*node.args[1:])
            return found | self.kinds(node.args[0])
        self.arguments(node)
        out: set[str] = set()
        for kind in found:
            if kind == FIXED:
                out |= _of_fixed(node)
            elif kind in (CONTENT, TEXT) and node.name == "string" and not node.args:
                out |= {kind}
            elif kind == CONTENT and node.name in ("trim", "replace") and not node.kwargs:
                out |= self.on_content({"trim": "strip"}.get(node.name, node.name), node.args)
            elif kind == MESSAGES:
                out |= _of_messages(node)
            elif kind in PIECES and node.name in ("first", "last") and not node.args:
                out |= {PIECES[kind][0 if node.name == "first" else -1]}
            else:
                raise Unproven
        return frozenset(out)

    def of_call(self, node: Any) -> Kinds:
        if type(node.node).__name__ == "Name":
            return self.function(node, node.node.name)
        if type(node.node).__name__ != "Getattr" or node.node.attr.startswith("_"):
            raise Unproven
        found, name = self.kinds(node.node.node), node.node.attr
        if MESSAGE in found and name == "get" and len(node.args) in (1, 2) and not node.kwargs:
            _need(found, frozenset({FIXED, MESSAGE}))
            default = self.kinds(node.args[1]) if len(node.args) == 2 else ONLY_FIXED
            return default | {FIXED, _of_message(_text(node.args[0]))}
        self.arguments(node)
        if LOOP in found and name == "cycle":
            found -= {LOOP}
        out = set(ONLY_FIXED)
        if CONTENT in _need(found, frozenset({FIXED, CONTENT})):
            if node.kwargs:
                raise Unproven
            out |= self.on_content(name, node.args)
        return frozenset(out)

    def function(self, node: Any, name: str) -> Kinds:
        keywords = {keyword.key: keyword.value for keyword in node.kwargs}
        if name in self.macros and name not in self.stored | self.functions:
            for macro in self.macros[name]:
                names = [argument.name for argument in macro.args]
                if len(node.args) > len(names) or not keywords.keys() <= set(names):
                    raise Unproven
                for argument, value in (*zip(names, node.args, strict=False), *keywords.items()):
                    self.names[argument] |= self.kinds(value)
            return frozenset({TEXT})
        if name not in FUNCTIONS or name in self.stored or name in self.macros:
            raise Unproven
        if name == "raise_exception":  # its text is nobody's: a conversation that is refused has no shape
            for value in (*node.args, *keywords.values()):
                self.kinds(value, ANY_TEXT)
            return frozenset()
        if name == "namespace":
            self.fixed(*node.args)
            for key, value in keywords.items():
                self.names["." + key] |= self.kinds(value)
            return frozenset({NAMESPACE})
        return self.arguments(node)

    def on_content(self, name: str, arguments: list[Any]) -> Kinds:
        """A method of a content, and what must hold for its outcome to be always the same."""
        plain = self.plain
        if name in STRIPS and len(arguments) <= 1:
            if not arguments or _const(arguments[0]) is None:
                plain.stripped = True
            else:
                for ends in STRIPS[name]:
                    getattr(plain, ends).update(_text(arguments[0]))
            return frozenset({CONTENT})
        if name in ("startswith", "removeprefix", "endswith", "removesuffix") and len(arguments) == 1:
            (plain.starts if name in ("startswith", "removeprefix") else plain.ends).update({_text(arguments[0])} - {""})
            return ONLY_FIXED if name.endswith("with") else frozenset({CONTENT})
        if not arguments or not (sought := _text(arguments[0])):
            raise Unproven
        plain.without.add(sought)
        if name in ("find", "rfind", "count") and len(arguments) == 1:
            return ONLY_FIXED
        if name not in (*PIECES, "replace"):
            raise Unproven
        return frozenset({CONTENT if name == "replace" else name})


def _need(kinds: Kinds, allowed: Kinds) -> Kinds:
    if not kinds <= allowed:
        raise Unproven
    return kinds


def _const(node: Any) -> Any:
    if type(node).__name__ != "Const":
        raise Unproven
    return node.value


def _text(node: Any) -> str:
    if not isinstance(value := _const(node), str):
        raise Unproven
    return value


def _index(node: Any) -> Any:
    """The constant in [...]; None if it is another expression."""
    if type(node).__name__ == "Neg" and isinstance(number := _index(node.node), int):
        return -number
    return node.value if type(node).__name__ == "Const" else None


def _of_message(key: str) -> str:
    if key.startswith("_") or hasattr(dict, key) or "." in key:
        raise Unproven
    return CONTENT if key == "content" else FIXED  # the role, or undefined


def _attribute(node: Any) -> str | None:
    """The A of `map(attribute=A)`."""
    if node.name == "map" and not node.args and [keyword.key for keyword in node.kwargs] == ["attribute"]:
        return _text(node.kwargs[0].value)
    return None


def _of_fixed(node: Any) -> Kinds:
    """A filter on a fixed value, its arguments fixed too."""
    if node.name in SELECTS:
        _check_test(node)
    elif node.name not in FILTERS and _attribute(node) is None:
        raise Unproven
    return ONLY_FIXED


def _of_messages(node: Any) -> Kinds:
    """A filter on messages, its arguments fixed."""
    if node.name in MESSAGES_FILTERS and not (node.args or node.kwargs):
        return MESSAGES_FILTERS[node.name]
    if (attribute := _attribute(node)) is not None and _of_message(attribute) == FIXED:
        return ONLY_FIXED
    if node.name in ("selectattr", "rejectattr") and node.args and _of_message(_text(node.args[0])) == FIXED:
        _check_test(node)
        return frozenset({MESSAGES})
    raise Unproven


def _check_test(node: Any) -> None:
    """The test that a filter applies is known, and compares no identities."""
    if node.kwargs or any(_text(name) == "sameas" for name in node.args[SELECTS[node.name] :][:1]):
        raise Unproven
