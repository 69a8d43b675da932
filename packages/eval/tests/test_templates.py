"""Templates of tasks: bounds, and where a fault stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jumar.eval import template_bounds
from jumar.eval.run import Settings, evaluate
from jumar.eval.template import text_of, value_of
from jumar.schema.errors import Exit, ToolError

TASK = {"task": "quiz", "title": "T", "kind": "generate", "metrics": ["exact_match"], "prompt": "{{ q }}", "target": "a"}
TASK |= {"layouts": [{"test": "quiz.jsonl"}]}


@pytest.mark.parametrize(
    "template, said",
    [
        ("{% for i in range(10**9) %}x{% endfor %}", "Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 20,000 steps"),
        ("{% for i in range(9999) %}{{ 'x' * 10000 }}{% endfor %}", "writes more than 50,000,000 characters"),
        ("{{ 'x' * 10**9 }}", "a str times 1000000000 has more than 50,000,000 items"),
        ("{{ 10**9 * 'x' }}", "a str times 1000000000"),
        ("{{ 10 ** (10 ** 8) }}", "is a number of more than 10,000 bits"),
        ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}", "more than 20,000 steps"),
    ],
)
def test_what_a_template_computes_has_a_bound(template: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_STEPS", 20_000)
    with pytest.raises(ToolError, match=said) as fault:
        text_of(template)({})
    assert fault.value.code == Exit.INPUT
    assert "has a bound" in str(fault.value.hint)


def test_loops_are_what_they_are_in_jinja(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "MAX_STEPS", 1000)
    loop = "{% for a in xs %}{{ loop.index }}/{{ loop.length }}{{ ',' if not loop.last }}{% else %}none{% endfor %}"
    assert (text_of(loop)({"xs": "ab"}), text_of(loop)({"xs": []})) == ("1/2,2/2", "none")
    assert text_of("{% for k, v in d.items() if v recursive %}{{ k }}{{ loop(v) }}{% endfor %}")({"d": {}}) == ""
    assert text_of("{% for i in range(900) %}{% endfor %}{{ 2 ** 10 * 3 }}")({}) == "3072"  # and again, from none
    assert [text_of("{% for i in range(900) %}{% endfor %}.")({}) for _ in range(12)] == ["."] * 12
    assert value_of("range(9) | map('string') | join")({}) == "012345678"
    assert value_of("['b', 'a'] | position('a')")({}) == 1
    assert value_of("['b', 'a'] | position(none)")({}) == -1


@pytest.mark.parametrize(
    "keys, key",
    [
        ({"prompt": "{{ q }}{{ nothing }}"}, "prompt"),
        ({"prompt": "{{ q "}, "prompt"),
        ({"target": "a.b.c"}, "target"),
        ({"layouts": [{"test": "quiz.jsonl", "fields": {"q": "q", "a": "nothing"}}]}, "layouts.0.fields.a"),
        ({"layouts": [{"test": "quiz.jsonl", "only": "q +"}]}, "layouts.0.only"),
        ({"description": "{{ nothing }}"}, "description"),
        ({"answers": [{"name": "n", "read": ["text.nothing()"]}]}, "answers.0.read.0"),
    ],
)
def test_faults_name_the_file_and_the_key(keys: dict[str, Any], key: str, tmp_path: Path) -> None:
    (tmp_path / "quiz.jsonl").write_text('{"q": "up?", "a": "up"}\n')
    own = tmp_path / "own.yaml"
    own.write_text(json.dumps(TASK | keys))

    class Says:
        """Answers what it is asked with a word."""

        def facts(self) -> dict[str, Any]:
            return {}

        def answer(self, requests: Any, done: Any) -> None:
            from jumar.eval.requests import Response

            done(0, Response("up"))

    with pytest.raises(ToolError) as fault:
        evaluate(Says, Settings(tasks=(str(own),), data=tmp_path))  # type: ignore[arg-type]
    assert fault.value.message.startswith(f"{own}: {key}: ")
    assert fault.value.hint
