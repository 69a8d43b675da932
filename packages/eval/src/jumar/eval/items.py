"""Documents to requests: worked examples, prompts, choices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from jumar.eval.data import SUBJECT, Doc, Found, documents
from jumar.eval.fewshot import given_texts, texts_of
from jumar.eval.haystack import hidden
from jumar.eval.requests import Measure, Request
from jumar.eval.retrieval import made
from jumar.eval.task import PROTOCOLS, Task
from jumar.eval.template import SourceFault, text_of, value_of
from jumar.schema.errors import Exit, ToolError

Messages = list[dict[str, str]]
Render = Callable[[Sequence[dict[str, str]]], str]
SEED = 1234
"""Of drawn worked examples; lm-eval's."""


@dataclass(frozen=True, slots=True)
class Item:
    """One document with what is asked of it.

    target: the right answer, or a list of several; of a choice its number, -1 where the document names none of the choices
    """

    number: int
    doc: Doc
    target: Any
    choices: tuple[str, ...]
    requests: tuple[Request, ...]

    @property
    def targets(self) -> list[Any]:
        """All right answers."""
        return list(self.target) if isinstance(self.target, list) else [self.target]


@dataclass(frozen=True, slots=True)
class Unit:
    """What has a score of its own: a task, or one subject of it."""

    name: str
    task: Task
    items: tuple[Item, ...]
    total: int
    shots: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """Settings that change requests.

    shots: None for the task's own; render: by a chat template; system: a message before all; measure: by the model's tokens
    template: as render, of the tasks that are always asked so
    fewshot: task -> a file of worked examples; max_new_tokens: None for the task's own
    """

    shots: int | None = None
    max_new_tokens: int | None = None
    fewshot: Mapping[str, Path] = field(default_factory=dict)
    limit: int | None = None
    render: Render | None = None
    template: Render | None = None
    system: str | None = None
    measure: Measure = field(default_factory=Measure)


def unit_of(task: Task, found: Found, how: How) -> Unit:
    """All requests of a subject.

    Raises ToolError: 3 for documents that do not fit and worked examples that are missing, 2 for more of them than there are.
    """
    name = task.task if found.subject is None else f"{task.task}_{found.subject}"
    if task.haystack is not None or task.retrieval is not None:
        return _haystack_unit(name, task, found, how)
    docs, pool = documents(task, found)
    shots = 0 if task.kind == "rolling" else task.shots if how.shots is None else how.shots
    given = given_texts(how.fewshot[task.task], task, found.subject) if task.task in how.fewshot else None
    if given is None:
        _check_shots(task, found, name, shots, asked=how.shots is not None)
    asked = docs if how.limit is None else docs[: how.limit]
    own = found.layout.shots is None and not task.worked
    draw = _drawn(task, pool, 0 if given is not None else shots, own=own)
    builder = _Builder(task, how, given)
    items = tuple(builder.item(number, doc, draw(doc), f"{name}, document {number}") for number, doc in enumerate(asked))
    return Unit(name, task, items, len(docs), shots, tuple(_notes(items)))


def _haystack_unit(name: str, task: Task, found: Found, how: How) -> Unit:
    """Its documents do not keep their long context, which the request holds."""
    if how.shots:
        raise ToolError(f"{name} has no worked examples", hint="leave --shots out", code=Exit.USAGE)
    builder = _Builder(task, how)
    docs: Iterable[Doc]
    if task.haystack is not None:
        docs, notes = hidden(task, found, how.measure, lambda doc: builder.item(0, doc, [], name).requests[0].context)
        total = len(docs)
    else:
        docs, total, notes = made(task, found, how.measure)
    items = []
    for number, doc in enumerate(islice(docs, how.limit)):
        item = builder.item(number, doc, [], f"{name}, document {number}")
        items.append(replace(item, doc={key: value for key, value in doc.items() if key != "context"}))
    return Unit(name, task, tuple(items), total, 0, tuple(notes))


