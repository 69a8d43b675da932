"""Reads a `templates.json` in MindSpeed-LLM's form into slot templates: every field is checked, and none is passed over.

Source of the fields and their defaults: MindSpeed-LLM, mindspeed_llm/tasks/preprocess/templates.py. Ours are `empty_thought` and
`{{round}}`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jumar.schema.errors import ToolError
from jumar.schema.slots import Piece, SlotTemplate, Special, Token, placeholders
from jumar.schema.tool_formats import TOOL_FORMATS

# Field of the file -> the placeholders that its slots may hold.
SLOTS: dict[str, tuple[str, ...]] = {
    "format_user": ("content", "idx", "round"),
    "format_assistant": ("content",),
    "format_system": ("content",),
    "format_function": ("content", "name", "arguments"),
    "format_observation": ("content", "idx", "round"),
    "format_separator": (),
    "format_prefix": (),
}
FLAGS = ("efficient_eos", "replace_eos", "force_system")
FIELDS = (
    *("name", "format_tools", "default_system", "stop_words", "thought_words", "template_class", "empty_thought"),
    *SLOTS,
    *FLAGS,
)
CODED = "DeepSeek4Template"
CLASSES = ("Template", "Llama2Template", "LFDefaultTemplate", "ReasoningTemplate", CODED)
THOUGHT_WORDS = ("<think>\n", "\n</think>\n\n")
EMPTY_THOUGHTS = ("never", "last", "each", "always")


def read_templates(path: Path) -> dict[str, SlotTemplate]:
    """name -> template. ToolError names the file, the template and what is wrong."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ToolError(f"{path}: no such file", hint="check the path") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as fault:
        raise ToolError(f"{path}: no JSON could be read from it: {fault}", hint="mend the file") from None
    if not isinstance(entries, list):
        raise ToolError(f"{path}: a list of templates was expected, found {type(entries).__name__}", hint='[{"name": ...}, ...]')
    templates: dict[str, SlotTemplate] = {}
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise ToolError(f"{path}: template {number} has no name", hint='add "name"')
        where = f"{path}: template {entry['name']!r}"
        if entry["name"] in templates:
            raise ToolError(f"{where} stands there twice", hint="leave one of them out")
        templates[entry["name"]] = _Reader(where, entry).template()
    return templates


