"""Tasks whose answers are programs: who allows them to run, what is run, and its verdict on the way to the journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from jumar.eval.items import Item, Unit
from jumar.eval.journal import Journal, Sample, samples_of
from jumar.eval.requests import Response
from jumar.eval.sandbox.host import Sandbox, Verdict
from jumar.eval.task import Task
from jumar.eval.template import text_of
from jumar.schema.errors import Exit, ToolError

Keep = Callable[[Item, Sequence[Response]], None]
AT_ONCE = 16


def sandbox_for(tasks: Sequence[Task], say: Callable[[str, str], None], *, code: bool, unsandboxed: bool) -> Sandbox | None:
    """What the tasks' programs run in; None where no task has any.

    Raises ToolError: 2 where programs are not allowed, 4 where they cannot be walled in.
    """
    names = ", ".join(dict.fromkeys(task.task for task in tasks if task.program))
    if not names:
        if unsandboxed:
            say("warning", "--allow-unsandboxed has no effect: none of the tasks runs programs")
        return None
    if not code:
        raise ToolError(f"{names}: programs that the model writes are to be run", hint="allow it: --allow-code", code=Exit.USAGE)
    reason = Sandbox().hindered()
    if reason is None:
        return Sandbox()
    if not unsandboxed:
        hint = "allow user namespaces (docs/eval.md, Programs), or run them with your own rights: --allow-unsandboxed"
        raise ToolError(f"{names}: programs cannot be walled in here: {reason}", hint=hint, code=Exit.ENVIRONMENT)
    say("warning", f"programs are NOT walled in ({reason}): they can read and delete all that you can, and reach the network")
    bare = Sandbox(walls=False)
    if (reason := bare.hindered()) is not None:
        raise ToolError(f"{names}: no program can be run: {reason}", hint="is this Python whole?", code=Exit.ENVIRONMENT)
    return bare


def program_of(task: Task, item: Item, answer: str) -> str:
    """What is run of an answer: with the document's tests. Raises ToolError (3) for what the document does not have."""
    return text_of(task.program)({**item.doc, "answer": answer, "target": item.target})


def check_programs(unit: Unit) -> None:
    """Raises ToolError (3) for a document of which no program can be made."""
    if unit.task.program:
        for item in unit.items:
            try:
                program_of(unit.task, item, "")
            except ToolError as fault:
                raise fault.at(f"{unit.name}, document {item.number}") from None


def cores() -> int:
    """Programs that run at once."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(there, AT_ONCE)


@contextmanager
def keeping(task: Task, journal: Journal, sandbox: Sandbox | None) -> Iterator[Keep]:
    """A function that writes a document to the journal once it is measured. Programs run while the model goes on."""
    if not task.program or sandbox is None:
        yield lambda item, responses: journal.add(samples_of(task, item, responses))
        return

    def judge(task: Task, item: Item, answer: str) -> Verdict:
        return sandbox.run(program_of(task, item, answer), task.seconds)

    running: list[Future[list[Sample]]] = []

    def write(futures: Sequence[Future[list[Sample]]]) -> None:
        for future in futures:
            running.remove(future)
            journal.add(future.result())

    def keep(item: Item, responses: Sequence[Response]) -> None:
        running.append(pool.submit(samples_of, task, item, responses, judge))
        write([future for future in running if future.done()])

    pool = ThreadPoolExecutor(cores())
    try:
        yield keep
        write(list(running))
    finally:
        pool.shutdown(cancel_futures=True)
        write([future for future in running if not future.cancelled() and future.exception() is None])
