"""A run: inputs -> blocks -> records -> tokens -> a work folder -> the finished files.

The cutting into blocks depends on the inputs alone and results are taken in their order, so that the bytes that come out do not
depend on the number of workers, on where a run was interrupted, or on how it was sharded.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from jumar.data_prep.blocks import blocks
from jumar.data_prep.check import Checker, Differs
from jumar.data_prep.choose import choose_mapping
from jumar.data_prep.engines import Fastokens, give_back
from jumar.data_prep.finish import Finished, finish, finished_before, refuse_existing, too_many_bad
from jumar.data_prep.inputs import Input, find_inputs
from jumar.data_prep.job import Job
from jumar.data_prep.long import DROPPED
from jumar.data_prep.part import Part
from jumar.data_prep.payloads import BadRow, Block, ByteRange
from jumar.data_prep.pool import ordered
from jumar.data_prep.render import Renderer
from jumar.data_prep.rows import Rows
from jumar.data_prep.store import Store, discard, read_facts
from jumar.data_prep.tasks import TASKS, Task
from jumar.data_prep.templating import open_template, special_words, template_facts
from jumar.data_prep.tokenizer import Tokenizer, identity, open_tokenizer
from jumar.schema.errors import Exit, ToolError
from jumar.schema.manifest import identify

DETECTED_ROWS = 100
THREADS = 8  # of an engine in one process; with more cores, more processes
MIN_FOR_SHARE = 1000  # records; a share of fewer says little
Say = Callable[[str, str], None]


@dataclass
class Run:
    """A job with everything it needs opened. say: a word ("note", "warning") and a line for people."""

    job: Job
    say: Say
    inputs: list[Input] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def sources(self) -> list[str]:
        """The inputs' names."""
        return [i.name for i in self.inputs]


def run(
    job: Job, *, say: Say = lambda word, text: None, progress: Callable[[int, int], None] = lambda done, total: None
) -> Finished:
    """Does a job. progress: bytes of the inputs done, and their sum.

    ToolError on what cannot be used; what is done so far is kept, and the same call goes on.
    """
    made = _open(job, say)
    if done := _before(made):
        return done
    try:
        with _seldom_collecting():
            return _run(made, progress)
    except Differs as fault:
        say("warning", f"an accelerator makes other ids than tokenizers ({fault}): starting again without it")
        discard(job.work)
        return _run(replace(made, job=replace(job, tokenizer_engine="tokenizers")), progress)


def made_before(job: Job) -> Finished | None:
    """What the same job made before, if it did. Raises ToolError as `run` where something else is there."""
    return _before(_open(job, lambda word, text: None))


def _before(made: Run) -> Finished | None:
    job, paths = made.job, [i.path for i in made.inputs]
    done = finished_before(job, made.facts, [path for path in paths if path is not None])
    if done is not None and None in paths:
        what = f"{job.output} is there, and the standard input of now cannot be compared with that which it was made of"
        raise ToolError(what, hint="choose another -o, or add --force to replace what is there; a file can be compared")
    return done


@contextmanager
def _writing(job: Job) -> Iterator[None]:
    """What the system refuses (a full disk, a quota) is said with what is left to do."""
    try:
        yield
    except OSError as fault:
        where = fault.filename or job.output
        raise ToolError(
            f"{where}: {fault.strerror or fault}",
            hint="what is done is kept: mend it (is the disk full?) and run the same command again to go on",
            code=Exit.ENVIRONMENT,
        ) from None


