"""A model's own chat template (Jinja), rendered in a sandbox, and which characters of the text the assistant wrote.

The environment is the one that Hugging Face documents for chat templates: immutable sandbox, trimmed blocks, `tojson` without
HTML escapes, `raise_exception`, loop controls, `{% generation %}`
(https://huggingface.co/docs/transformers/chat_templating_writing). Where a template lacks `{% generation %}`, the assistant's
turns are found as the difference between the rendering of a conversation and that of its prefixes.

Rendering costs 50-150 us. What a template writes around the contents of messages is learnt once for each sequence of roles, and
where it is proven (`opaque.py`) that the contents come unchanged between it, conversations are joined instead of rendered.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from jumar.schema.errors import ToolError
from jumar.schema.opaque import Opaque, Unproven, analyse

MARKS = ("\ufdd0", "\ufdd1")  # noncharacters of Unicode: no text may hold them
CONTENT = "\ufdd2"
PLACES = ("\ufdd3", "\ufdd4")  # around the number of a content, when a shape is learnt
ADDRESS = " at 0x"  # of an object that has no text, a generator: it is another one every time
CHECKED_FIRST, CHECKED_EVERY = 8, 1000  # of each shape's joined conversations: these are rendered as well
SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
Span = tuple[int, int]


class TemplateFault(ValueError):
    """A conversation that a template cannot render, or of which it cannot be told what the assistant wrote."""


class ShortcutFault(RuntimeError):
    """A bug of ours: a conversation was joined of fixed texts and contents, and the template renders it otherwise."""


@dataclass(slots=True)
class _Shape:
    """What conversations with the same roles have in common.

    form:    the text, `%s` for each content.
    borders: (position without contents, contents before it) of each assistant turn's start, and the same of its end.
    plain:   which contents the template is proven to render so; None: of none it is.
    joined:  how many conversations were.
    """

    form: str
    borders: list[tuple[int, int, int, int]]
    plain: Callable[[str], bool] | None
    joined: int = 0

    def spans(self, contents: tuple[str, ...]) -> list[Span]:
        before = list(accumulate(map(len, contents), initial=0))
        return [(start + before[i], end + before[j]) for start, i, end, j in self.borders]


@dataclass
class ChatTemplate:
    """A compiled chat template.

    source:    the Jinja text.
    variables: what it reads beside the conversation: special tokens by name, and the user's own (enable_thinking, ...).
    stops:     texts of the tokenizer's special tokens; what ends an answer is one of them.
    date:      the day that `strftime_now` tells; None: a template that asks is refused (the same input gives the same bytes).
    """

    source: str
    variables: dict[str, Any] = field(default_factory=dict)
    stops: tuple[str, ...] = ()
    date: datetime.date | None = None
    _shapes: dict[tuple[str, ...], _Shape | None] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def marked(self) -> bool:
        """Whether the template says itself what the assistant writes (`{% generation %}`)."""
        return GENERATION.search(self.source) is not None

    @cached_property
    def _template(self) -> Any:
        return _compile(self.source, self.date)

    @cached_property
    def _opaque(self) -> Opaque | None:
        return analyse(_environment(self.date), self.source, forbidden=MARKS)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None, *, prompt: bool = False) -> str:
        """The conversation as text; `prompt`: with the beginning of an answer at its end (`add_generation_prompt`).

        TemplateFault if the template refuses the conversation or fails on it.
        """
        text = self._render(messages, tools, prompt)
        return text.replace(MARKS[0], "").replace(MARKS[1], "") if self.marked else text

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, prompt: bool, template: Any = None
    ) -> str:
        from jinja2.exceptions import TemplateError

        try:
            rendered: str = (template or self._template).render(
                messages=messages, tools=tools or None, documents=None, add_generation_prompt=prompt, **self.variables
            )
        except (TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError) as fault:
            raise TemplateFault(f"the chat template failed: {fault}") from None
        return rendered

    def render_labelled(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> tuple[str, list[Span]]:
        """(text, the character span [start, end) of every assistant turn in it, end token included).

        ShortcutFault: it was joined, not rendered, and that is found to be wrong (a sample of what is joined is rendered too).
        """
        bare = None if tools else _bare(messages)
        if bare is None:
            return self._rendered(messages, tools, None, ())
        roles, contents = bare
        try:
            shape = self._shapes[roles]
        except KeyError:
            shape = self._shapes[roles] = self._learn(roles)
        if shape is None or (plain := shape.plain) is None:
            return self._rendered(messages, None, shape, contents)
        for content in contents:
            if not plain(content):
                return self._rendered(messages, None, shape, contents)
        text, spans = shape.form % contents, shape.spans(contents)
        shape.joined += 1
        if shape.joined <= CHECKED_FIRST or shape.joined % CHECKED_EVERY == 0:
            self._check(messages, shape, contents, (text, spans))
        return text, spans

    def _rendered(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        shape: _Shape | None,
        contents: tuple[str, ...],
    ) -> tuple[str, list[Span]]:
        """What `render_labelled` gives, by rendering. The spans are the shape's, if the text is no more than it and contents."""
        text = self._render(messages, tools, False)
        if self.marked:
            return _without_marks(text)
        if shape is not None and text == shape.form % contents:
            return text, shape.spans(contents)
        return text, self._spans(text, messages, tools)

    def _check(
        self, messages: list[dict[str, Any]], shape: _Shape, contents: tuple[str, ...], joined: tuple[str, list[Span]]
    ) -> None:
        try:
            rendered: Any = self._rendered(messages, None, shape, contents)
        except TemplateFault as fault:
            rendered = fault
        if rendered != joined:
            raise ShortcutFault(
                f"a bug: joined {joined!r}, but the chat template gives {rendered!r}; please report it with the template"
            )

    # --- spans from prefixes

    def _spans(self, text: str, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[Span]:
        """Where in `text`, the rendering of `messages`, the assistant's turns stand."""
        spans: list[Span] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            start = self._start(text, messages, i, tools)
            if spans and start < spans[-1][1]:
                raise TemplateFault(
                    "the chat template renders a conversation's beginning otherwise than the whole: turns overlap"
                )
            spans.append((start, self._end(text, start, messages, i, tools)))
        return spans

    def _start(self, text: str, messages: list[dict[str, Any]], i: int, tools: list[dict[str, Any]] | None) -> int:
        if i and text.startswith(prompt := self._render(messages[:i], tools, True)):
            return len(prompt)
        # The whole tells what comes before otherwise (old reasoning is dropped, tools stand before the last question), or an
        # answer is asked for with more than stands before it later ("<think>"): it begins behind the header before its content.
        before, after = self._around(messages, i, tools)
        content = _common(before + CONTENT + after, text)
        found = text.rfind(self._header, 0, content)
        if found < 0:
            raise TemplateFault("the chat template renders a conversation's beginning otherwise than the whole")
        return found + len(self._header)

    def _end(self, text: str, start: int, messages: list[dict[str, Any]], i: int, tools: list[dict[str, Any]] | None) -> int:
        through = text if i + 1 == len(messages) else self._render(messages[: i + 1], tools, False)
        if text.startswith(through) and len(through) >= start:
            return self._without_tail(text, start, len(through))
        # The whole tells this turn otherwise than its own prefix does (a template that drops old reasoning): to the stop token.
        _, after = self._around(messages, i, tools)
        behind = len(text) - len(after) if text.endswith(after) else start
        ends = [(at, len(stop)) for stop in self.stops if (at := text.find(stop, max(behind, start))) >= 0]
        if not ends:
            raise TemplateFault(
                "the chat template renders a turn otherwise than at a conversation's end, and ends it by no token"
            )
        return sum(min(ends))

    def _around(self, messages: list[dict[str, Any]], i: int, tools: list[dict[str, Any]] | None) -> tuple[str, str]:
        """What the whole has before and after the content of turn i."""
        other = [*messages[:i], {**messages[i], "content": CONTENT}, *messages[i + 1 :]]
        before, found, after = self._render(other, tools, False).partition(CONTENT)
        if not found:
            raise TemplateFault("the chat template leaves out what the assistant writes")
        return before, after

    @cached_property
    def _header(self) -> str:
        """What stands before every answer, and is not written by the model: the common part of its prompt and of its turn."""
        user, answer = {"role": "user", "content": "?"}, {"role": "assistant", "content": CONTENT}
        asked, plain = self._render([user], None, True), self._render([user], None, False)
        told = self._render([user, answer, user], None, False).partition(CONTENT)[0]
        if not (asked.startswith(plain) and told.startswith(plain)):
            raise TemplateFault("the chat template renders a conversation's beginning otherwise than the whole")
        return asked[len(plain) : _common(asked, told)]

    def _without_tail(self, text: str, start: int, end: int) -> int:
        """`end` without the white space that the template puts after the token that ends a turn: no model writes it."""
        stripped = text[start:end].rstrip()
        return start + len(stripped) if stripped.endswith(self.stops) else end

    # --- conversations of one shape

    def _learn(self, roles: tuple[str, ...]) -> _Shape | None:
        """The shape of conversations with these roles; None: the template does not put each content once, in order."""
        contents = [f"{PLACES[0]}{i}{PLACES[1]}" for i in range(len(roles))]
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        try:
            text = self._render(messages, None, False)
            text, spans = _without_marks(text) if self.marked else (text, self._spans(text, messages, None))
        except TemplateFault:
            return None
        between, at, places = [], 0, []
        for content in contents:
            if text.count(content) != 1 or (found := text.find(content, at)) < 0:
                return None
            between.append(text[at:found])
            at = found + len(content)
            places.append(found)
        between.append(text[at:])

        def border(position: int) -> tuple[int, int]:
            before = sum(place < position for place in places)
            return position - sum(len(content) for content in contents[:before]), before

        form = "%s".join(part.replace("%", "%%") for part in between)
        plain = self._opaque.plain if self._opaque is not None and self._is_proven(self._opaque, form, roles, contents) else None
        return _Shape(form, [(*border(start), *border(end)) for start, end in spans], plain)

    def _is_proven(self, opaque: Opaque, form: str, roles: tuple[str, ...], learnt: list[str]) -> bool:
        """Whether all plain contents are rendered in this form: those it was learnt of are plain, others of which nothing that is
        not proven is come to are rendered so.
        """
        others = tuple(content[::-1] for content in learnt)
        if ADDRESS in form or not all(map(opaque.plain, (*learnt, *others))):
            return False
        messages = [{"role": role, "content": content} for role, content in zip(roles, others, strict=True)]
        try:
            text = self._render(messages, None, False, opaque.guarded)
        except (Unproven, TemplateFault):
            return False
        return (_without_marks(text)[0] if self.marked else text) == form % others


def template_of(directory: Path, *, tools: bool = False) -> str | None:
    """The chat template's text of a tokenizer's directory; None without any.

    `chat_template.jinja`, else `chat_template` of chat_template.json or tokenizer_config.json. Of several named ones that for
    tools ("tool_use") if `tools`, else "default".
    """
    file = directory / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    for name in ("chat_template.json", "tokenizer_config.json"):
        template = read_json(directory / name).get("chat_template")
        if isinstance(template, list):
            named = {str(item.get("name")): item.get("template") for item in template if isinstance(item, dict)}
            template = (named.get("tool_use") if tools else None) or named.get("default")
        if isinstance(template, str):
            return template
    return None


def names_read(source: str) -> set[str]:
    """The variables that a template reads and does not set. ToolError if it is no Jinja."""
    from jinja2 import meta

    compiled = _compile(source, None)
    return set(meta.find_undeclared_variables(compiled.environment.parse(source)))


def special_tokens(directory: Path) -> dict[str, str]:
    """{"eos_token": text, ...} of a tokenizer's directory: tokenizer_config.json, else special_tokens_map.json."""
    out: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(directory / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key in SPECIAL_NAMES and isinstance(text, str):
                out[key] = text
    return out


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object's file; {} where there is none. ToolError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as fault:
        raise ToolError(f"{path} is not JSON: {fault}", hint="fetch the file again") from None
    if not isinstance(loaded, dict):
        raise ToolError(f"{path}: a {type(loaded).__name__}, expected keys and values", hint="fetch the file again")
    return loaded


def _bare(messages: list[dict[str, Any]]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """(roles, contents) of messages that have nothing else; None: there is more (reasoning, tool calls), or less."""
    roles, contents = [], []
    for message in messages:
        if type(message) is not dict or len(message) != 2:
            return None
        role, content = message.get("role"), message.get("content")
        if type(role) is not str or type(content) is not str:
            return None
        roles.append(role)
        contents.append(content)
    return tuple(roles), tuple(contents)


def _common(a: str, b: str) -> int:
    """How many characters two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _without_marks(text: str) -> tuple[str, list[Span]]:
    """A marked rendering as (text, spans that were marked)."""
    pieces, spans, at, start = [], [], 0, 0
    for piece in re.split(f"([{MARKS[0]}{MARKS[1]}])", text):
        if piece == MARKS[0]:
            start = at
        elif piece == MARKS[1]:
            spans.append((start, at))
        else:
            pieces.append(piece)
            at += len(piece)
    return "".join(pieces), spans


def _compile(source: str, date: datetime.date | None) -> Any:
    """The template in its sandbox; ToolError if it is no Jinja."""
    import jinja2

    try:
        return _environment(date).from_string(source)
    except jinja2.TemplateError as fault:
        raise ToolError(f"the chat template is not Jinja: {fault}", hint="fetch the tokenizer's files again") from None


def _environment(date: datetime.date | None) -> Any:
    """The sandbox."""
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`: marks what the assistant writes."""

        tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Any) -> str:
            return f"{MARKS[0]}{caller()}{MARKS[1]}"

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        if date is None:
            raise jinja2.TemplateError("it writes the date of the day, and none is given (--date 2026-01-31)")
        return datetime.datetime.combine(date, datetime.time()).strftime(form)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = strftime_now
    return environment
