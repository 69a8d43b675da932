"""The engine's thread, and who waits for it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from jumar.infer import Engine, Sampling
from jumar.infer.service import Ask, Service


def test_an_answer_that_is_done_before_anybody_looks_is_heard_of(hf: Path) -> None:
    """A short answer on a busy machine: the event loop comes back when all is over."""
    service = Service(Engine.open(hf, device="cpu"))

    async def late() -> list[str | None]:
        stream = service.answers([Ask([1, 2, 3], Sampling(max_new_tokens=2))], timeout_s=60)
        (request,) = await anext(stream)
        end = time.monotonic() + 60
        while request.finish is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        return [moved[0].finish async for moved in stream]

    try:
        assert asyncio.run(late()) == ["length"]
    finally:
        service.stop()