@contextmanager
def _seldom_collecting() -> Iterator[None]:
    """Records come by the million and none refers to itself: looking for cycles among them costs a third of the time."""
    before = gc.get_threshold()
    gc.set_threshold(1 << 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _open(job: Job, say: Say) -> Run:
    inputs = find_inputs(list(job.inputs))
    if not inputs:
        raise ToolError("nothing to read", hint="name files, folders, patterns, or - for standard input", code=Exit.USAGE)
    if job.shard is None:
        refuse_existing(job)
    for source in (source for source in inputs if source.path is None):
        say("note", f"standard input is read as {'lines of text' if source.kind == 'text' else source.kind}")
    facts = {
        "recipe": job.recipe(),
        "inputs": [identify(i.path) if i.path else {"name": i.name} for i in inputs],
        "tokenizer_sha256": identity(open_tokenizer(job.tokenizer)),
        **template_facts(job),
    }
    if job.shard is not None:
        facts["shard"] = [job.shard[0] + 1, job.shard[1]]
    if job.force or any(i.path is None for i in inputs):
        discard(job.work)
    return Run(job, say, inputs, facts)


def _run(made: Run, progress: Callable[[int, int], None]) -> Finished:
    job = made.job
    sizes = [i.size or 0 for i in made.inputs]
    tokenizer = _tokenizer(job, made.inputs)
    before = read_facts(job.work)
    stream: Iterator[Block]
    stream, sample = _peeked(blocks(made.inputs, job.block))
    mapping = choose_mapping(job, sample, made.say)
    checker = Checker(lambda: tokenizer.reference) if tokenizer.engine_name != "tokenizers" else None
    try:
        tokenizer.treat_as_special(special_words(job))
        task = TASKS[job.command](job, tokenizer, mapping, _renderer(job, tokenizer))
        store = Store(job.work, made.facts, task.keys, documents=job.split_sentences)
        try:
            if before and store.last >= 0:
                made.say("note", f"going on behind {store.totals.read:,} records of the run before")
                stream = blocks(made.inputs, job.block, skip=store.last + 1)
            _ = tokenizer.engine  # loaded before the workers are, who share it
            tokenizer.settle()
            gc.collect()
            give_back()
            gc.freeze()  # what is shared stays so: nobody counts in it
            for note in tokenizer.notes:
                made.say("note", note)
            with _writing(job):
                _fill(made, task, stream, store, checker, sizes, progress)
            if checker:
                checker.finish()
            with _writing(job):
                return finish(job, store, made.sources, sizes, task, made.facts)
        finally:
            gc.unfreeze()
            store.close()
    finally:
        if checker:
            checker.stop()


def _fill(
    made: Run,
    task: Task,
    stream: Iterator[Block],
    store: Store,
    checker: Checker | None,
    sizes: list[int],
    progress: Callable[[int, int], None],
) -> None:
    job = made.job
    if job.shard is not None:
        index, of = job.shard
        stream = (block for block in stream if block.number % of == index)
    done = _Progress(sizes, progress)
    limit = job.max_samples
    if limit is not None:
        parts: Iterator[Part] = _limited(task, stream, limit - store.totals.read)
    else:
        parts = ordered(stream, lambda block: process(task, block), processes(job, task.tokenizer))
    _judge_before(made, store)
    for part in parts:
        if checker and part.checked:
            checker.check(part.checked)
        _judge(made, part, store)
        if part.fault:
            made.say("warning", f"{part.fault}; what comes before is used")
        store.append(part)
        done(part)
        if job.max_bad is not None and store.totals.rejected > job.max_bad * max(store.totals.read, MIN_FOR_SHARE):
            raise too_many_bad(job, store, made.sources)


def process(task: Task, block: Block, limit: int | None = None) -> Part:
    """One block's records as tokens. limit: at most so many records."""
    part = Part(block.number, block.input_index, block.base)
    part.consumed = block.payload.offset + block.payload.size if isinstance(block.payload, ByteRange) else 0
    rows = Rows(block)

    def good() -> Iterator[tuple[int, dict[str, Any]]]:
        for row in islice(rows, limit):
            part.read += 1
            if isinstance(row, BadRow):
                part.reject(row.line, row.reason, row.detail, row.excerpt)
            else:
                yield row

    task(list(good()), part)
    part.lines, part.blank = rows.lines, rows.blank
    part.fault = str(rows.fault) if rows.fault else None
    part.checked = task.tokenizer.take_checked()
    return part.sealed()


def _limited(task: Task, stream: Iterator[Block], left: int) -> Iterator[Part]:
    """The first records only: how many a block holds is known when it is read, so one after another."""
    for block in stream:
        if left <= 0:
            return
        part = process(task, block, left)
        left -= part.read
        yield part


def processes(job: Job, tokenizer: Tokenizer) -> int:
    """How many processes do the work.

    Where text only passes through an engine, the engine's threads are enough for a machine of few cores; templates are Python.
    """
    cores = job.workers or len(os.sched_getaffinity(0))
    if tokenizer.engine_name == "fastokens" and Fastokens.threaded_in == os.getpid():
        return 1  # used in this very process before: a fork would wait for threads that it has not
    if job.workers == 0 and job.command in ("pretrain", "process-reward") and not job.split_sentences:
        return max(1, cores // THREADS)
    return cores


class _Progress:
    """Bytes of the inputs that are done, as far as blocks tell."""

    def __init__(self, sizes: list[int], progress: Callable[[int, int], None]) -> None:
        self.total, self.sizes, self.progress = sum(sizes), sizes, progress

    def __call__(self, part: Part) -> None:
        self.progress(sum(self.sizes[: part.source]) + part.consumed, self.total)


def _judge_before(made: Run, store: Store) -> None:
    """What a run before kept aside, one that is strict does not go on from."""
    bad, faults = store.totals.rejected, store.totals.faults
    if made.job.strict and (bad or faults):
        raise ToolError(
            f"{store.folder} holds {bad:,} bad records of the run before{': ' + faults[0] if faults else ''}",
            hint="mend them and start again with --force, or leave out --strict",
        )


def _judge(made: Run, part: Part, store: Store) -> None:
    """Stops a strict run at the first bad record, before it is kept aside; with --max-bad too at a loss nobody can count."""
    job = made.job
    if job.strict and part.rejected:
        line, reason, detail, excerpt = next(bad for bad in part.bad if bad[1] != DROPPED)
        before = store.totals.sources.get(part.source)
        base = part.base if part.base is not None else before["lines"] if before else 0
        raise ToolError(
            f"{made.sources[part.source]}, line {base + line + 1}: {reason}{': ' + detail if detail else ''}: {excerpt:.100}",
            hint="mend it and start again with --force, or leave out --strict: bad records are then kept aside",
        )
    if part.fault and (job.strict or job.max_bad is not None):
        raise ToolError(
            f"{part.fault}: what is lost behind it cannot be counted",
            hint="mend the file, or leave out --strict and --max-bad: what comes before is then used",
        )


# --- opening


def _peeked(stream: Iterator[Block]) -> tuple[Iterator[Block], list[dict[str, Any]]]:
    """The stream, and its first good rows."""
    seen: list[Block] = []
    sample: list[dict[str, Any]] = []
    for block in stream:
        seen.append(block)
        sample += [row.value for row in islice((r for r in Rows(block) if not isinstance(r, BadRow)), DETECTED_ROWS)]
        if len(sample) >= DETECTED_ROWS or len(seen) >= 4:
            break
    return chain(seen, stream), sample[:DETECTED_ROWS]


def _tokenizer(job: Job, inputs: list[Input]) -> Tokenizer:
    text_bytes = None
    if all(i.size is not None for i in inputs):
        text_bytes = sum((i.size or 0) * (4 if i.compression or i.kind == "parquet" else 1) for i in inputs)
    tokenizer = open_tokenizer(job.tokenizer, engine=job.tokenizer_engine, text_bytes=text_bytes, eod=job.eod)
    many = processes(job, tokenizer) > 1
    os.environ["TOKENIZERS_PARALLELISM"] = "false" if many else "true"
    os.environ["RAYON_NUM_THREADS"] = "1" if many else str(job.workers or len(os.sched_getaffinity(0)))
    tokenizer.parallel = not many
    return tokenizer


def _renderer(job: Job, tokenizer: Tokenizer) -> Renderer | None:
    if job.command in ("pretrain", "process-reward"):
        return None
    return open_template(job, tokenizer)