def _check_shots(task: Task, found: Found, name: str, shots: int, *, asked: bool) -> None:
    """Raises ToolError: 3 for worked examples whose file is missing, 2 for those that a protocol does not have."""
    given = "--fewshot FILE, or " if task.baked else ""
    if shots and found.layout.shots and not found.shots:
        path = found.folder / found.layout.shots.replace(SUBJECT, found.subject or "")
        raise ToolError(f"{name}: no worked examples", hint=f"expected {path}, or {given}--shots 0")
    if shots and task.baked and not (found.layout.shots or task.worked or asked):
        hint = f"{given}--shots {shots}, which takes the first documents"
        raise ToolError(f"{name}: its layout has no worked examples", hint=hint, code=Exit.USAGE)
    if shots and task.protocol != PROTOCOLS[0] and not task.baked:
        what = f"{name}: the protocol {task.protocol} asks without worked examples"
        raise ToolError(what, hint="leave --shots out", code=Exit.USAGE)


def _drawn(task: Task, pool: list[Doc], shots: int, *, own: bool) -> Callable[[Doc], list[Doc]]:
    """The worked examples of each document, asked for in order. own: they are taken from the documents: never the one itself."""
    apart = own or task.fewshot == "others"
    most = len(pool) - apart
    if shots and shots > most:
        raise ToolError(
            f"{task.task}: {shots} worked examples are asked for, and there are {most}", hint=f"--shots {most}", code=Exit.USAGE
        )
    generator = random.Random(SEED)

    def first(doc: Doc) -> list[Doc]:
        return [d for d in pool[: shots + 1] if d != doc][:shots] if own else pool[:shots]

    def drawn(doc: Doc) -> list[Doc]:
        if not shots:
            return []
        if not apart:
            return generator.sample(pool, shots)
        found = [d for d in generator.sample(pool, shots + 1) if d != doc][:shots]
        return found if len(found) == shots else generator.sample([d for d in pool if d != doc], shots)

    return first if task.fewshot == "first" else drawn


def _listed(target: Any) -> list[Any]:
    return target if isinstance(target, list) else [target]


