"""The run: tasks to requests, requests to the model, responses to the journal, the journal to results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jumar.eval import results
from jumar.eval.asking import ask
from jumar.eval.data import absent, find
from jumar.eval.fewshot import read_fewshot
from jumar.eval.items import How, Unit, unit_of
from jumar.eval.journal import Journal
from jumar.eval.metrics import check
from jumar.eval.place import RESULTS, SERVED, Place, done_before
from jumar.eval.programs import check_programs, sandbox_for
from jumar.eval.requests import Measure, Model
from jumar.eval.scores_csv import write_tables
from jumar.eval.sources import check_sources, in_files
from jumar.eval.task import PROTOCOLS, Task, load_task, plain, task_path
from jumar.schema.cli import dist_version
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import identify_all

KINDS = {"choice": "loglikelihood", "generate": "generate", "rolling": "rolling"}
BEYOND = {
    "alone": "the log-probability of a word by itself, of which an endpoint does not say which token it is",
    "beams": "answers by beam search, which an endpoint does not give",
}
"""Keys of tasks -> what they ask for that not every model answers."""
PLACES = ("model", "tokenizer", "adapter")
"""Arguments that are directories, whose files `inputs` tell."""
Say = Callable[[str, str], None]
"""Is told (word, text) for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is asked of a model.

    tasks: names or YAML files; data: where the benchmarks lie
    shots, limit: None for the task's own, and for all documents
    protocol: whose way of asking; fewshot: files of worked examples, FILE or TASK=FILE
    max_new_tokens: None for the task's own
    chat: prompts go through the model's chat template, worked examples as turns
    allow_code: tasks may run programs that the model writes; allow_unsandboxed: also where they cannot be walled in
    fail_under: scores that are to be there, TASK.METRIC=NUMBER
    out: where results go; None: nowhere. resume: go on with what is there. force: remove what is there
    arguments: what else must be the same for a run to be gone on with, for the results' config too
    files: of the model, none of an endpoint; None: who answers is not known, so a run that is there may be of another
    """

    tasks: tuple[str, ...]
    data: Path
    protocol: str = PROTOCOLS[0]
    shots: int | None = None
    fewshot: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    limit: int | None = None
    chat: bool = False
    system: str | None = None
    allow_code: bool = False
    allow_unsandboxed: bool = False
    fail_under: tuple[str, ...] = ()
    out: Path | None = None
    resume: bool = False
    force: bool = False
    arguments: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] | None = None


def evaluate(open_model: Callable[[], Model], settings: Settings, say: Say = lambda word, text: None) -> dict[str, Any]:
    """Results as of lm-eval, and `out`, `already_done` and `seconds`.

    The model is opened once all documents are read, or before, for its chat template and its tokens; not at all where the same
    run is there, and done. Raises ToolError (3) for data that is missing or does not fit, (2) for settings that do not fit.
    """
    begin = time.monotonic()
    if not settings.tasks:
        raise ToolError("--tasks names no task", hint="jumar-eval list names all", code=Exit.USAGE)
    tasks = [load_task(name, settings.protocol) for name in settings.tasks]
    files = [str(task_path(name, settings.protocol) or name) for name in settings.tasks]
    for task, file in zip(tasks, files, strict=True):
        check_sources(task, file)
    _check_protocol(settings, tasks)
    sandbox = sandbox_for(tasks, say, code=settings.allow_code, unsandboxed=settings.allow_unsandboxed)
    fewshot = read_fewshot(settings.fewshot, tasks)
    inputs = _inputs(settings, tasks, fewshot)
    if (known := _done_before(settings, tasks, inputs, open_model)) is not None:
        say("already done", f"{settings.out}: the same model, data and settings (--force asks again)")
        return {**known, "out": str(settings.out), "already_done": True, "seconds": round(time.monotonic() - begin, 3)}
    first = settings.chat or any(task.haystack or task.retrieval or task.chat for task in tasks)
    model = open_model() if first else None
    how = _how(settings, model, fewshot)
    units = []
    for task, file in zip(tasks, files, strict=True):
        with in_files({file: task}):
            units += _units(task, settings.data, how, say)
    _check_names(units, settings.fail_under)
    for text in _without_effect(settings, tasks):
        say("warning", text)
    recipe = {**asked_of(settings, tasks), "documents": {unit.name: _digest(_arguments(unit)) for unit in units}}
    with _placed(settings, recipe, inputs) as place:
        start = time.time()
        model = model or open_model()
        _check_kinds(model, units)
        if place is not None:
            place.begin(model.facts().get("served"))
        for note in model.facts().get("notes", ()):
            say("note", note)
        with in_files(dict(zip(files, tasks, strict=True))), _told_when_stopped(settings.out, say):
            journals = ask(model, units, settings.out, sandbox)
        programs = {} if sandbox is None else {"programs": "walled in" if sandbox.walls else "not walled in"}
        found = _finish(model, units, journals, settings, start, say, programs)
        out = None if settings.out is None else str(settings.out)
        return {**found, "out": out, "already_done": False, "seconds": round(time.monotonic() - begin, 3)}


def _how(settings: Settings, model: Model | None, fewshot: Mapping[str, Path]) -> How:
    """model: where it is open already, for its template and its tokens."""
    return How(
        shots=settings.shots,
        limit=settings.limit,
        render=model.render if model is not None and settings.chat else None,
        template=model.render if model is not None else None,
        system=settings.system,
        measure=model.measure() if model is not None else Measure(),
        fewshot=fewshot,
        max_new_tokens=settings.max_new_tokens,
    )


def _units(task: Task, data: Path, how: How, say: Say) -> list[Unit]:
    """What has a score of its own, checked. Raises ToolError (3) for files and documents that do not fit."""
    there = find(task, data)
    if (missing := absent(task, there)) and any(found.subject is not None for found in there):
        few = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        say("note", f"{task.task}: {len(missing)} of {len(missing) + len(there)} subjects are not there: {few}")
    units = [unit_of(task, found, how) for found in there]
    for unit in units:
        _check_documents(unit)
        check_programs(unit)
        check(unit)
        for note in unit.notes:
            say("note", f"{unit.name}: {note}")
    return units


def _check_documents(unit: Unit) -> None:
    """Raises ToolError (3) where nothing is to be scored."""
    if not unit.items:
        hint = "do the files hold rows, and are `only` and `lengths` of the task right?"
        raise ToolError(f"{unit.name}: no documents are left", hint=hint)
    if unit.task.kind == "rolling" and not any(request.rest for item in unit.items for request in item.requests):
        raise ToolError(f"{unit.name} holds no text: {len(unit.items)} documents are empty", hint="are the files whole?")


def _check_names(units: Sequence[Unit], fail_under: Sequence[str]) -> None:
    """Raises ToolError (2): two scores with one name would share a file; one that is asked for would not be there."""
    names = [unit.name for unit in units]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ToolError(f"{twice[0]} is asked for twice", hint="name each task once, and files by other names", code=Exit.USAGE)
    results.check_names(units, fail_under)


def _check_kinds(model: Model, units: Sequence[Unit]) -> None:
    """Raises ToolError (2) for what a model does not answer: before anything is asked."""
    answered = model.facts().get("kinds", (*KINDS.values(), *BEYOND))
    tasks = {unit.task.task: unit.task for unit in units}
    if other := sorted(name for name, task in tasks.items() if KINDS[task.kind] not in answered):
        what = f"{', '.join(other)}: log-likelihoods of conversations, which /v1/chat/completions does not give"
        raise ToolError(what, hint="leave --chat out, or score the checkpoint itself", code=Exit.USAGE)
    for way, what in BEYOND.items():
        if way not in answered and (other := sorted(name for name, task in tasks.items() if getattr(task, way))):
            raise ToolError(f"{', '.join(other)}: {what}", hint="score the checkpoint itself", code=Exit.USAGE)


def _finish(
    model: Model,
    units: Sequence[Unit],
    journals: Sequence[Journal],
    settings: Settings,
    start: float,
    say: Say,
    more: dict[str, str],
) -> dict[str, Any]:
    facts = {key: value for key, value in model.facts().items() if key not in ("notes", "kinds", "served", "warnings")}
    for text in model.facts().get("warnings", ()):
        say("warning", text)
    inner = ("model_args", "batch_size", "device", "dp")
    config = {
        "model": facts.get("model_source"),
        **{key: facts[key] for key in inner if key in facts},
        "protocol": settings.protocol,
        "fewshot": list(settings.fewshot),
        "limit": settings.limit,
        "fewshot_seed": 1234,
        **settings.arguments,
        **more,
    }
    found = results.collect(list(zip(units, journals, strict=True)), {k: v for k, v in facts.items() if k not in inner}, config)
    for name, count in found.get("n-truncated", {}).items():
        say("warning", f"{name}: {count} prompts were longer than the model's context, and lost their beginning")
    for name, of_task in found["results"].items():
        for key in (key for key, value in of_task.items() if value == "N/A" and "_stderr," not in key):
            say("warning", f"{name}: {key.partition(',')[0]} is beyond all numbers: are there spaces between words?")
    found |= {
        "date": start,
        "total_evaluation_time_seconds": str(time.time() - start),
        "jumar_eval_version": dist_version("jumar-eval"),
    }
    if settings.out is not None:
        write_tables(list(zip(units, journals, strict=True)), settings.out)
        results.write(found, settings.out)
    return found


def _without_effect(settings: Settings, tasks: Sequence[Task]) -> Iterator[str]:
    """Options that none of the tasks heeds."""
    kinds = {task.kind for task in tasks}
    if settings.max_new_tokens is not None and "generate" not in kinds:
        yield "--max-new-tokens has no effect: none of the tasks asks for texts"
    if kinds == {"rolling"}:
        given = {"--shots": settings.shots, "--chat": settings.chat, "--system": settings.system}
        for option in (option for option, value in given.items() if value):
            yield f"{option} has no effect: the tasks score texts as they are"


def _check_protocol(settings: Settings, tasks: Sequence[Task]) -> None:
    """Raises ToolError (2) for settings that the protocol does not have."""
    if settings.fewshot and settings.shots is not None:
        raise ToolError("--fewshot holds the worked examples, all of them", hint="leave --shots out", code=Exit.USAGE)
    chat = settings.chat and not all(task.chat for task in tasks)
    if settings.protocol != PROTOCOLS[0] and (chat or settings.system is not None):
        option = "--chat" if chat else "--system"
        what = f"the protocol {settings.protocol} asks with texts as they are, and {option} was given"
        raise ToolError(what, hint=f"leave {option} out, or take --protocol {PROTOCOLS[0]}", code=Exit.USAGE)


# --- where it goes


def asked_of(settings: Settings, tasks: Sequence[Task]) -> dict[str, Any]:
    """What must be the same for a run to be gone on with, beside its documents."""
    return {
        "protocol": settings.protocol,
        "tasks": {task.task: _digest(plain(task)) for task in tasks},
        "max_new_tokens": settings.max_new_tokens,
        **{key: _name(value) if key in PLACES else value for key, value in settings.arguments.items()},
    }


def _name(place: Any) -> Any:
    """A directory's own name, however it is spelled and wherever it lies; an address as it is."""
    return place if place is None or "://" in str(place) else Path(place).resolve().name


