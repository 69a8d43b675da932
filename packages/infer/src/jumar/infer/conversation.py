"""A conversation to the tokens of a prompt: by the model's own chat template, another Jinja file, or a named template."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumar.infer.tokenizer import Tokenizer
from jumar.schema.chat import ROLES, ChatRecord, Turn
from jumar.schema.errors import Exit, ToolError
from jumar.schema.slots import Piece, SlotTemplate, Token, named_template
from jumar.schema.templates import ChatTemplate, TemplateFault, template_of

Message = dict[str, Any]
JINJA = (".jinja", ".jinja2")


@dataclass
class Template:
    """How conversations are written for a model.

    stop_ids: tokens that end an answer under this template, beside the model's own
    """

    tokenizer: Tokenizer
    own: ChatTemplate | SlotTemplate
    stop_ids: tuple[int, ...] = field(default=())

    def prompt(self, messages: list[Message], tools: list[Message] | None = None) -> list[int]:
        """Tokens up to where the answer begins. Raises ToolError (3) for a conversation that the template refuses."""
        ids: list[int] = []
        for piece in self._pieces(messages, tools):
            if isinstance(piece, str):
                ids += self.tokenizer.encode(piece, special=False)
            elif (text := self._written(piece)) is not None:
                ids.append(_token_id(self.tokenizer, text))
        return ids

    def text(self, messages: list[Message], tools: list[Message] | None = None) -> str:
        """The text of `prompt`; raises as it does."""
        return "".join(self._written(piece) or "" for piece in self._pieces(messages, tools))

    def _pieces(self, messages: list[Message], tools: list[Message] | None) -> list[Piece]:
        check_messages(messages)
        try:
            if isinstance(self.own, ChatTemplate):
                return [self.own.render(messages, tools, prompt=True)]
            turns = tuple(_turn(message) for message in messages)
            return self.own.prompt(ChatRecord(turns, tuple(tools or ())))
        except (TemplateFault, ValueError) as fault:
            raise ToolError(f"the conversation cannot be written: {fault}", hint="see the roles and their order") from None

    def _written(self, piece: Piece) -> str | None:
        if isinstance(piece, str):
            return piece
        return piece.name if isinstance(piece, Token) else self.tokenizer.special.get(piece.name)


def open_template(tokenizer: Tokenizer, name: str = "auto") -> Template:
    """name: "auto" for the model's own, a Jinja file, or the name of a template (`jumar-data templates` lists them).

    Raises ToolError: 2 for a name that is none, 3 where the model or the file has none.
    """
    today = datetime.datetime.now(tz=datetime.timezone.utc).date()
    if name == "auto" or name.endswith(JINJA):
        source = template_of(tokenizer.directory) if name == "auto" else _read(Path(name))
        if source is None:
            raise ToolError(
                f"{tokenizer.directory} has no chat template", hint="name one: --template chatml, or --template FILE.jinja"
            )
        return Template(tokenizer, ChatTemplate(source, dict(tokenizer.special), date=today))
    slots = _named(name)
    return Template(tokenizer, slots, tuple(_token_id(tokenizer, word) for word in slots.stop_words))


def check_template(name: str) -> None:
    """Whether there is a template of this name, before a model is opened; raises ToolError as `open_template`."""
    if name.endswith(JINJA):
        _read(Path(name))
    elif name != "auto":
        _named(name)


def _named(name: str) -> SlotTemplate:
    try:
        return named_template(name)
    except ToolError as fault:
        raise ToolError(fault.message, hint=fault.hint, code=Exit.USAGE) from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        why = fault.strerror if isinstance(fault, OSError) else f"it is not UTF-8: {fault.reason}"
        raise ToolError(f"{path} cannot be read: {why}", hint="give the path of a Jinja file") from None


def _token_id(tokenizer: Tokenizer, text: str) -> int:
    found: int | None = tokenizer.inner.token_to_id(text)
    if found is None:
        raise ToolError(
            f"the template writes {text!r}, which the vocabulary of {tokenizer.directory} has not",
            hint="choose the template of this model; --template auto takes its own",
        )
    return found


def check_messages(messages: Any) -> None:
    """Raises ToolError (3) for what is no list of messages."""
    if not isinstance(messages, list) or not messages:
        raise ToolError("messages is empty or no list", hint='give [{"role": "user", "content": "..."}]')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            role = message.get("role") if isinstance(message, dict) else message
            raise ToolError(f"message {number} has role {role!r:.40}", hint=f"roles are {', '.join(ROLES)}")
        if not isinstance(message.get("content"), str) and not (message["role"] == "assistant" and message.get("tool_calls")):
            raise ToolError(f"message {number} has no text as content", hint='give {"role": ..., "content": "..."}')


def _turn(message: Message) -> Turn:
    known = {"role", "content", "reasoning_content", "tool_calls"}
    extra = {k: v for k, v in message.items() if k not in known}
    calls = tuple(message.get("tool_calls") or ())
    return Turn(message["role"], message.get("content"), message.get("reasoning_content"), calls, extra)
