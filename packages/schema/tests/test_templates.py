"""Chat templates: rendering in the sandbox, what the assistant wrote, and conversations joined instead of rendered.

The proof of `opaque.py` is tested by what it claims: whatever the template and the contents, what is joined is what is rendered.
"""

from __future__ import annotations

import datetime
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, reject, settings
from hypothesis import strategies as st

from jumar.schema import templates
from jumar.schema.errors import ToolError
from jumar.schema.opaque import Plain
from jumar.schema.templates import (
    MARKS,
    PLACES,
    ChatTemplate,
    ShortcutFault,
    TemplateFault,
    read_json,
    special_tokens,
    template_of,
)
from template_texts import ADVERSARIAL, AROUND, CHATML, CONTENT, KNOWN, MANY, MARKED, PROVEN, Messages, conversations


@pytest.fixture(autouse=True, scope="module")
def _unchecked() -> Iterator[None]:
    """What is joined is compared by the tests, and not by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(templates, "CHECKED_FIRST", 0)
        patch.setattr(templates, "CHECKED_EVERY", 10**9)
        yield


def template(source: str, **how: Any) -> ChatTemplate:
    return ChatTemplate(source, {"bos_token": "<bos>"}, ("<|im_end|>", "</s>"), **how)


def talk(*contents: str, system: str | None = None) -> Messages:
    out = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return out if system is None else [{"role": "system", "content": system}, *out]


def outcome(run: Any) -> Any:
    try:
        return run()
    except TemplateFault:
        return TemplateFault


def joined(chat: ChatTemplate) -> int:
    """How many conversations were joined, not rendered."""
    return sum(shape.joined for shape in chat._shapes.values() if shape is not None)


def agree(chat: ChatTemplate, messages: Messages) -> None:
    """What is given is what the template renders, the turns where its prefixes say."""
    before = joined(chat)
    given_ = outcome(lambda: chat.render_labelled(messages))
    if joined(chat) > before:
        expected = outcome(lambda: chat._rendered(messages, None, None, ()))
        assert given_ is not TemplateFault
        assert given_[0] == chat.render(messages)
        if expected is not TemplateFault:
            assert given_[1] == expected[1]


# --- joined, not rendered


@pytest.mark.parametrize("name", KNOWN)
def test_plain_conversations_are_joined(name: str) -> None:
    chat = template(KNOWN[name])
    for messages in (talk("Hi", "Hello"), talk("Hi", "Hello", "And?", "Well."), talk("Hi", "Hello", system="Be brief.")):
        agree(chat, messages)
    assert joined(chat) == 3


@pytest.mark.parametrize("name", KNOWN)
@MANY
@given(st.lists(conversations(), min_size=1, max_size=3))
def test_known_templates(name: str, given_: list[Messages]) -> None:
    chat = template(KNOWN[name])
    for messages in given_:
        agree(chat, messages)


@pytest.mark.parametrize("body", ADVERSARIAL)
@settings(MANY, max_examples=15)
@given(st.lists(conversations(), min_size=1, max_size=3))
@example([talk("b", "a"), talk("a", "b"), talk("ab", "ab"), talk("", " "), talk("b stop", "x"), talk("cab a", "1")])
@example([talk("<b", "&"), talk("B", "b", "b", "b"), talk("b", "a", "c", "b"), talk("user", "assistant"), talk("c", "c")])
def test_templates_that_look_into_contents(body: str, given_: list[Messages]) -> None:
    chat = template(AROUND % body.replace("\\ufdd3", PLACES[0]).replace("\\ufdd4", PLACES[1]))
    for messages in given_:
        agree(chat, messages)


def test_how_many_of_these_are_proven() -> None:
    """That the test above is not about nothing."""
    chats = [template(AROUND % body) for body in ADVERSARIAL if "ufdd" not in body]
    for chat in chats:
        outcome(lambda chat=chat: chat.render_labelled(talk("Hello", "Hm")))
    assert sum(map(joined, chats)) == PROVEN


# Expressions at random: leaves, and what is made of one or two others.
LEAVES = "c m messages m.role ns.x y u loop 'a' '' '\\n' 1 0 none true messages[0] messages[-1] [] f loop.previtem".split(" ")
UNARY = """
(@)|trim (@)|upper (@)|length (@)|string (@)|list (@)|first (@)|last (@)|default('a') (@)|replace('a','b') (@)|tojson (@)|reverse
(@)|safe (@)|e (@)|join (@)|map(attribute='content') (@)|map(attribute='role')|list (@)|selectattr('content')
(@)|selectattr('role','eq','user') (@).content (@).role (@).x (@).k (@)['content'] (@)[0] (@)[-1] (@)[1:]
(@).strip() (@).lstrip('a') (@).rstrip('b') (@).split('a') (@).partition('b') (@).startswith('a') (@).endswith('b') (@).find('a')
(@).count('b') (@).removeprefix('a') (@).get('content') (@).items() not(@) -(@) (@)=='b' (@)!='' 'a'in(@) (@)in'ab'
(@)is(string) (@)is(mapping) (@)is(none) (@)is(defined) f(@) [@] {'k':@} namespace(x=@)
""".split()
BINARY = """
(@)+(#)  (@)~(#)  (@) and (#)  (@) or (#)  (@) if (#) else 'z'  (@)==(#)  (@) in (#)  (@)<(#)  (@)*(#)  (@)%(#)  (@)[#]  f(@, #)
(@)|default(#)  (@)|default(#, true)  (@).startswith(#)  (@).replace('a', #)  (@).get(#)
"""
EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: (
        st.builds(lambda form, one: form.replace("@", one), st.sampled_from(UNARY), inner)
        | st.builds(
            lambda form, one, two: form.replace("@", one).replace("#", two),
            st.sampled_from(re.split(r"\s{2,}|\n", BINARY.strip())),
            inner,
            inner,
        )
    ),
    max_leaves=5,
)
STATEMENTS = st.builds(
    lambda form, one: form.replace("@", one),
    st.sampled_from(
        [
            *["{{ @ }}"] * 3,
            *("{% set y = @ %}", "{% set ns.x = @ %}", "{% set c = @ %}", "{% set m = @ %}", "{% if @ %}X{% endif %}"),
            *("{% for y in @ %}{{ y }}{{ loop.index }}{% endfor %}", "{% for y in @ %}{{ y.content }}{% endfor %}"),
            *("{% set y %}{{ @ }}{% endset %}", "{% with y = @ %}{{ y }}{% endwith %}", "{% for k, y in @ %}{{ y }}{% endfor %}"),
            "{% if @ %}{% continue %}{% endif %}",
        ]
    ),
    EXPRESSIONS,
)


@settings(MANY, max_examples=400)
@given(EXPRESSIONS, st.lists(STATEMENTS, max_size=4), st.lists(conversations(), min_size=1, max_size=3))
def test_templates_at_random(returned: str, statements: list[str], given_: list[Messages]) -> None:
    prelude = "{% set ns = namespace(x='') %}{% macro f(y, u='b') %}{{ " + returned + " }}{% endmacro %}"
    chat = template(prelude + AROUND % "".join([*statements, "{{ c }}"]))
    try:
        chat.render(talk("Hi"))
    except TemplateFault:
        pass
    except ToolError:
        reject()  # no Jinja
    for messages in [*given_, talk("c", "d"), talk("b", "b"), talk("a b", "ba"), talk("B", "aa")]:
        agree(chat, messages)


def test_what_is_rendered_and_not_joined() -> None:
    class Text(str):
        __slots__ = ()

    chat = template(KNOWN["thoughts"])
    chat.render_labelled(talk("Hi", "Hello"))
    assert joined(chat) == 1
    for messages in (
        talk("Hi", "<think>1</think>Hello"),
        talk("<tool>1</tool>", "Hello"),
        talk("Hi", "\nHello"),
        talk("Hi", "Hello" + MARKS[1]),
        talk("Hi", Text("Hello")),
        [*talk("Hi"), {"role": "assistant", "content": "Hello", "reasoning": "?"}],
    ):
        assert chat.render_labelled(messages)[0] == chat.render(messages)
    chat.render_labelled(talk("Hi", "Hello"), [{"type": "function"}])
    assert joined(chat) == 1


def test_roles_are_texts() -> None:
    """1 == True, and a template writes them otherwise."""
    chat = template("{% for message in messages %}{{ message.role }}{{ message.content }}{% endfor %}")
    assert [chat.render_labelled([{"role": role, "content": "x"}])[0] for role in ("1", 1, True, 1.0)] == [
        "1x",
        "1x",
        "Truex",
        "1.0x",
    ]


def test_a_message_of_two_keys_without_content() -> None:
    chat = template("{% for message in messages %}{{ message.content }}{% endfor %}")
    assert chat.render_labelled([{"role": "user", "tool_calls": []}]) == ("", [])


def test_a_bug_does_not_go_on_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "CHECKED_FIRST", 2)
    monkeypatch.setattr(templates, "CHECKED_EVERY", 5)
    chat = template(CHATML)
    assert chat.render_labelled(talk("Hi", "Hello"))[0] == chat.render(talk("Hi", "Hello"))
    (shape,) = chat._shapes.values()
    assert shape is not None
    shape.form = "wrong: %s, %s"
    with pytest.raises(ShortcutFault, match="wrong: Hi, Hello"):
        chat.render_labelled(talk("Hi", "Hello"))
    for _ in (3, 4):
        assert chat.render_labelled(talk("Hi", "Hello"))[0] == "wrong: Hi, Hello"
    with pytest.raises(ShortcutFault, match="please report"):
        chat.render_labelled(talk("Hi", "Hello"))


def test_white_space_is_what_strip_takes() -> None:
    plain = Plain(stripped=True).predicate()
    for code in range(sys.maxunicode + 1):
        assert plain(chr(code)) == (chr(code).strip() == chr(code)), hex(code)


@MANY
@given(st.sets(CONTENT), st.sets(CONTENT), st.sets(CONTENT), st.sets(CONTENT), CONTENT)
def test_predicate(unequal: set[str], without: set[str], starts: set[str], ends: set[str], text: str) -> None:
    expected = (
        text in unequal or any(x in text for x in without) or any(map(text.startswith, starts)) or any(map(text.endswith, ends))
    )
    assert Plain(unequal, without, starts, ends).predicate()(text) == (not expected)


# --- rendering, and the turns of the assistant


def answers(chat: ChatTemplate, messages: Messages, tools: Any = None) -> list[str]:
    text, spans = chat.render_labelled(messages, tools)
    assert text == chat.render(messages, tools)
    return [text[start:end] for start, end in spans]


@pytest.mark.parametrize("source", [CHATML, MARKED])
@pytest.mark.parametrize("tools", [None, [{"type": "function"}]])
def test_answers_with_their_end_token(source: str, tools: Any) -> None:
    messages = talk("Hi", "Hello", "<|im_end|>", " Yes \n", system="Be brief.")
    assert answers(template(source), messages, tools) == ["Hello<|im_end|>", " Yes \n<|im_end|>"]
    assert answers(template(source), talk("Hi")) == []


def test_prompt() -> None:
    chat = template(CHATML)
    assert not chat.marked
    whole, prompt = chat.render(talk("Hi", "Hello")), chat.render(talk("Hi"), prompt=True)
    assert whole == prompt + "Hello<|im_end|>\n"


def test_marks_leave_no_trace() -> None:
    chat = template(MARKED)
    assert chat.marked
    assert chat.render(talk("Hi", "Hello")) == template(CHATML).render(talk("Hi", "Hello"))


def test_old_thoughts_are_dropped() -> None:
    messages = talk("1?", "<think>one</think>1", "2?", "<think>two</think>2")
    assert answers(template(KNOWN["thoughts"]), messages) == ["1<|im_end|>", "<think>two</think>2<|im_end|>"]


def test_a_template_that_leaves_out_an_answer() -> None:
    source = "{% for message in messages %}{% if message.role == 'user' %}{{ message.content }}{% endif %}{% endfor %}"
    with pytest.raises(TemplateFault):
        template("{{ messages | length }}" + source).render_labelled(talk("a", "b"))


@pytest.mark.parametrize(
    "source,words",
    [
        ("{{ raise_exception('no ' + messages[0].content) }}", "no Hi"),
        ("{{ messages[0].content + 1 }}", "str"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ 1 / 0 }}", "zero"),
        ("{{ messages.append(1) }}", "unsafe|not safely"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ strftime_now('%Y') }}", "--date"),
        ("{% include 'x' %}", "loader"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_what_a_template_fails_on(source: str, words: str) -> None:
    for method in (template(source).render, template(source).render_labelled):
        with pytest.raises(TemplateFault, match=words):
            method(talk("Hi", "Hello"))


def test_no_jinja() -> None:
    with pytest.raises(ToolError, match="not Jinja") as fault:
        template("{% for %}").render(talk("Hi"))
    assert fault.value.hint is not None
    with pytest.raises(ToolError, match="not Jinja"):
        template("{% for %}").render_labelled(talk("Hi"))


def test_variables_date_and_json() -> None:
    chat = template(
        "{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ {'b': '<é>', 'a': [1]} | tojson }}", date=datetime.date(2026, 1, 31)
    )
    assert chat.render([]) == '<bos>31 Jan 2026{"b": "<é>", "a": [1]}'
    assert chat.render_labelled([]) == (chat.render([]), [])


def test_blocks_are_trimmed() -> None:
    assert template("  {% if true %}\nx\n  {% endif %}\ny").render([]) == "x\ny"


def test_jinja_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, jumar.schema.templates; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- a tokenizer's files


def test_template_of(tmp_path: Path) -> None:
    def write(name: str, value: Any) -> None:
        (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")

    assert template_of(tmp_path) is None
    write(
        "tokenizer_config.json", {"chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]}
    )
    assert (template_of(tmp_path), template_of(tmp_path, tools=True)) == ("d", "t")
    write("tokenizer_config.json", {"chat_template": [{"name": "default", "template": "d"}, "?"]})
    assert template_of(tmp_path, tools=True) == "d"
    write("tokenizer_config.json", {"chat_template": "one"})
    assert template_of(tmp_path, tools=True) == "one"
    write("chat_template.json", {"chat_template": "two"})
    assert template_of(tmp_path) == "two"
    write("chat_template.jinja", "three")
    assert template_of(tmp_path) == "three"


def test_special_tokens(tmp_path: Path) -> None:
    assert special_tokens(tmp_path) == {}
    (tmp_path / "special_tokens_map.json").write_text(
        '{"bos_token": "<old>", "unk_token": {"content": "<unk>"}}', encoding="utf-8"
    )
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": null, "x": "y"}', encoding="utf-8")
    assert special_tokens(tmp_path) == {"bos_token": "<s>", "unk_token": "<unk>"}


@pytest.mark.parametrize("text,words", [("{", "is not JSON"), ("[" * 100_000, "is not JSON"), ("[]", "a list")])
def test_damaged_files(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(ToolError, match=words):
        read_json(tmp_path / "x.json")
