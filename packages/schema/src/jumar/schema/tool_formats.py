"""How tools and calls of tools are written into a prompt: the tool formats of slot templates.

The texts are a wire format: models were trained on them, so each stands byte for byte as its source has it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

# MindSpeed-LLM, mindspeed_llm/tasks/preprocess/formatter.py: TOOL_SYSTEM_PROMPT with JSON_FORMAT_PROMPT.
DEFAULT_PROMPT = """\
You have access to the following tools:
%sUse the following format if using a tool:
```
Action: tool name (one of [%s]).
Action Input: the input to the tool%s.
```
"""
JSON_HINT = """, in a JSON format representing the kwargs (e.g. ```{"input": "hello world", "num_beams": 5}```)"""
# LLaMA-Factory, src/llamafactory/data/tool_utils.py: GLM4_TOOL_PROMPT. (glm-4-9b-chat's own template says 智谱AI训练.)
GLM4_PROMPT = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱 AI 公司训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具%s"
)
GLM4_TOOL = "\n\n## %s\n\n%s\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
# Qwen2.5's and Qwen3's own chat templates; the same in LLaMA-Factory and MindSpeed-LLM: QWEN_TOOL_PROMPT.
XML_TOOLS = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>%s
</tools>

For each function call, """
QWEN_PROMPT = (
    XML_TOOLS
    + """\
return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call>"""
)
# LLaMA-Factory: GLM4_MOE_TOOL_PROMPT.
GLM4_MOE_PROMPT = (
    XML_TOOLS
    + """\
output the function name and arguments within the following XML format:
<tool_call>{function-name}
<arg_key>{arg-key-1}</arg_key>
<arg_value>{arg-value-1}</arg_value>
<arg_key>{arg-key-2}</arg_key>
<arg_value>{arg-value-2}</arg_value>
...
</tool_call>
"""
)


class Call(NamedTuple):
    """One call of a tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """One way to write tools.

    tools:   the text that follows the system text.
    calls:   the text of an answer that consists of calls.
    between: what stands between the text of an answer and its calls; None: this format has no answer with both.
    gap:     what separates the text of the tools from a system text before it, as in Qwen3. (LLaMA-Factory writes it always.)
    several: whether one answer may hold several calls.
    """

    tools: Callable[[Sequence[Mapping[str, Any]]], str]
    calls: Callable[[Sequence[Call]], str]
    between: str | None = None
    gap: str = ""
    several: bool = True


def read_call(call: Mapping[str, Any]) -> Call:
    """A call as records have it, `{"function": {"name", "arguments"}}` or the inner part. ValueError if it is none.

    The arguments may be JSON text.
    """
    function = call.get("function", call)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"a tool call has no name: {_short(call)}")
    name, arguments = function["name"], function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError as fault:
            raise ValueError(f"the arguments of the call of {name!r} are no valid JSON: {fault}") from None
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the call of {name!r} are no JSON object: {_short(arguments)}")
    return Call(name, arguments)


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON as all these formats write it: with the characters themselves, not their escapes."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _function(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool without its wrapper `{"type": "function", "function": ...}`. ValueError if it has no name."""
    inner = tool.get("function") if tool.get("type") == "function" and "function" in tool else tool
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ValueError(f"a tool has no name: {_short(tool)}")
    return inner


def _wrapped(tools: Sequence[Mapping[str, Any]]) -> str:
    return "".join("\n" + to_json({"type": "function", "function": _function(t)} if _function(t) is t else t) for t in tools)


def _default_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    functions = [_function(tool) for tool in tools]
    text = "".join(
        f"> Tool Name: {f['name']}\nTool Description: {f.get('description', '')}\nTool Args:\n{_arguments(f)}\n"
        for f in functions
    )
    return DEFAULT_PROMPT % (text, ", ".join(f["name"] for f in functions), JSON_HINT)


def _arguments(function: Mapping[str, Any]) -> str:
    """A line for each argument; a tool without `parameters` has none. ValueError if they are no JSON schema of an object."""
    parameters = function.get("parameters") or {}
    try:
        properties, required = parameters.get("properties", {}), parameters.get("required", ())
        return "".join(_argument(name, schema, name in required) for name, schema in properties.items())
    except (AttributeError, TypeError):
        raise ValueError(f"the parameters of the tool {function['name']!r} are no JSON schema: {_short(parameters)}") from None


def _argument(name: str, schema: Mapping[str, Any], required: bool) -> str:
    kind = f"{schema.get('type', '')}{', required' if required else ''}"
    choices = [value if isinstance(value, str) else to_json(value) for value in schema.get("enum") or ()]
    enum = f", should be one of [{', '.join(choices)}]" if choices else ""
    items = f", where each item should be {schema['items'].get('type', '')}" if schema.get("items") else ""
    return f"  - {name} ({kind}): {schema.get('description', '')}{enum}{items}\n"


def _glm4_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    functions = [_function(tool) for tool in tools]
    return GLM4_PROMPT % "".join(GLM4_TOOL % (f["name"], to_json(f, indent=4)) for f in functions)


def _glm4_moe_call(call: Call) -> str:
    """As in GLM-4.5's own chat template. (LLaMA-Factory leaves out the closing tag.)"""
    values = ((key, value if isinstance(value, str) else to_json(value)) for key, value in call.arguments.items())
    lines = "".join(f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values)
    return f"\n<tool_call>{call.name}\n{lines}</tool_call>"


def _qwen_call(call: Call) -> str:
    return f"<tool_call>\n{to_json({'name': call.name, 'arguments': call.arguments})}\n</tool_call>"


def _qwen_calls(calls: Sequence[Call]) -> str:
    return "\n".join(_qwen_call(call) for call in calls)


_QWEN = ToolFormat(tools=lambda tools: QWEN_PROMPT % _wrapped(tools), calls=_qwen_calls, between="\n", gap="\n\n")

TOOL_FORMATS: dict[str, ToolFormat] = dict(
    default=ToolFormat(
        tools=_default_tools,
        calls=lambda calls: "\n".join(f"Action: {call.name}\nAction Input: {to_json(call.arguments)}" for call in calls),
    ),
    glm4=ToolFormat(
        tools=_glm4_tools,
        calls=lambda calls: "\n".join(f"{name}\n{to_json(arguments)}" for name, arguments in calls),
        several=False,
    ),
    glm4_moe=ToolFormat(
        tools=lambda tools: GLM4_MOE_PROMPT % _wrapped(tools), calls=lambda calls: "".join(map(_glm4_moe_call, calls)), gap="\n\n"
    ),
    qwen=_QWEN,
    qwen3=_QWEN,  # as the reader of MindSpeed-LLM's newest version spells it
    ling=ToolFormat(tools=lambda tools: QWEN_PROMPT % _wrapped(tools) + "\ndetailed thinking off", calls=_qwen_calls),
)