def _arguments(unit: Unit) -> list[list[Any]]:
    return [[request.arguments() for request in item.requests] for item in unit.items]


def _inputs(settings: Settings, tasks: Sequence[Task], fewshot: Mapping[str, Path]) -> list[Path]:
    """The files that decide the scores: the model's, the documents', the worked examples'."""
    found = [each for task in tasks for each in find(task, settings.data)]
    documents = [path for each in found for path in (*each.test, *each.shots)]
    return [*(settings.files or ()), *documents, *fewshot.values()]


def _done_before(
    settings: Settings, tasks: Sequence[Task], inputs: Sequence[Path], open_model: Callable[[], Model]
) -> dict[str, Any] | None:
    """The results of the same run, where they are there. An endpoint is asked which model it answers with."""
    if settings.out is None or settings.force or settings.files is None or not (settings.out / RESULTS).is_file():
        return None
    asked = asked_of(settings, tasks)
    if not settings.files and (served := open_model().facts().get(SERVED)) is not None:
        asked[SERVED] = served
    there = done_before(settings.out, asked, inputs, _roots(settings))
    return results.read(settings.out) if there else None


def _roots(settings: Settings) -> tuple[Path, ...]:
    """Below which files have their names."""
    return settings.data, Path(settings.arguments.get("model", "."))


@contextmanager
def _placed(settings: Settings, recipe: dict[str, Any], inputs: Sequence[Path]) -> Iterator[Place | None]:
    """Where the run goes, for as long as it goes on. Raises ToolError as `Place`."""
    if settings.out is None:
        if settings.resume:
            raise ToolError("--resume goes on with a directory", hint="give it with -o", code=Exit.USAGE)
        yield None
        return
    identified = identify_all(inputs, *_roots(settings))
    with closing(Place(settings.out, recipe, identified, resume=settings.resume, force=settings.force)) as place:
        yield place


@contextmanager
def _told_when_stopped(out: Path | None, say: Say) -> Iterator[None]:
    """Ctrl-C: what is left of the run, and how it goes on."""
    try:
        yield
    except KeyboardInterrupt:
        kept = f"what was answered is in {out}: the same command with --resume goes on" if out is not None else "nothing was kept"
        say("note", kept if out is not None else f"{kept}; with -o OUT a run can be gone on with")
        raise


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
