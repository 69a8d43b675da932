"""Which column of a record holds what, and how its messages spell their roles: the words of MindSpeed-LLM's --map-keys."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from jumar.schema.errors import Exit, ToolError

COLUMNS: dict[str, dict[str, str | None]] = {
    "alpaca": {
        "prompt": "instruction",
        "query": "input",
        "response": "output",
        "history": "history",
        "system": "system",
        "tools": "tools",
        "chosen": "chosen",
        "rejected": "rejected",
    },
    "sharegpt": {"messages": "conversations", "system": "system", "tools": "tools", "chosen": "chosen", "rejected": "rejected"},
    "messages": {
        "messages": "messages",
        "prompt": "prompt",
        "system": "system",
        "tools": "tools",
        "chosen": "chosen",
        "rejected": "rejected",
    },
    "steps": {"input": "input", "value": "value"},
    "text": {"text": "text"},
}
TAGS: dict[str, dict[str, str | None]] = {
    "sharegpt": {
        "role_tag": "from",
        "content_tag": "value",
        "user_tag": "human",
        "assistant_tag": "gpt",
        "observation_tag": "observation",
        "function_tag": "function_call",
        "system_tag": "system",
    },
    "messages": {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "observation_tag": "tool",
        "function_tag": "function_call",
        "system_tag": "system",
    },
}
FORMATS = tuple(COLUMNS)
# Roles that count as well, as long as the tag that they stand for is not given otherwise.
_ALSO = {
    "sharegpt": {"user": "user_tag", "assistant": "assistant_tag"},
    "messages": {"developer": "system_tag", "function": "observation_tag"},
}
# "call" is the turn of an assistant that calls tools: its content is JSON.
_ROLE_OF_TAG = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "call",
    "system_tag": "system",
}


@dataclass(frozen=True, slots=True)
class Mapping:
    """columns: what holds what, by our names (None: nothing does); tags: how messages spell things; roles: spelt role to ours."""

    format: str
    columns: dict[str, str | None]
    tags: dict[str, str | None] = field(default_factory=dict)
    roles: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        roles = {spelt: _ROLE_OF_TAG[tag] for tag, spelt in self.tags.items() if spelt is not None and tag in _ROLE_OF_TAG}
        for spelt, tag in _ALSO.get(self.format, {}).items():
            if self.tags[tag] == TAGS[self.format][tag]:
                roles.setdefault(spelt, _ROLE_OF_TAG[tag])
        object.__setattr__(self, "roles", roles)


def default_map(format: str, **columns: str | None) -> Mapping:
    """The format's mapping, with these columns otherwise."""
    return Mapping(format, {**COLUMNS[format], **columns}, dict(TAGS.get(format, {})))


def parse_map(items: Iterable[str], format: str) -> Mapping:
    """The mapping that the user gave: `prompt=question`, `tags.user_tag=customer`, `history=` (there is none), a JSON object.

    The object is that of MindSpeed-LLM's --map-keys. As there, `tags` in it leaves every tag that it does not list without a
    value, and messages with such a role are refused; `tags.x=y` changes one tag alone.
    Raises ToolError (usage) on names that the format does not have.
    """
    if format not in COLUMNS:
        raise ToolError(f"unknown format {format}", hint=_known(format, COLUMNS), code=Exit.USAGE)
    columns, tags = dict(COLUMNS[format]), dict(TAGS.get(format, {}))
    for item in items:
        if item.lstrip().startswith("{"):
            whole = _object(item)
            if "tags" in whole:
                given = whole.pop("tags")
                if not isinstance(given, dict):
                    raise ToolError('--map: "tags" must be an object', hint=_TAGS_EXAMPLE, code=Exit.USAGE)
                _put({**dict.fromkeys(tags), **given}, tags, format, "tags.")
            _put(whole, columns, format)
            continue
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ToolError(f"--map {item}: which column is it?", hint=f"write --map {item}=COLUMN", code=Exit.USAGE)
        into, key, prefix = (tags, name[5:], "tags.") if name.startswith("tags.") else (columns, name, "")
        _put({key: value or None}, into, format, prefix)
    if tags and not (tags["role_tag"] and tags["content_tag"]):
        message = "--map: tags without role_tag or content_tag: tags that are not listed have no value"
        raise ToolError(message, hint=f"list them all, or give single ones: {_TAGS_EXAMPLE}", code=Exit.USAGE)
    return Mapping(format, columns, tags)


_TAGS_EXAMPLE = "--map tags.user_tag=customer"


def _object(item: str) -> dict[str, Any]:
    try:
        whole = orjson.loads(item)
    except ValueError as error:
        raise ToolError(f"--map: not JSON: {error}", hint="quote it for the shell: --map '{...}'", code=Exit.USAGE) from None
    assert isinstance(whole, dict)
    return whole


def _put(values: AnyMapping[str, Any], into: dict[str, str | None], format: str, prefix: str = "") -> None:
    for name, value in values.items():
        if name not in into:
            kind = "tag" if prefix else "column"
            message = f"--map: the {format} format has no {kind} {prefix}{name}"
            raise ToolError(message, hint=_known(name, into, prefix), code=Exit.USAGE)
        if value is not None and not isinstance(value, str):
            raise ToolError(f"--map: {prefix}{name} must be a name, not {value!r}", hint="write it in quotes", code=Exit.USAGE)
        into[name] = value


def _known(name: str, known: Iterable[str], prefix: str = "") -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(prefix + n for n in names) or 'none'}"