class _Builder:
    """Prompts of one task. The text before the question is made once for equal worked examples."""

    def __init__(self, task: Task, how: How, given: Mapping[str, str] | None = None) -> None:
        self.task, self.how = task, how
        self.render = how.template if task.chat and how.render is None else how.render
        self._texts = texts_of(task, given)
        self._made: dict[tuple[object, ...], Messages] = {}

    def item(self, number: int, doc: Doc, examples: list[Doc], where: str) -> Item:
        """Raises ToolError (3) that says which document is at fault."""
        try:
            choices, target = self._choices(doc), self._target(doc)
            if self.task.kind == "choice" and not any(t in range(len(choices)) for t in _listed(target)):
                target = -1
            if self.task.kind == "generate" and target is None:
                raise ToolError("it names no right answer", hint="mend the row, or leave it out")
            return Item(number, doc, target, choices, tuple(self._requests(doc, choices, examples)))
        except ToolError as fault:
            has = f" (the document has: {', '.join(map(str, doc))})" if isinstance(fault, SourceFault) else ""
            raise fault.at(where, has) from None

    def _choices(self, doc: Doc) -> tuple[str, ...]:
        choices = self.task.choices
        if not isinstance(choices, str):
            return choices
        found = value_of(choices)(doc)
        several = isinstance(found, Iterable) and not isinstance(found, str | Mapping)
        texts = tuple("" if c is None else str(c) for c in found) if several else ()
        if not texts:
            raise ToolError(f"choices are {found!r:.100}", hint="the task's expression is to give a list of texts")
        return texts

    def _target(self, doc: Doc, expression: str | None = None) -> Any:
        return value_of(expression or self.task.target)(doc)

    def _requests(self, doc: Doc, choices: tuple[str, ...], examples: list[Doc]) -> Iterator[Request]:
        task = self.task
        if task.kind == "rolling":
            yield Request("rolling", "", text_of(task.prompt)(doc))
            return
        before = [] if task.baked else self._before(doc, examples)
        if task.ending is not None:
            ending, delimiter = str(value_of(task.ending)(doc)), task.delimiter
            for choice in choices:
                context, head = self._context(before, choice)
                yield Request("loglikelihood", context, delimiter + ending, head)
            return
        context, head = self._baked(doc, examples) if task.baked else self._context(before, text_of(task.prompt)(doc))
        if task.kind == "choice":
            delimiter = task.delimiter if self.render is None else ""
            for choice in choices:
                yield Request("loglikelihood", context, delimiter + choice, head, alone=task.alone)
            return
        until = (task.separator,) if task.until is None else task.until
        most = self.how.max_new_tokens or task.max_new_tokens
        yield Request("generate", context, "", head, until, most, task.beams)

    def _baked(self, doc: Doc, examples: list[Doc]) -> tuple[str, str]:
        """(prompt, the worked examples that it begins with)."""
        texts = self._texts(doc, examples)
        prompt, head = text_of(self.task.prompt)({**doc, **texts}), texts[self.task.parts[0]]
        return prompt, head if prompt.startswith(head) else ""

    def _before(self, doc: Doc, examples: list[Doc]) -> Messages:
        """Description and worked examples, as messages."""
        description = text_of(self.task.description)({**(examples[0] if examples else {}), **doc})
        key = (description, *map(id, examples))
        if key not in self._made:
            messages: Messages = []
            if system := self._joined(self.how.system or "", description):
                messages.append({"role": "system", "content": system})
            for number, example in enumerate(examples, 1):
                question, answer = self._example(number, example)
                messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            self._made = {key: messages}  # of drawn examples none comes again
        return self._made[key]

    def _joined(self, system: str, description: str) -> str:
        """Both, as lm-eval puts them together."""
        bare = system and description and not (system[-1].isspace() or description[0].isspace())
        return system + (self.task.separator if bare else "") + description

    def _example(self, number: int, doc: Doc) -> tuple[str, str]:
        """(question, right answer: of several the first)."""
        task, choices = self.task, self._choices(doc)
        target = self._target(doc, task.shot_target)
        if isinstance(target, list):
            target = target[0] if target else None
        if task.kind == "choice" and target not in range(len(choices)):
            hint = "mend it, or ask for fewer: --shots"
            raise ToolError(f"worked example {number} names none of its choices: {target!r:.100}", hint=hint)
        if task.ending is not None:
            return choices[target], str(value_of(task.ending)(doc))
        question = text_of(task.prompt)(doc)
        return question, choices[target] if task.kind == "choice" else str(target)

    def _context(self, before: Messages, question: str) -> tuple[str, str]:
        """(context, its beginning that other documents have too: none where worked examples are drawn for each)."""
        alone = self.task.fewshot != "first" and any(message["role"] == "assistant" for message in before)
        if self.render is not None:
            asked = [*before, {"role": "user", "content": question}]
            rendered = self.render(asked)
            return rendered, "" if alone else rendered.rpartition(question)[0]
        text = []
        for message in before:
            delimiter = {"system": "", "user": self.task.delimiter, "assistant": self.task.separator}[message["role"]]
            text.append(message["content"] + delimiter)
        head = "".join(text)
        return head + question, "" if alone else head


def _notes(items: Sequence[Item]) -> Iterator[str]:
    """What is odd about documents, and counted."""
    if items and (empty := sum(map(_lacks_a_choice, items))):
        yield f"{empty} documents have a choice without text; they are asked as they are"
    if items and items[0].choices and (astray := sum(item.target == -1 for item in items)):
        yield f"{astray} documents name as the right answer none of their choices; they count as answered wrongly"


def _lacks_a_choice(item: Item) -> bool:
    """Among those that are asked, or that the prompt lists beside letters."""
    listed = item.doc.get("choices")
    return any(c is None or c == "" for c in (*item.choices, *(listed if isinstance(listed, list) else ())))
