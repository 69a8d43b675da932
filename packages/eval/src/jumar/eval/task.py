"""A task is data: a YAML file that says where documents lie, how they become prompts, and what is measured."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jumar.schema.errors import Exit, ToolError
from jumar.schema.recipe import read_file, validate

METRICS_OF = {
    "choice": ("acc", "acc_norm", "acc_bytes", "true_mass"),
    "generate": (
        *("exact_match", "acc_text", "begins_with", "keywords", "retrieval", "same_answer", "pass@1"),
        *("prompt_level_strict_acc", "inst_level_strict_acc", "prompt_level_loose_acc", "inst_level_loose_acc"),
    ),
    "rolling": ("word_perplexity", "byte_perplexity", "bits_per_byte"),
}
FOLDER = Path(__file__).parent / "tasks"
PROTOCOLS = ("lm-eval", "mindspeed")
"""The first one's tasks are in `FOLDER`, those of another in its folder there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the documents of a task lie on disk. Patterns are below the task's folder; {subject} is what subjects differ in.

    test, shots: the documents, and those that worked examples are taken from (none: from the documents themselves)
    columns:     of a CSV file that has no header
    rows:        of a JSON file: the key under which the documents are
    needles:     of a haystack: NeedleBench's needles
    tokens:      of NeedleBench's own documents: the file of the tokens in which their lengths are (`.tiktoken`)
    fields:      name -> expression over a row's columns; none: the columns as they are
    only, shots_only: expressions over a row's columns: which rows are documents, which are worked examples
    cells:       of the documents in CSV files: the text there, or what pandas makes of it (`None` is nan, 2.50 is 2.5)
    """

    test: str
    shots: str | None = None
    columns: tuple[str, ...] = ()
    rows: str | None = None
    needles: str | None = None
    tokens: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    only: str | None = None
    shots_only: str | None = None
    cells: Literal["text", "pandas"] = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class Extract:
    """What of a text counts as the answer: of the matches of `find` the one numbered `take` (its first group with text).

    read: before that, expressions over `text` and the document's fields, each giving the `text` of the next
    """

    name: str
    read: tuple[str, ...] = ()
    find: str | None = None
    take: int = 0
    otherwise: str = "[invalid]"
    strip: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """How two texts are compared: what is left out of both before."""

    ignore: tuple[str, ...] = ()
    ignore_case: bool = False
    ignore_punctuation: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Haystack:
    """Documents are made: sentences hidden in the texts of the layout.

    lengths: of prompt and answer, in tokens of the model; depths: percent of the text that stands before the (first) needle
    needle, question: templates over `name`, one of `names`, and `code`, six digits that are drawn
    at_once: needles in one text; language: which ones of NeedleBench's
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    needle: str
    question: str
    names: tuple[str, ...]
    at_once: int = 1
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A set of NeedleBench's documents, for models of one context.

    name: what is put behind the task's; context: tokens that a model has at least for it
    lengths: of the documents, in tokens of the layout's file; spare: tokens less that they have, in the order of `languages`
    depths: percent of the text that stands before the needle; evenly: in place of them so many, from 0 to 100
    """

    name: str
    context: int
    lengths: tuple[int, ...]
    spare: tuple[int, ...]
    depths: tuple[float, ...] = ()
    evenly: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrieval:
    """NeedleBench's own documents, a needle in each, as OpenCompass makes them.

    languages: subject -> language in the file of needles; repeats: documents of each length and depth
    """

    languages: Mapping[str, str]
    sets: tuple[Span, ...]
    repeats: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """So many beams, by sums of log-probabilities over length ** length_penalty, of tokens that top_k and top_p leave in."""

    count: int
    length_penalty: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One benchmark.

    kind:     choice (the most probable of some continuations), generate (a text), rolling (the log-likelihood of a text)
    folders:  names under which its data is looked for in the data directory
    prompt, target: what is asked, a template; the answer, an expression (of `choice` its number)
    choices:  texts, or an expression that gives them
    ending:   an expression: choices stand before it, and it is what is scored (WinoGrande)
    description: a template, before everything
    delimiter, separator: between question and answer, between worked examples
    shots, fewshot: how many worked examples, the first ones or drawn for every document (others: never itself)
    shot_target: the answer that worked examples show, where that is another expression than `target`
    until:    texts that end an answer; none given: the separator
    answers:  what of a generated text counts; several are measured side by side
    program, seconds: a template over a document, `answer` and `target`: what is run, for so long at most
    haystack: how documents are made of texts; their `context`, `question` and `keywords` are for the templates
    retrieval: the same, as NeedleBench makes them; `needle`, `keyword`, `language` also
    chat:     prompts go through the model's chat template
    subjects: name in files -> name in prompts; groups: name -> subjects that have a score together
    without, only: subjects that are there and are left out; those that are taken, none given: all
    protocol: whose way of asking it is
    baked:    a template over `examples`: all worked examples in one text, which `prompt` names `fewshot`
    parts:    names of the texts that a file of --fewshot holds for a subject
    worked:   worked examples that are no file's
    beams:    answers by beam search, which `until` does not end
    alone:    of choices the last token of each by itself is scored, as the first one of an answer
    """

    task: str
    title: str
    source: str = ""
    protocol: str = "lm-eval"
    kind: Literal["choice", "generate", "rolling"]
    metrics: tuple[str, ...]
    layouts: tuple[Layout, ...]
    folders: tuple[str, ...] = ()
    version: float = 1.0
    prompt: str = ""
    target: str = "''"
    choices: tuple[str, ...] | str = ()
    ending: str | None = None
    description: str = ""
    delimiter: str = " "
    separator: str = "\n\n"
    shots: int = 0
    fewshot: Literal["first", "random", "others"] = "first"
    shot_target: str | None = None
    until: tuple[str, ...] | None = None
    max_new_tokens: int = 256
    answers: tuple[Extract, ...] = ()
    match: Match = field(default_factory=Match)
    program: str = ""
    seconds: float = 3.0
    haystack: Haystack | None = None
    retrieval: Retrieval | None = None
    chat: bool = False
    subjects: Mapping[str, str] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    baked: str = ""
    parts: tuple[str, ...] = ("fewshot",)
    worked: tuple[Mapping[str, str], ...] = ()
    beams: Beams | None = None
    alone: bool = False

    @property
    def by_subject(self) -> bool:
        """Whether it is made of several sets of documents."""
        return any("{subject}" in layout.test for layout in self.layouts)


