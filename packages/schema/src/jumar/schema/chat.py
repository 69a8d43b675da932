"""One conversation as all tools see it: turns, tool calls, reasoning, tools.

The words are those of Hugging Face chat templates (https://huggingface.co/docs/transformers/chat_templating): roles system, user,
assistant and tool; `tool_calls` and `reasoning_content` on assistant turns; tools as JSON schemas.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Turn:
    """One message.

    content:    its text; None only on an assistant turn that consists of tool calls.
    reasoning:  what an assistant thought before it answered (`reasoning_content` in templates).
    tool_calls: as in OpenAI's format, unchanged: {"type": "function", "function": {"name": str, "arguments": dict or JSON text}}.
    extra:      other keys of the message that a template may read (name, tool_call_id, ...).
    """

    role: str
    content: str | None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    def message(self) -> dict[str, Any]:
        """The message as chat templates read it; keys without a value are left out."""
        out: dict[str, Any] = {"role": self.role}
        if self.content is not None:
            out["content"] = self.content
        if self.reasoning is not None:
            out["reasoning_content"] = out["thinking"] = self.reasoning  # gpt-oss reads the latter
        if self.tool_calls:
            out["tool_calls"] = list(self.tool_calls)
        return {**out, **self.extra}


@dataclass(frozen=True, slots=True)
class ChatRecord:
    """A conversation: at most one system turn, which is the first, then the others; the tools that it may call."""

    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def system(self) -> str | None:
        """The system turn's text; None without one."""
        return self.turns[0].content if self.turns and self.turns[0].role == "system" else None

    @property
    def exchanges(self) -> tuple[Turn, ...]:
        """All turns but the system turn."""
        return self.turns[1:] if self.system is not None else self.turns

    def messages(self) -> list[dict[str, Any]]:
        """The turns as chat templates read them."""
        return [turn.message() for turn in self.turns]

    def with_turns(self, *turns: Turn) -> ChatRecord:
        """The same tools with other turns."""
        return replace(self, turns=turns)
