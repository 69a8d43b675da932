"""Templates, some of them written to mislead, and conversations for them."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jumar.schema.templates import (
    MARKS,
    PLACES,
)

Messages = list[dict[str, Any]]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKED = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
# Like those of known models, and shorter: each does another thing with contents.
KNOWN = {
    "chatml": CHATML,
    "marked": MARKED,
    "system first": "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\n' }}{% else %}"
    "{{ 'You are.\n' }}{% endif %}"
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ '[' ~ message['role'] ~ ']' ~ message['content'] ~ '</s>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}",
    "trim": "{{ '<s>' }}{% for message in messages %}"
    "{% set content = '<h>' + message['role'] + '</h>\n\n' + message['content'] | trim"
    " + '<|im_end|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<h>assistant</h>\n\n' }}{% endif %}",
    "thoughts": "{% set ns = namespace(last=messages|length - 1) %}{% for message in messages[::-1] %}"
    "{% if message.role == 'user' and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}"
    "{% set ns.last = (messages|length - 1) - loop.index0 %}{% break %}{% endif %}{% endfor %}{% for message in messages %}"
    "{% set content = message.content %}{% set thought = '' %}{% if '</think>' in message.content %}"
    "{% set content = message.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = message.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if message.role != 'assistant' %}{{ '<' + message.role + '>' + content + '<|im_end|>' }}"
    "{% elif loop.index0 > ns.last and (loop.last or thought) %}{{ '<a><think>' + thought.strip('\n') + '</think>' + "
    "content.lstrip('\n') + '<|im_end|>' }}{% else %}{{ '<a>' + content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}",
    "drops thoughts": "{% for message in messages %}{% set content = message['content'] %}{% if message['role'] == 'assistant' "
    "and '</think>' in content %}{% set content = (content | replace('<think>', '')).partition('</think>')[0] %}{% endif %}"
    "{{ message['role'] + ':' + content + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}",
    "system in a namespace": "{% set ns = namespace(system='', first=true) %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% if ns.first %}{% set ns.system = ns.system + message['content'] %}"
    "{% set ns.first = false %}{% else %}{% set ns.system = ns.system + '\n\n' + message['content'] %}{% endif %}{% endif %}"
    "{% endfor %}{{ bos_token }}{{ ns.system }}{% for message in messages %}{% if message['content'] is not none %}"
    "{% if message['role'] == 'user' %}{{ '<U>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
    "{{ '<A>' + message['content'] + '<|im_end|>' }}{% endif %}{% endif %}{% endfor %}",
    "parts": "{% macro text(content) %}{% if content is string %}{{ content }}{% else %}{% for part in content %}"
    "{% if part.type == 'image' %}<image>{% else %}{{ part.text | upper }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
    "{% for message in messages %}<{{ message.role }}>{{ text(message.content) }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "alternating": "{% if messages[0].role == 'system' %}{% set system = messages[0].content ~ '\n\n' %}"
    "{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% set asked = rest | selectattr('role', 'eq', 'user') | list %}"
    "{% for message in rest %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate, and not ' + message.content) }}{% endif %}{% if message.role == 'user' %}"
    "{% if tools and message == asked[-1] %}{{ tools | tojson }}{% endif %}"
    "{{ '[INST]' + (system if loop.first else '') + message.content + '[/INST]' }}{% else %}"
    "{{ message.content + '</s>' }}{% endif %}"
    "{% endfor %}",
    "calls": "{% for message in messages %}{% if message.role == 'tool' or message.tool_calls is defined %}"
    "{{ message.content | tojson }}{{ message.content[0] }}{{ message.items() }}{% else %}<{{ message.role }}>"
    "{{ message.get('content', 'none') or 'nothing' }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
}
# Each does with contents what cannot be kept or observed alike for all; (None: nothing plain is left.)
ADVERSARIAL = """
{{ c | upper }}
{{ c.title() }}
{{ c[0] }}
{{ c[:-1] }}
{{ c[messages | length] }}
{% for x in c %}{{ x }},{% endfor %}
{% for x in c.split(' ') %}{{ x }},{% endfor %}
{{ c.split() | length }}{{ c }}
{{ c.split('a')[1] }}{{ c }}
{{ c.split('a') | join('-') }}
{{ c.split('a') }}
{{ c in 'abc' }}{{ c }}
{{ c < 'b' }}{{ c }}
{{ 'a' < c < 'b' }}{{ c }}
{{ c == messages[0].content }}{{ c }}
{{ m == messages[-1] }}{{ c }}
{{ c == m.role }}{{ c }}
{{ m.role in c }}{{ c }}
{{ ('  ' + c) | trim }}
{{ (' ' ~ c).lstrip() }}
{{ 'a b' in ('a' + c) }}{{ c }}
{% set x %} {{ c }} {% endset %}{{ x.strip() }}
{% set x %}{{ c }}{% endset %}{{ 'b' in x }}{{ x }}
{% set x | upper %}{{ c }}{% endset %}{{ x }}
{% filter upper %}{{ c }}{% endfilter %}
{% macro f(x) %}{{ x | upper }}{% endmacro %}{{ f(c) }}
{% macro f(x, y=c) %}{{ y | upper }}{% endmacro %}{{ f(1) }}
{% macro f(x) %}{{ x == 'b' }}{{ x }}{% endmacro %}{{ f(x=c) }}
{% macro f() %}{{ varargs[0] | upper }}{% endmacro %}{{ f(c) }}
{% macro f() %}{{ kwargs.x | upper }}{% endmacro %}{{ f(x=c) }}
{% macro f() %}{{ caller() | upper }}{% endmacro %}{% call f() %}{{ c }}{% endcall %}
{% macro f(x) %}{{ x | upper }}{% endmacro %}{% macro g(x) %}{{ x }}{% endmacro %}{% set g = f %}{{ g(c) }}
{% macro f(x) %}{{ x | upper }}{% endmacro %}{% set a = {'f': f} %}{{ a.f(c) }}
{% macro g(x) %}{{ x }}{% endmacro %}{% set f = g %}{% macro h() %}{{ f.name }}{% endmacro %}{{ f(c) }}{{ h() }}
{% set ns = namespace(x=c) %}{{ ns.x | upper }}
{% set ns = namespace(x='') %}{% set ns.x = ns.x + c %}{{ ns.x | trim }}
{% set ns = namespace(x='') %}{% set ns.x = c %}{{ ns['x'][0] }}
{% set ns = namespace({'x': c}) %}{{ ns.x | upper }}
{% set ns = namespace(**m) %}{{ ns.content | upper }}
{% set ns = namespace(x=c) %}{{ ns }}
{% with x = c %}{{ x | lower }}{% endwith %}
{% set x, y = c, 1 %}{{ x | lower }}
{% set x = [c] %}{{ x[0] | lower }}
{% set x = {'a': c} %}{{ x.a | lower }}
{{ [c, 'b'] | join(',') | upper }}
{{ {'a': c} | tojson }}
{{ {c: 1}['b'] }}{{ c }}
{{ c | replace('a', 'b') }}
{{ c | replace('', '.') }}
{{ c.replace('a', c) }}
{{ 'xax'.replace('a', c) | length }}{{ c }}
{{ '%s-5s' | format(c) }}{{ '%.1s' | format(c) }}
{{ '{:.1}'.format(c) }}
{{ '%.1s' % c }}
{% set f = '{:.1}'.format %}{{ f(c) }}
{{ c * 2 }}
{{ c.__len__() }}{{ c }}
{{ c.__class__ }}{{ c }}
{{ c | length > 5 }}{{ c }}
{{ c | int + 1 }}{{ c }}
{{ c | tojson }}
{{ c | e }}
{{ '<' | e + c }}
{{ '<' | safe + c }}
{{ (c | safe) + '<' }}
{{ ('<' | urlize) + c }}
{{ c | default('x', true) }}
{{ u | default(c) | upper }}
{{ u | default('x') }}{{ c }}
{{ c or 'x' }}
{{ c and 'x' }}{{ c }}
{{ 'x' if c else 'y' }}{{ c }}
{{ (c or u) | upper }}
{{ (u if u else c) | upper }}
{% if not c %}none{% endif %}{{ c }}
{% if c %}some{% endif %}{{ c }}
{% if c is lower %}x{% endif %}{{ c }}
{% if c is sameas 'b' %}x{% endif %}{{ c }}
{% if m.role is sameas 'user' %}x{% endif %}{{ c }}
{% if c is eq 'b' %}x{% endif %}{{ c }}
{% if c is in ['b'] %}x{% endif %}{{ c }}
{% if 'b' is in c %}x{% endif %}{{ c }}
{% if 'b' not in c %}x{% endif %}{{ c }}
{% if 'b' != c %}x{% endif %}{{ c }}
{% if c == '' %}x{% endif %}{{ c }}
{% if '' in c %}x{% endif %}{{ c }}
{% if c.find('a') == 0 %}x{% endif %}{{ c }}
{% if c.count('a') > 1 %}x{% endif %}{{ c }}
{% if c.isdigit() %}x{% endif %}{{ c }}
{{ c.startswith('a') }}{{ c }}{{ c.endswith('b', 1) }}
{{ c.startswith(('a', 'b')) }}{{ c }}
{{ c.startswith(m.role) }}{{ c }}
{{ 'abc'.startswith(c) }}{{ c }}
{{ c.removeprefix('a').removesuffix('b') }}
{{ c.rstrip('ab ') }}
{{ c.strip(none) }}
{{ c[-'a'] }}{{ c }}
{{ c.split('a', *[1])[0] }}
{{ c | replace(**{'s': 'a'}) }}{{ c }}
{{ c.partition('a')[2] }}{{ c.rpartition('b')[-1] }}
{{ c.encode() }}
{{ m }}
{{ m | string }}
{{ m | tojson }}
{{ m | length }}{{ c }}
{{ m | first }}{{ c }}
{{ m.items() | list }}
{% for k, v in m.items() %}{{ v | upper }}{% endfor %}
{% for k in m %}{{ m[k] | upper }}{% endfor %}
{{ m.values() | list | last | upper }}
{{ m['con' ~ 'tent'] | upper }}
{{ m[u] }}{{ c }}
{{ m | attr('content') }}{{ c }}
{{ m.get('content') | upper }}
{{ m.get('con' ~ 'tent') | upper }}
{{ m.get('x', c) | upper }}
{{ m.pop('content') }}
{{ u.get(c) }}{{ c }}
{{ messages }}
{{ messages | string | length }}{{ c }}
{{ messages | tojson }}
{{ messages | map(attribute='content') | join(' ') | upper }}
{{ messages | map(attribute='role') | join(' ') }}{{ c }}
{{ messages | map('string') | join }}
{{ messages | selectattr('content', 'eq', 'b') | list | length }}{{ c }}
{{ messages | selectattr('content') | list | length }}{{ c }}
{{ messages | selectattr('role', 'same' ~ 'as', 'user') | list | length }}{{ c }}
{{ messages | rejectattr('role', 'eq', 'user') | list | length }}{{ c }}
{{ messages | sort(attribute='content') | first | string }}
{{ messages | groupby('content') | length }}{{ c }}
{{ messages | unique(attribute='content') | list | length }}{{ c }}
{{ (messages | sum(attribute='content', start='')) | upper }}
{{ messages | batch(2) | list }}
{{ messages.index(m) }}{{ c }}
{{ messages.count(m) }}{{ c }}
{{ m in messages }}{{ c }}
{{ (messages + messages)[-1].content | upper }}
{{ (messages | last).content | upper }}
{{ (messages | random).role }}{{ c }}
{{ messages[1:][0].content | upper }}
{{ loop.previtem.content | upper if not loop.first }}{{ c }}
{{ loop.nextitem.content == 'b' }}{{ c }}
{{ loop.changed(c) }}{{ c }}
{{ loop.cycle(c, 'x') | upper }}
{{ loop.cycle('x', 'y') }}{{ c }}
{{ cycler(c, 'x').next() | upper }}
{{ dict(a=c).a | upper }}
{{ range(c | length) | list }}
{{ lipsum(n=1) }}{{ c }}
{{ self }}{{ c }}
{{ (c,) | join | upper }}
{% set x = c %}{% set y = x %}{% set z = y %}{{ z | upper }}
{% set x = 'x' %}{{ c }}{% if loop.last %}{% set x = c %}{{ x | upper }}{% endif %}
{% if m.content.content is defined %}x{% endif %}{{ c }}
{% if c == 'b' %}{% continue %}{% endif %}{{ c }}
{% if 'stop' in c %}{% break %}{% endif %}{{ c }}
{% for x in messages if x.content == 'b' %}{{ loop.index }}{% endfor %}{{ c }}
{% for x in messages recursive %}{{ x.content }}{% endfor %}
{% include 'x' %}
{% import 'x' as y %}{{ c }}
{% block b %}{{ c }}{% endblock %}
{{ messages | selectattr('role') }}{{ c }}
{{ 'a'.upper }}{{ c }}
{{ '\ufdd30\ufdd4' }}
{{ c }}{{ '%s %%' }}
{{ c | trim }}
{{ c | trim('ab') }}
{{ c.lstrip('a') }}
{{ c.lstrip() }}
{{ c.split('a')[0] }}
{{ c.rsplit('a', 1)[-1] }}
{{ c.split('a') | last }}
{{ c.replace('a', 'b') }}
{{ c.startswith('a') }}{{ c }}
{{ c.endswith('b') }}{{ c }}
{{ c == none }}{{ c }}
{% with x = c %}{{ 'b' in x }}{{ x }}{% endwith %}
{% set ns = namespace(x=c) %}{{ ns.x.rstrip('b') }}
{% set ns = namespace(x='') %}{% set ns.x = c %}{{ ns.x == 'b' }}{{ c }}
{% macro f(x, y=c) %}{{ y == 'b' }}{{ y }}{% endmacro %}{{ f(1) }}
{{ loop.previtem.content == 'b' if not loop.first }}{{ c }}
{{ loop.nextitem.content == 'b' if not loop.last }}{{ c }}
{{ m.x.y.z if m.x }}{{ c }}
{{ (u | default(c)).lstrip('a') }}
{{ (u or c).lstrip('a') }}
{{ (c if c else u).lstrip('a') }}
{{ messages[loop.index0].content.rstrip('b') }}
{{ (messages | last).content == 'b' }}{{ c }}
{{ messages[1:][0].content == 'b' }}{{ c }}
{{ m.get('content').lstrip('a') }}
{{ m.get('x', c).lstrip('a') }}
{{ m['content'] == 'b' }}{{ m.content }}
{{ c }}{{ c }}
{{ messages[0].content }}
x
""".strip().split("\n")
# Marked, for the prefixes of many of them are rendered otherwise than they are.
PROVEN = 54  # of ADVERSARIAL
AROUND = (
    "{%% for m in messages %%}{%% set c = m.content %%}<{{ m.role }}>%s{%% generation %%}<|im_end|>"
    "{%% endgeneration %%}{%% endfor %%}"
)
PIECES = [
    *("a", "b", "x", " ", "\n", "\t", "\u00a0", "\x1c", "", "A", "1", "%s", "%", "<", "&", "<|im_end|>", "</think>", "<think>"),
    *("<tool>", "</tool>", "user", "assistant", "{{ c }}", "{% endif %}", "你好", "🙂", "stop", *MARKS, *PLACES, "\ufdd30\ufdd4"),
]
CONTENT = (
    st.sampled_from(["a", "b", "ab", "hello", "c d"]) | st.lists(st.sampled_from(PIECES), max_size=5).map("".join) | st.text()
)
MANY = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    contents = draw(st.lists(CONTENT, min_size=1, max_size=6))
    roles = ("user", "assistant") if draw(st.booleans()) else ("assistant", "user")
    out = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": draw(CONTENT)}, *out] if draw(st.booleans()) else out
