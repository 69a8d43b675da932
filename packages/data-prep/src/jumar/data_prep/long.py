"""Conversations that are longer than a sample: cut, split between turns, or dropped."""

from __future__ import annotations

from collections import Counter

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.job import Job
from jumar.data_prep.render import Renderer, Rendering
from jumar.schema.chat import ChatRecord, Turn

DROPPED = "longer than --seq-len"
UNTRAINED = "nothing to train on"
Exchange = tuple[Turn, ...]


def fitted(
    record: ChatRecord | None, rendering: Rendering | BadRecord, renderer: Renderer | None, job: Job, counts: Counter[str]
) -> list[Rendering]:
    """The samples of a record, none longer than seq_len, each with something to train on.

    record, renderer: for splitting; None where that is not asked for.
    BadRecord if it could not be rendered, is dropped, or nothing in it would be trained.
    """
    if isinstance(rendering, BadRecord):
        raise rendering
    if not rendering.trained:
        raise BadRecord(UNTRAINED, f"none of its {len(rendering)} tokens is the assistant's")
    if job.seq_len is None or len(rendering) <= job.seq_len:
        return [rendering]
    if job.long == "drop":
        counts["dropped"] += 1
        raise BadRecord(DROPPED, f"{len(rendering)} tokens, --seq-len is {job.seq_len}")
    if job.long == "split" and record is not None and renderer is not None:
        return _split(record, rendering, renderer, job, counts)
    return [_cut(rendering, job.seq_len, counts)]


def _cut(rendering: Rendering, seq_len: int, counts: Counter[str]) -> Rendering:
    cut = rendering.cut(seq_len)
    if not cut.trained:
        first = rendering.answers[0][0] if rendering.answers else len(rendering)
        raise BadRecord(UNTRAINED, f"the first answer begins behind token {first}, --seq-len is {seq_len}")
    counts["truncated"] += 1
    counts["lost"] += len(rendering) - seq_len
    return cut


def _split(record: ChatRecord, whole: Rendering, renderer: Renderer, job: Job, counts: Counter[str]) -> list[Rendering]:
    """Consecutive exchanges (a user's turn and what follows it) that fit together with the system turn, each lot a sample."""
    assert job.seq_len is not None
    last = job.train_on == "last"
    system = record.turns[: len(record.turns) - len(record.exchanges)]
    exchanges = _exchanges(record.exchanges)
    ends = _ends(exchanges, whole)
    samples: list[Rendering] = []
    at, before = 0, 0
    while at < len(exchanges):
        stop = at + 1
        while stop < len(exchanges) and ends[stop] - before <= job.seq_len:
            stop += 1
        rendering = _rendered(record, system, exchanges[at:stop], renderer, last)
        while len(rendering) > job.seq_len and stop > at + 1:  # the system turn counts as well
            stop -= 1
            rendering = _rendered(record, system, exchanges[at:stop], renderer, last)
        if len(rendering) > job.seq_len:
            rendering = _cut_exchange(rendering, system, record, renderer, job.seq_len, counts)
        if rendering.trained:
            samples.append(rendering)
        else:
            counts["lost"] += len(rendering)
        at, before = stop, ends[stop - 1]
    counts["split"] += 1
    return samples[-1:] if last else samples


def _cut_exchange(
    rendering: Rendering, system: Exchange, record: ChatRecord, renderer: Renderer, seq_len: int, counts: Counter[str]
) -> Rendering:
    try:
        return _cut(rendering, seq_len, counts)
    except BadRecord as fault:
        if system:
            alone = renderer.prompts([record.with_turns(*system)])[0]
            if not isinstance(alone, BadRecord) and len(alone) >= seq_len:
                detail = f"it takes {len(alone)} tokens, --seq-len is {seq_len}"
                raise BadRecord("system turn longer than --seq-len", detail) from None
        raise fault


def _rendered(record: ChatRecord, system: Exchange, lot: list[Exchange], renderer: Renderer, last: bool) -> Rendering:
    turns = [turn for exchange in lot for turn in exchange]
    rendering = renderer.chats([record.with_turns(*system, *turns)], last=last)[0]
    if isinstance(rendering, BadRecord):
        raise rendering
    return rendering


def _exchanges(turns: Exchange) -> list[Exchange]:
    """Turns in lots that each begin with a user's and hold an answer, as far as there are any."""
    out: list[list[Turn]] = []
    for turn in turns:
        if not out or (turn.role == "user" and any(t.role == "assistant" for t in out[-1])):
            out.append([])
        out[-1].append(turn)
    if len(out) > 1 and not any(turn.role == "assistant" for turn in out[-1]):
        out[-2] += out.pop()
    return [tuple(exchange) for exchange in out]


def _ends(exchanges: list[Exchange], whole: Rendering) -> list[int]:
    """Tokens of the whole conversation through each exchange's last answer."""
    ends, answered = [], 0
    for exchange in exchanges:
        answered += sum(turn.role == "assistant" for turn in exchange)
        ends.append(whole.answers[answered - 1][1] if 0 < answered <= len(whole.answers) else len(whole))
    return ends
