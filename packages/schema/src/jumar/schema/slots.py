"""Chat prompts by slot templates: the named templates, and MindSpeed-LLM's `templates.json` as users have it.

A template gives for each kind of turn a list of slots: texts with `{{content}}`, single tokens, the tokenizer's BOS and EOS. The
pieces that come of them are tokenised one by one, so no token ever spans the border of two.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.errors import ToolError
from jumar.schema.tool_formats import TOOL_FORMATS, read_call, to_json

PLACEHOLDER = re.compile(r"\{\{([a-zA-Z_][a-zA-Z0-9_]*)\}\}")
RESPONSE = "<tool_response>"


@dataclass(frozen=True, slots=True)
class Token:
    """One token of the vocabulary, by its text."""

    name: str


@dataclass(frozen=True, slots=True)
class Special:
    """The tokenizer's "bos_token" or "eos_token"; nothing where it has none."""

    name: str


Piece = str | Token | Special
Pair = tuple[list[Piece], list[Piece]]
Exchange = tuple[Turn, Turn | None]


def fill(slots: Sequence[Piece], **values: str) -> list[Piece]:
    """The slots with their placeholders replaced in one pass (what is put in is not searched again), without empty texts."""
    filled = (PLACEHOLDER.sub(lambda found: values[found[1]], slot) if isinstance(slot, str) else slot for slot in slots)
    return [piece for piece in filled if piece != ""]


def placeholders(slots: Sequence[Piece]) -> set[str]:
    """The names in `{{...}}`."""
    return {name for slot in slots if isinstance(slot, str) for name in PLACEHOLDER.findall(slot)}