class _Reader:
    """One entry of the file, and where it stands, for messages."""

    def __init__(self, where: str, entry: Mapping[str, Any]) -> None:
        self.where = where
        self.entry = {key: value for key, value in entry.items() if value is not None}

    def template(self) -> SlotTemplate:
        for field in self.entry:
            self._one_of(field, FIELDS, "field")
        name: str = self.entry["name"]
        kind = self._choice("template_class", CLASSES, "Llama2Template" if name.startswith("llama2") else "Template")
        reasoning = kind == "ReasoningTemplate"
        flags = {flag: self._typed(flag, bool, False) for flag in FLAGS}
        stop_words = self._texts("stop_words")
        if flags["replace_eos"] and not stop_words:
            raise self._fault("replace_eos needs stop_words: the first of them is the EOS")
        eos: tuple[Piece, ...] = () if flags["efficient_eos"] else (Special("eos_token"),)
        user = self._slots("format_user", ("{{content}}",))
        words = self._texts("thought_words") or (THOUGHT_WORDS if reasoning else ())
        if words and len(words) != 2:
            raise self._fault(f"thought_words: two texts were expected, found {len(words)}")
        template = SlotTemplate(
            name=name,
            user=user,
            assistant=self._slots("format_assistant", ("{{content}}", *eos)),
            system=self._slots("format_system", ("{{content}}",)),
            function=self._slots("format_function", ("Action: {{name}}\nAction Input: {{arguments}}", *eos)),
            observation=self._slots("format_observation", user),
            # LFDefaultTemplate follows LLaMA-Factory, which has no separators: the class passes over them.
            separator=() if kind == "LFDefaultTemplate" else self._slots("format_separator", ()),
            prefix=self._slots("format_prefix", ()),
            function_format=self._tool_format("format_function"),
            tools_format=self._tool_format("format_tools"),
            default_system=self._default_system(),
            stop_words=stop_words,
            thought_words=(words[0], words[1]) if words else None,
            empty_thought=self._choice("empty_thought", EMPTY_THOUGHTS, "each" if reasoning else "never"),
            forgets=reasoning,
            system_in_user=kind == "Llama2Template",
            refused=f"its prompt is built by code ({CODED}), not by slots" if kind == CODED else "",
            **flags,
        )
        if template.system_in_user and not all(isinstance(slot, str) for slot in template.system):
            raise self._fault("format_system: Llama2Template puts it into the user's text, so it can hold no tokens")
        if template.empty_thought != "never" and not words:
            raise self._fault("empty_thought needs thought_words")
        return template

    def _slots(self, field: str, default: tuple[Piece, ...]) -> tuple[Piece, ...]:
        value = self._format(field, ("slots", "tool_format") if field == "format_function" else ("slots",)).get("slots")
        if value is None:
            return default
        if not isinstance(value, list):
            raise self._fault(f"{field}.slots: a list was expected, found {value!r}")
        slots = tuple(self._slot(field, slot) for slot in value)
        found, known = placeholders(slots), SLOTS[field]
        for name in sorted(found):
            if not known:
                raise self._fault(f"{field}: no placeholder may stand here, found {{{{{name}}}}}")
            self._one_of(name, known, f"placeholder of {field}")
        if field == "format_function":
            if found not in ({"content"}, {"name", "arguments"}):
                raise self._fault("format_function: needs either {{content}}, or both {{name}} and {{arguments}}")
        elif known and "content" not in found:
            raise self._fault(f"{field}: {{{{content}}}} is lacking")
        return slots

    def _slot(self, field: str, slot: Any) -> Piece:
        if isinstance(slot, str):
            return slot
        if isinstance(slot, dict) and list(slot) == ["token"] and isinstance(slot["token"], str):
            return Token(slot["token"])
        if slot in (["bos_token"], ["eos_token"]):
            return Special(slot[0])
        known = 'a slot is a text, {"token": "..."}, ["bos_token"] or ["eos_token"]'
        raise self._fault(f"{field}: {known}, found {json.dumps(slot, ensure_ascii=False)}")

    def _tool_format(self, field: str) -> str:
        known = ("slots", "tool_format") if field == "format_function" else ("tool_format",)
        name = self._format(field, known).get("tool_format") or "default"
        self._one_of(name, tuple(TOOL_FORMATS), "tool_format")
        return str(name)

    def _format(self, field: str, keys: Collection[str]) -> Mapping[str, Any]:
        value = self.entry.get(field, {})
        if not isinstance(value, dict):
            raise self._fault(f"{field}: an object with {' and '.join(keys)} was expected, found {value!r}")
        for key in value:
            self._one_of(key, keys, f"key of {field}")
        return value

    def _default_system(self) -> str:
        value = self.entry.get("default_system", "")
        return "".join(self._texts("default_system")) if isinstance(value, list) else str(self._typed("default_system", str, ""))

    def _texts(self, field: str) -> tuple[str, ...]:
        value = self.entry.get(field, [])
        if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
            raise self._fault(f"{field}: a list of texts was expected, found {value!r}")
        return tuple(value)

    def _typed(self, field: str, kind: type, default: Any) -> Any:
        value = self.entry.get(field, default)
        if not isinstance(value, kind):
            raise self._fault(f"{field}: {kind.__name__} was expected, found {value!r}")
        return value

    def _choice(self, field: str, known: Collection[str], default: str) -> str:
        value = self.entry.get(field, default)
        self._one_of(value, known, field)
        return str(value)

    def _one_of(self, name: Any, known: Collection[str], what: str) -> None:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ToolError(f"{self.where}: unknown {what} {name!r}", hint=hint)

    def _fault(self, what: str) -> ToolError:
        return ToolError(f"{self.where}: {what}", hint="mend it there; docs/data.md has the fields")
