"""--template: which template a run renders conversations with."""

from __future__ import annotations

import hashlib
from typing import Any

from jumar.data_prep.job import Job, usage
from jumar.data_prep.render import Renderer, SlotRenderer, TemplateRenderer
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.chat import ChatRecord, Turn
from jumar.schema.errors import ToolError
from jumar.schema.slots import SlotTemplate, load_templates, named_template
from jumar.schema.templates import ChatTemplate, names_read, special_tokens, template_of

PROBE = ChatRecord((Turn("user", ""),))
WITHOUT = ("pretrain", "process-reward")


def template_facts(job: Job) -> dict[str, Any]:
    """What identifies the template in a manifest; {} for commands that render nothing."""
    if job.command in WITHOUT:
        return {}
    if job.template == "auto":
        return {"template_sha256": _sha(_source(job))}
    _slots(job)  # that it can be read is known before a record is
    file, name = job.template_file
    if file is not None:
        return {"template_sha256": _sha(file.read_text(encoding="utf-8") + "\0" + name)}
    return {}


def open_template(job: Job, tokenizer: Tokenizer) -> Renderer:
    """The renderer of a run; ToolError if the template is not to be had or does not fit the tokenizer."""
    if job.template != "auto":
        slots, variables = _slots(job), job.template_variables()
        thinking = variables.pop("enable_thinking", None)
        if variables or not (thinking is None or isinstance(thinking, bool)):
            hint = "for example --template-arg enable_thinking=false"
            raise usage(f"--template-arg: of template {job.template} enable_thinking can be set, to true or false", hint)
        if missing := [word for word in slots.stop_words if tokenizer.id_of(word) is None]:
            raise ToolError(
                f"template {slots.name} ends answers with {missing[0]!r}, which the vocabulary of {tokenizer.directory} has not",
                hint="choose the template of this model; --template auto takes its own",
            )
        try:
            slots.prompt(PROBE, thinking=thinking)
        except ToolError as fault:
            raise usage(fault.message, fault.hint or "leave --template-arg out") from None
        return SlotRenderer(slots, tokenizer, thinking)
    source = _source(job)
    _refuse_unused(job, source)
    if missing := [token for token in tokenizer.missing if token in source]:
        raise ToolError(
            f"the chat template writes {missing[0]}, a token of tokenizer_config.json that tokenizer.json has not",
            hint="fetch the tokenizer again, or save it anew: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)",
        )
    variables = {**special_tokens(tokenizer.directory), **job.template_variables()}
    if job.eod is not None:
        variables["eos_token"] = job.eod
    stops = tuple(filter(None, dict.fromkeys((variables.get("eos_token"), *tokenizer.facts.specials))))
    return TemplateRenderer(ChatTemplate(source, variables, stops, job.day()), tokenizer)


def _refuse_unused(job: Job, source: str) -> None:
    """Options that the template has no use for are refused: nothing is silently without effect."""
    if unused := sorted(set(job.template_variables()) - names_read(source)):
        known = ", ".join(sorted(names_read(source) - {"messages", "tools", "documents", "add_generation_prompt"})) or "none"
        raise usage(f"--template-arg {unused[0]}: the model's template does not read it", f"it reads: {known}")
    if job.date is not None and "strftime_now" not in source:
        raise usage("--date: the model's template does not tell the date", "leave it out")


def special_words(job: Job) -> list[str]:
    """Tokens that the template wants found in texts whole."""
    return [] if job.command in WITHOUT or job.template == "auto" else list(_slots(job).stop_words)


def _source(job: Job) -> str:
    directory = job.tokenizer.parent if job.tokenizer.name == "tokenizer.json" else job.tokenizer
    source = template_of(directory)
    if source is None:
        raise ToolError(
            f"{directory} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json)",
            hint="name one: --template chatml, or a file: --template templates.json:NAME",
        )
    return source


def _slots(job: Job) -> SlotTemplate:
    file, name = job.template_file
    if file is None:
        if job.date is not None:
            raise usage(f"--date: template {job.template} does not tell the date", "leave it out")
        try:
            return named_template(job.template)
        except ToolError as fault:
            raise usage(fault.message, fault.hint or "") from None
    templates = load_templates(file)
    if not name and len(templates) == 1:
        return next(iter(templates.values()))
    if name not in templates:
        raise usage(
            f"{file} has no template {name!r}; it has {', '.join(templates)}" if name else f"which template of {file}?",
            f"for example --template {file}:{next(iter(templates), 'NAME')}",
        )
    return templates[name]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
