"""Several processes, as torchrun starts them: copies of the model share requests, and each copy may be spread over several ranks.

The first rank reads documents, writes results and speaks with people. It deals requests to the first ranks of the other copies,
and takes parts itself. The ranks of one copy are given the same requests, and compute the same.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from jumar.eval.dealing import Deal
from jumar.eval.requests import Done, Model, Request, Response
from jumar.infer.faults import hardware_faults
from jumar.infer.group import FAREWELL, PATIENCE, Ranks, join
from jumar.schema.cli import mute
from jumar.schema.errors import Exit, ToolError

EVERY_S = 0.5
"""Responses are sent to the first rank so often: what has not come is lost where a run is killed."""
FAULT = "jumar-eval/fault"
SILENT_S = 10
"""A rank waits so long before it leaves silently: with the first that leaves torchrun ends all, and one is about to say why."""
HOST = torch.device("cpu")
Opens = Callable[[], Model]
Come = queue.SimpleQueue[tuple[int, Response] | Exception]
T = TypeVar("T")


def together(open_model: Opens, work: Callable[[Opens], T]) -> T | None:
    """What `work` returns, on the first rank, which is given a model that all ranks are. The others answer; None is theirs.

    What is raised on several ranks is raised on one, and ends the others.
    """
    with _told_once():
        if int(os.environ["RANK"]):
            mute()
            _Copy(open_model()).follow()
            return None
        opened: list[Spread] = []

        def spread() -> Model:
            opened.append(Spread(_Copy(open_model())))
            return opened[0]

        found = work(spread)
        if not opened:  # it was done before: the others wait to be asked
            spread()
        for model in opened:
            model.end()
        return found


@contextmanager
def _told_once() -> Iterator[None]:
    """The first rank where something goes wrong raises it. Others, where it then does too, leave silently with the same code."""
    try:
        yield
    except KeyboardInterrupt:
        if int(os.environ["RANK"]):
            raise SystemExit(Exit.INTERRUPTED) from None
        raise
    except Exception as fault:
        code = fault.code if isinstance(fault, ToolError) else Exit.ENVIRONMENT if isinstance(fault, OSError) else Exit.BUG
        mine = f"{os.environ['RANK']} {int(code)}"
        first = mine
        with suppress(RuntimeError):  # the store is gone with the rank that held it
            store, _, _ = next(iter(rendezvous("env://", timeout=timedelta(seconds=10))))
            first = store.compare_set(FAULT, "", mine).decode()
        if first != mine:
            time.sleep(SILENT_S)
            raise SystemExit(int(first.split()[1])) from None
        raise


class _Copy:
    """This rank's copy of the model, and its leaders' group."""

    def __init__(self, model: Model) -> None:
        self.model, self.ranks = model, _ranks_of(model)
        leaders = [copy * self.ranks.size for copy in range(self.ranks.dp_size)]
        with hardware_faults():
            self.leaders = dist.new_group(leaders, backend="gloo", timeout=PATIENCE)

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        """On its first rank: all ranks of the copy answer, this one tells of it."""
        with hardware_faults():
            if self.ranks.size > 1:
                self.ranks.tell(requests)
            self.model.answer(requests, done)

    def follow(self) -> None:
        """On a rank other than the first of all: answers what it is given, until there is no more."""
        while (requests := self._given()) is not None:
            with hardware_faults():
                if self.ranks.leads:
                    sent = _Sent(self)
                    self.answer(requests, sent.done)
                    sent.flush()
                else:
                    self.model.answer(requests, lambda number, response: None)
        self.part()

    def _given(self) -> list[Request] | None:
        with hardware_faults():
            found: list[Request] | None = self.receive(0) if self.ranks.leads else self.ranks.hear()
            return found

    def send(self, what: Any, rank: int) -> None:
        dist.send_object_list([what], dst=rank, group=self.leaders, device=HOST)

    def receive(self, rank: int) -> Any:
        found = [None]
        dist.recv_object_list(found, src=rank, group=self.leaders, device=HOST)
        return found[0]

    def part(self) -> None:
        """At the end: the copy's other ranks are told, and nobody leaves before all have heard it."""
        if self.ranks.leads:
            with suppress(RuntimeError):
                if self.ranks.size > 1:
                    self.ranks.tell(None)
                dist.barrier(group=self.leaders, async_op=True).wait(timeout=FAREWELL)
        self.ranks.part()


def _ranks_of(model: Model) -> Ranks:
    """Those over which an engine was opened; of an endpoint each rank asks as its own copy."""
    engine = getattr(model, "engine", None)
    found: Ranks = join(os.environ, 1, "gloo", 1) if engine is None else engine.decoder.ranks
    return found


class _Sent:
    """Responses on their way to the first rank."""

    def __init__(self, copy: _Copy) -> None:
        self.copy, self.held, self.last_s = copy, list[tuple[int, Response]](), time.monotonic()

    def done(self, number: int, response: Response) -> None:
        self.held.append((number, response))
        if time.monotonic() - self.last_s > EVERY_S:
            self.flush()

    def flush(self) -> None:
        if self.held:
            self.copy.send(self.held, 0)
        self.held, self.last_s = [], time.monotonic()


class Spread:
    """All copies as one model, on the first rank."""

    def __init__(self, copy: _Copy) -> None:
        self.copy, self.render, self.measure = copy, copy.model.render, copy.model.measure

    def facts(self) -> dict[str, Any]:
        copies = self.copy.ranks.dp_size
        return {**self.copy.model.facts(), **({"dp": copies} if copies > 1 else {})}

    def answer(self, requests: Sequence[Request], done: Done) -> None:
        """Own parts are answered in this thread, which tells of all; a thread for each other copy deals with it."""
        deal, come = Deal(requests, self.copy.ranks.dp_size), Come()
        for leader in self._others():
            threading.Thread(target=self._ask, args=(leader, requests, deal, come), daemon=True).start()
        left = len(requests)

        def tell(*, all_of_them: bool) -> None:
            nonlocal left
            while left and (all_of_them or not come.empty()):
                found = come.get()
                if isinstance(found, Exception):
                    raise found
                left -= 1
                done(*found)

        while part := deal.take():

            def here(place: int, response: Response, numbers: Sequence[int] = part) -> None:
                come.put((numbers[place], response))
                tell(all_of_them=False)

            self.copy.answer([requests[n] for n in part], here)
        tell(all_of_them=True)

    def _others(self) -> range:
        """The first ranks of the other copies."""
        size = self.copy.ranks.size
        return range(size, size * self.copy.ranks.dp_size, size)

    def _ask(self, leader: int, requests: Sequence[Request], deal: Deal, come: Come) -> None:
        """Deals with another copy until nothing is left to deal; its responses, or what goes wrong, are put into `come`."""
        try:
            while part := deal.take():
                with hardware_faults():
                    self.copy.send([requests[n] for n in part], leader)
                    left = len(part)
                    while left:
                        found = self.copy.receive(leader)
                        left -= len(found)
                        for place, response in found:
                            come.put((part[place], response))
        except Exception as fault:  # noqa: BLE001  # told where somebody waits for it
            come.put(fault)

    def end(self) -> None:
        """There is nothing more to answer."""
        for leader in self._others():
            with suppress(RuntimeError):
                self.copy.send(None, leader)
        self.copy.part()
