"""Requests of all documents to the model, its responses to the journals."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from jumar.eval.items import Item, Unit
from jumar.eval.journal import Journal
from jumar.eval.programs import Keep, keeping
from jumar.eval.requests import Model, Request, Response
from jumar.eval.sandbox.host import Sandbox


def ask(model: Model, units: Sequence[Unit], folder: Path | None, sandbox: Sandbox | None) -> list[Journal]:
    """Asks what the journals do not have yet, all at once: whoever answers may take it in parts."""
    requests, owners = list[Request](), list[tuple[_Asked, Item, int]]()

    def done(number: int, response: Response) -> None:
        one, item, place = owners[number]
        one.take(item, place, response)

    asked = [_Asked(unit, folder) for unit in units]
    with ExitStack() as keepers:
        for one in asked:
            one.keep = keepers.enter_context(keeping(one.unit.task, one.journal, sandbox))
            for item in one.left:
                requests += item.requests
                owners += [(one, item, place) for place in range(len(item.requests))]
        if requests:
            model.answer(requests, done)
    for one in asked:
        assert not one.waiting, f"{len(one.waiting)} documents of {one.unit.name} were not answered"
        one.journal.close()
    return [one.journal for one in asked]


class _Asked:
    """What is asked of one unit: documents that its journal does not have."""

    keep: Keep

    def __init__(self, unit: Unit, folder: Path | None) -> None:
        path = None if folder is None else folder / f"samples_{unit.name}.jsonl"
        self.unit, self.journal = unit, Journal(path, max(len(unit.task.answers), 1))
        self.left = [item for item in unit.items if item.number not in self.journal.samples]
        self.waiting: dict[int, list[Response | None]] = {item.number: [None] * len(item.requests) for item in self.left}

    def take(self, item: Item, place: int, response: Response) -> None:
        """One response; a document whose responses are all there is kept."""
        waiting = self.waiting[item.number]
        waiting[place] = response
        found = [r for r in waiting if r is not None]
        if len(found) == len(waiting):
            del self.waiting[item.number]
            self.keep(item, found)