@dataclass(frozen=True, slots=True)
class SlotTemplate:
    """One template.

    user, ...:       the slots of each kind of turn: `observation` is a tool's turn, `function` an assistant's with calls;
                     `prefix` begins the conversation, `separator` every later prompt turn. Placeholders: {{content}}; in user and
                     observation also {{idx}} and {{round}}, the exchange's number from 0 and from 1; in function {{name}} and
                     {{arguments}} of each call, or {{content}} for all of them as `function_format` writes them.
    default_system:  the system text of a conversation that has none; "" for none.
    thought_words:   what stands before and after an answer's reasoning; None: this template has no place for it.
    empty_thought:   which answers without reasoning get the thought words alone: "never", "last" (of the answers learned), "each"
                     (of the answers learned), "always" (past answers of a prompt too).
    forgets:         whether a prompt leaves out the reasoning of answers before the last user turn.
    system_in_user:  whether the system text goes into the first user turn, as in Llama 2.
    stop_words:      what ends an answer; with `replace_eos` the first is the EOS of this template.
    efficient_eos:   answers do not end with EOS; the label of the next prompt's first token is EOS instead.
    force_system:    kept, and not read here: MindSpeed-LLM uses it only for the Jinja text that it stores with the tokenizer.
    refused:         why no conversation can be rendered; "" if it can.
    """

    name: str
    user: tuple[Piece, ...] = ("{{content}}",)
    assistant: tuple[Piece, ...] = ("{{content}}", Special("eos_token"))
    system: tuple[Piece, ...] = ("{{content}}",)
    function: tuple[Piece, ...] = ("Action: {{name}}\nAction Input: {{arguments}}", Special("eos_token"))
    observation: tuple[Piece, ...] = ("{{content}}",)
    separator: tuple[Piece, ...] = ()
    prefix: tuple[Piece, ...] = ()
    function_format: str = "default"
    tools_format: str = "default"
    default_system: str = ""
    stop_words: tuple[str, ...] = ()
    thought_words: tuple[str, str] | None = None
    empty_thought: str = "never"
    forgets: bool = False
    system_in_user: bool = False
    efficient_eos: bool = False
    replace_eos: bool = False
    force_system: bool = False
    refused: str = ""

    def tokens(self) -> list[str]:
        """The tokens that its slots name."""
        slots = (*self.prefix, *self.separator, *self.system, *self.user, *self.assistant, *self.function, *self.observation)
        return list(dict.fromkeys(slot.name for slot in slots if isinstance(slot, Token)))

    def pairs(self, record: ChatRecord, *, thinking: bool | None = None) -> list[Pair]:
        """(pieces of the prompt, pieces of the answer) of every exchange.

        thinking: True: an empty thought is part of the answer, so it is learned. False: the reasoning is left out.
                  None and False: an empty thought is part of the prompt.
        ValueError says what in the record the template has no form for; ToolError, what in the settings.
        """
        exchanges = self._exchanges(record)
        if exchanges[-1][1] is None:
            raise ValueError(f"turn {len(record.turns)} is a {exchanges[-1][0].role} turn that no assistant turn answers")
        count = len(exchanges)
        empty = {"never": range(0), "last": range(count - 1, count)}.get(self.empty_thought, range(count))
        return self._render(record, exchanges, thinking, empty, forget=0)

    def prompt(self, record: ChatRecord, *, thinking: bool | None = None) -> list[Piece]:
        """Everything up to where the answer to the last user or tool turn begins; an answer to it in the record is left out.

        thinking: False: with an empty thought at the end, where the template has such; None and True: the model may think.
        Faults as of pairs().
        """
        exchanges = self._exchanges(record)
        exchanges[-1] = (exchanges[-1][0], None)
        last_user = max((i for i, (asked, _) in enumerate(exchanges) if asked.role == "user"), default=0)
        empty = range(len(exchanges) - 1 if self.empty_thought == "always" else 0)
        parts = self._render(record, exchanges, thinking, empty, forget=last_user if self.forgets else 0)
        end = list(self.thought_words or ()) if thinking is False and self.empty_thought != "never" else []
        return [piece for asked, answer in parts for piece in (*asked, *answer)] + (["".join(end)] if end else [])

    def _render(
        self, record: ChatRecord, exchanges: Sequence[Exchange], thinking: bool | None, empty: Collection[int], forget: int
    ) -> list[Pair]:
        """`empty`: the exchanges whose answers need a thought; `forget`: up to which exchange reasoning is left out."""
        if self.refused:
            raise ToolError(f"template {self.name!r}: {self.refused}", hint="use --template auto: the chat template of the model")
        if thinking is not None and self.thought_words is None:
            raise ToolError(
                f"template {self.name!r} has no thought words, so thinking={thinking} would have no effect",
                hint="leave thinking out, or choose another template",
            )
        rendered = []
        for index, (asked, answer) in enumerate(exchanges):
            prompt = self._prompt_turn(record, index, asked)
            pieces: list[Piece] = []
            if answer is not None:
                known = self._without_thought(answer) if thinking is False or index < forget else answer
                pieces = self._answer(known)
                if index in empty and not self._has_thought(known):
                    side, place = (pieces, 0) if thinking else (prompt, len(prompt))
                    side.insert(place, "".join(self.thought_words or ()))
            rendered.append((prompt, pieces))
        return rendered

    def _prompt_turn(self, record: ChatRecord, index: int, turn: Turn) -> list[Piece]:
        begin: list[Piece] = list(self.prefix if index == 0 else self.separator)
        system = self._system(record) if index == 0 else []
        content = turn.content or ""
        if self.system_in_user and system:
            if turn.role != "user":
                raise ValueError(
                    f"template {self.name!r} puts the system text into the first user turn, but a tool turn comes first"
                )
            content, system = "".join(piece for piece in system if isinstance(piece, str)) + content, []
        slots = self.user if turn.role == "user" else self.observation
        return begin + system + fill(slots, content=content, idx=str(index), round=str(index + 1))

    def _system(self, record: ChatRecord) -> list[Piece]:
        text = record.system or self.default_system
        if record.tools:
            form = TOOL_FORMATS[self.tools_format]
            text += (form.gap if text else "") + form.tools(record.tools)
        return fill(self.system, content=text) if text else []

    def _answer(self, turn: Turn) -> list[Piece]:
        thought = []
        if turn.reasoning is not None:
            if self.thought_words is None:
                raise ValueError(f"template {self.name!r} has no place for reasoning")
            thought = [self.thought_words[0] + turn.reasoning + self.thought_words[1]]
        return [*thought, *(self._calls(turn) if turn.tool_calls else fill(self.assistant, content=turn.content or ""))]

    def _calls(self, turn: Turn) -> list[Piece]:
        calls, form = [read_call(call) for call in turn.tool_calls], TOOL_FORMATS[self.function_format]
        if len(calls) > 1 and not form.several:
            raise ValueError(f"template {self.name!r} has no form for {len(calls)} tool calls in one turn")
        text, whole = turn.content or "", "content" in placeholders(self.function)
        if text and not (whole and form.between is not None):
            raise ValueError(f"template {self.name!r} has no form for a turn with both text and tool calls")
        if whole:
            return fill(self.function, content=(text + (form.between or "") if text else "") + form.calls(calls))
        each = [slot for slot in self.function if placeholders([slot])]
        if len(calls) > 1 and len(each) > 1:
            raise ValueError(f"template {self.name!r} has no form for {len(calls)} tool calls in one turn")
        if len(calls) == 1:
            return fill(self.function, name=calls[0].name, arguments=to_json(calls[0].arguments))
        lines = (fill(each, name=name, arguments=to_json(arguments)) for name, arguments in calls)
        text = "\n".join(str(line) for (line,) in lines)
        return [text if slot is each[0] else slot for slot in self.function]

    def _has_thought(self, turn: Turn) -> bool:
        """Whether there is one, apart or within the text, where most data have it."""
        words = [word.strip() for word in self.thought_words or ()]
        return turn.reasoning is not None or any(word in (turn.content or "") for word in words)

    def _without_thought(self, turn: Turn) -> Turn:
        if turn.content is None or not self._has_thought(replace(turn, reasoning=None)):
            return replace(turn, reasoning=None)
        before, after = (word.strip() for word in self.thought_words or ("", ""))
        content = re.sub(f"{re.escape(before)}.*?{re.escape(after)}", "", turn.content, flags=re.DOTALL)
        content = content.rpartition(after)[2]  # data often lack the first word: the prompt had it
        return replace(turn, reasoning=None, content=content.lstrip("\n"))

    def _exchanges(self, record: ChatRecord) -> list[Exchange]:
        """(prompt turn, answer) in their order; the last answer may be lacking. Several tool turns in a row become one."""
        exchanges: list[Exchange] = []
        offset = 1 + len(record.turns) - len(record.exchanges)
        for number, turn in enumerate(record.exchanges, offset):
            waiting = bool(exchanges) and exchanges[-1][1] is None
            if turn.content is None and not (turn.role == "assistant" and turn.tool_calls):
                raise ValueError(f"turn {number} ({turn.role}) has no content")
            if turn.role == "assistant" and waiting:
                exchanges[-1] = (exchanges[-1][0], turn)
            elif turn.role == "tool" and waiting and exchanges[-1][0].role == "tool":
                exchanges[-1] = (self._join(exchanges[-1][0], turn, number), None)
            elif turn.role in ("user", "tool") and not waiting:
                exchanges.append((turn, None))
            elif turn.role in ("user", "tool", "assistant"):
                expected = "an assistant turn" if waiting else "a user or tool turn"
                raise ValueError(
                    f"turn {number} is {'an' if turn.role == 'assistant' else 'a'} {turn.role} turn, expected {expected}"
                )
            else:
                raise ValueError(
                    f"turn {number} has the role {turn.role!r}, expected user, assistant or tool (system: first only)"
                )
        if not exchanges:
            raise ValueError("the conversation has no user turn")
        return exchanges

    def _join(self, first: Turn, second: Turn, number: int) -> Turn:
        """Two tool turns as one, as LLaMA-Factory and Qwen do it; only slots with `<tool_response>` tell where one ends."""
        if not any(isinstance(slot, str) and RESPONSE in slot for slot in self.observation):
            raise ValueError(f"turn {number} is a tool turn after a tool turn: template {self.name!r} cannot tell the two apart")
        return replace(first, content=f"{first.content}\n</tool_response>\n<tool_response>\n{second.content}")