@cache
def task_files(protocol: str = PROTOCOLS[0]) -> dict[str, Path]:
    """Name -> file: our own, and those of folders that entry points `jumar.eval_tasks` name. Other protocols have folders below.

    Raises ToolError (2) for a protocol that there is not.
    """
    if protocol not in PROTOCOLS:
        raise ToolError(f"there is no protocol {protocol!r}", hint=f"choose among {', '.join(PROTOCOLS)}", code=Exit.USAGE)
    folders = [FOLDER]
    for point in entry_points(group="jumar.eval_tasks"):
        module = point.load()
        folders.append(Path(module if isinstance(module, str) else module.__path__[0]))
    if protocol != PROTOCOLS[0]:
        folders = [folder / protocol for folder in folders]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def task_path(name: str, protocol: str = PROTOCOLS[0]) -> Path | None:
    """The file of a task: of its name, or the one that `name` is."""
    return Path(name) if name.endswith((".yaml", ".yml")) else task_files(protocol).get(name)


def load_task(name: str, protocol: str = PROTOCOLS[0]) -> Task:
    """A task by its name, or by the path of its YAML file. Raises ToolError (2) where there is none, or a key is wrong."""
    files, base, path = task_files(protocol), name.rpartition("_")[0], task_path(name, protocol)
    if path is None and base in files and (found := _of_one_set(load_task(base, protocol), name)):
        return found
    if path is None:
        near = difflib.get_close_matches(name, files, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        where, option = ("", "") if protocol == PROTOCOLS[0] else (f" in the protocol {protocol}", f" --protocol {protocol}")
        raise ToolError(f"there is no task {name!r}{where}", hint=f"{hint}jumar-eval list{option} names all", code=Exit.USAGE)
    task = validate(Task, read_file(path), str(path), sets=False)
    _check(task, path)
    return task


def _of_one_set(task: Task, name: str) -> Task | None:
    """A task's one set of documents by its name: TASK_SET."""
    if task.retrieval is None:
        return None
    sets = tuple(span for span in task.retrieval.sets if name == f"{task.task}_{span.name}")
    return replace(task, task=name, retrieval=replace(task.retrieval, sets=sets)) if sets else None


def _check(task: Task, path: Path) -> None:
    def wrong(what: str, hint: str) -> ToolError:
        return ToolError(f"{path}: {what}", hint=hint, code=Exit.USAGE)

    for what, hint in _odd(task):
        raise wrong(what, hint)
    for metric in task.metrics:
        if metric not in METRICS_OF[task.kind]:
            what = f"{metric!r} is no metric of a task of kind {task.kind}"
            raise wrong(what, f"choose among {', '.join(METRICS_OF[task.kind])}")
    if task.kind == "choice" and not task.choices:
        raise wrong("a task of kind choice has choices", "give choices: [A, B, C, D], or an expression")
    if task.kind != "rolling" and not task.prompt and task.ending is None:
        raise wrong("it has no prompt", 'give prompt: "Question: {{ question }}\\nAnswer:"')
    if bool(task.program) != ("pass@1" in task.metrics):
        raise wrong("pass@1 is of a program, and a program has pass@1", 'give metrics: ["pass@1"] and program: "{{ answer }}..."')
    if task.seconds <= 0:
        raise wrong(f"seconds is {task.seconds:g}", "give more than 0")
    if task.retrieval is not None and any(bool(span.depths) == bool(span.evenly) for span in task.retrieval.sets):
        raise wrong("each of its sets has either depths or evenly", "give depths: [0, 50, 100], or evenly: 20")
    if task.retrieval is not None and any(len(s.spare) != len(task.retrieval.languages) for s in task.retrieval.sets):
        raise wrong("spare has one number for each of the languages", "give spare: [600, 200]")
    if not task.layouts:
        raise wrong("it has no layouts", "give layouts: [{test: FILE.jsonl}]")


def _odd(task: Task) -> Iterator[tuple[str, str]]:
    """(what is wrong, what to write) of keys by themselves."""
    if not re.fullmatch(r"[\w+-][\w.+-]*", task.task):
        yield f"task is {task.task!r}, and files bear its name", "letters, digits, _, +, - and dots within: task: my_quiz"
    if not task.metrics:
        yield "metrics is empty", f"choose among {', '.join(METRICS_OF[task.kind])}"
    if task.shots < 0:
        yield f"shots is {task.shots}", "give 0, or more"
    if task.max_new_tokens < 1:
        yield f"max_new_tokens is {task.max_new_tokens}", "give 1, or more"
    if task.kind == "choice" and task.target == Task.__dataclass_fields__["target"].default:
        yield "a task of kind choice has a target", "give the number of the right choice, an expression: target: answer"
    names = [how.name for how in task.answers]
    if twice := [name for name in names if names.count(name) > 1]:
        yield f"two of its answers have the name {twice[0]!r}", "give each its own: their scores bear it"
    patterns = [(f"answers.{how.name}.find", how.find) for how in task.answers if how.find is not None]
    for key, pattern in [*patterns, *(("match.ignore", each) for each in task.match.ignore)]:
        try:
            re.compile(pattern)
        except re.error as fault:
            yield f"{key} is {pattern!r}, no regular expression: {fault}", "a character itself is written with a backslash: '\\('"
    for layout in task.layouts:
        for key, where in (("test", layout.test), ("shots", layout.shots)):
            path = PurePosixPath("." if where is None else where)
            if where == "" or path.is_absolute() or ".." in path.parts:
                yield f"layouts: {key} is {where!r}, and patterns are below the data directory", "give --data its directory"


def plain(task: Task) -> dict[str, Any]:
    """A task as the results hold it."""
    from dataclasses import asdict

    defaults = {name: f.default for name, f in Task.__dataclass_fields__.items()}
    return {key: value for key, value in asdict(task).items() if value not in ({}, None) and value != defaults[key]}
