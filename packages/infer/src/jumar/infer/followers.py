"""One rank talks to people, the others compute what it computes: `chat` and `serve` over several processes."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from jumar.infer.engine import Engine
from jumar.infer.faults import hardware_faults


def follow(engine: Engine) -> None:
    """On a rank other than the first: computes every batch that it computes, until it says that there are no more.

    SIGTERM and Ctrl-C are for the first rank to hear, which may let answers be finished. Raises ToolError (4) if it is gone.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    engine.cache.take(engine.cache.room)  # the first rank says who has which page and place; here all are made ready at once
    while (parts := _next(engine)) is not None:
        engine.compute(parts)
    engine.decoder.ranks.part()


def _next(engine: Engine) -> Any:
    with hardware_faults():
        return engine.decoder.ranks.hear()


@contextmanager
def leading(engine: Engine) -> Generator[None, None, None]:
    """On the first rank: what the engine computes here, the others compute too; at the end they are told that it is the end."""
    engine.leads = engine.decoder.ranks.size > 1
    try:
        yield
    finally:
        if engine.leads:
            engine.leads = False
            with suppress(RuntimeError):  # they are gone already
                engine.decoder.ranks.tell(None)
            engine.decoder.ranks.part()