def template_names() -> list[str]:
    """The names that `named_template` has."""
    return sorted(_own())


def named_template(name: str) -> SlotTemplate:
    """The template of our own file. ToolError for a name that is not there: near ones and all; or why a known one is not."""
    if name in _own():
        return _own()[name]
    if name in MISSING:
        raise ToolError(
            f"template {name!r} is known, but not here: {MISSING[name]}",
            hint="use --template auto (the chat template of the model), or FILE.json:NAME for one of a file of yours",
        )
    near = difflib.get_close_matches(name, [*_own(), *MISSING], n=3)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    raise ToolError(f"no template is named {name!r}", hint=f"{meant}The templates: {', '.join(template_names())}")


def load_templates(path: Path) -> dict[str, SlotTemplate]:
    """name -> template of a `templates.json` in MindSpeed-LLM's form. ToolError says where and what is wrong."""
    from jumar.schema.slot_files import read_templates

    return read_templates(path)


@functools.cache
def _own() -> dict[str, SlotTemplate]:
    return load_templates(Path(__file__).with_name("templates.json"))


# Names that MindSpeed-LLM has and we have not: there is nothing official here that they could be checked against.
MISSING: dict[str, str] = dict(
    bailing_mini="Ling's official chat template could not be had to check it",
    cpm="only a fine-tune's chat template could be had to check it, and that ends no answer",
    deepseek4="its prompt is built by code, not by slots",
    gpt_oss="its official prompt holds the date of the day and a message of the developer, which slots cannot say",
    hunyuan="MindSpeed-LLM's slots hold no role marks at all, and the official chat template could not be had",
    magistral="the official system prompt could not be had to check it",
    minicpm3="MindSpeed-LLM's slots are those of DeepSeek-V2, and the official chat template could not be had",
    plm="the official chat template could not be had to check it",
)
