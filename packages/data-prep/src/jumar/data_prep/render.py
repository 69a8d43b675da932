"""A conversation to ids and labels: through the model's own chat template, or through slots.

Whatever the template, a token is trained if any of its characters is the assistant's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from jumar.data_prep.faults import BadRecord
from jumar.data_prep.tokenizer import Tokenizer
from jumar.schema.chat import ChatRecord
from jumar.schema.errors import ToolError
from jumar.schema.slots import Piece, SlotTemplate, Special, Token
from jumar.schema.templates import ChatTemplate, TemplateFault

T = TypeVar("T")
IGNORED = -100  # the label of a token that is not trained


@dataclass(frozen=True, slots=True)
class Rendering:
    """ids, labels: [tokens] int32. answers: tokens [start, end) of each assistant turn, in order. trained: how many are."""

    ids: NDArray[np.int32]
    labels: NDArray[np.int32]
    answers: list[tuple[int, int]]
    trained: int

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, length: int) -> Rendering:
        """Its first tokens."""
        labels = self.labels[:length]
        return Rendering(self.ids[:length], labels, self.answers, int(np.count_nonzero(labels != IGNORED)))


class Renderer(Protocol):
    """last: only the last assistant turn is trained."""

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]: ...

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]: ...


@dataclass(frozen=True, slots=True)
class TemplateRenderer:
    """The model's chat template. The text is tokenised as a whole, as `apply_chat_template` does."""

    template: ChatTemplate
    tokenizer: Tokenizer

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]:
        out: list[Rendering | BadRecord] = [BadRecord("")] * len(records)
        texts, spans, places = [], [], []
        for i, record in enumerate(records):
            try:
                text, found = _with_content(self.template.render_labelled, record)
                _refuse_dropped(record, text, found)
            except TemplateFault as fault:
                out[i] = BadRecord("template cannot render it", str(fault))
                continue
            texts.append(text)
            spans.append(found)
            places.append(i)
        ids, tokens = self.tokenizer.encode_spans(texts, spans)
        flat, offsets = ids.flat.astype(np.int32), ids.offsets.tolist()
        labels = np.full(len(flat), IGNORED, np.int32)
        for place, answers, (begin, end) in zip(places, tokens, pairwise(offsets), strict=True):
            trained = 0
            for (start, stop), wanted in zip(answers, _wanted(records[place], len(answers), last), strict=True):
                if wanted:
                    labels[begin + start : begin + stop] = flat[begin + start : begin + stop]
                    trained += stop - start
            out[place] = Rendering(flat[begin:end], labels[begin:end], answers, trained)
        return out

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]:
        out: list[NDArray[np.int32] | BadRecord] = [BadRecord("")] * len(records)
        texts, places = [], []
        for i, record in enumerate(records):
            try:
                texts.append(_with_content(partial(self.template.render, prompt=True), record))
                places.append(i)
            except TemplateFault as fault:
                out[i] = BadRecord("template cannot render it", str(fault))
        ids = self.tokenizer.encode(texts)
        for k, place in enumerate(places):
            out[place] = ids[k].astype(np.int32)
        return out


def _with_content(render: Callable[..., T], record: ChatRecord) -> T:
    """What a template makes of a record. A turn that has tool calls and no content has none, or null, or an empty one: templates
    differ in what they fail on.
    """
    messages, tools = record.messages(), list(record.tools) or None
    forms: list[dict[str, Any]] = [{}]
    if not all("content" in message for message in messages):
        forms += [{"content": None}, {"content": ""}]
    for form in forms:
        try:
            return render([{**form, **message} for message in messages], tools)
        except TemplateFault as fault:
            last = fault
    raise last


def _wanted(record: ChatRecord, answers: int, last: bool) -> list[bool]:
    """Which of a record's answers are trained: the last or all, but none of OpenAI's `"weight": 0`."""
    wanted = [not last] * (answers - 1) + [True] * (answers > 0)
    weights = [turn.extra.get("weight", 1) for turn in record.turns if turn.role == "assistant"]
    if len(weights) == answers and 0 in weights:
        return [this and weight != 0 for this, weight in zip(wanted, weights, strict=True)]
    return wanted


def _refuse_dropped(record: ChatRecord, text: str, spans: list[tuple[int, int]]) -> None:
    """Templates may leave out what they have no place for, without a word: TemplateFault."""
    if record.system is not None and record.system.strip() not in text:
        raise TemplateFault("the chat template leaves the system turn out")
    if record.tools and not any(str(tool.get("function", tool).get("name")) in text for tool in record.tools):
        raise TemplateFault("the chat template leaves the tools out (--map tools= goes without them)")
    answers = [turn for turn in record.turns if turn.role == "assistant"]
    for i, turn in enumerate(answers):
        own = text[slice(*spans[i])] if len(spans) == len(answers) else text
        for call in turn.tool_calls:
            if (name := str(call.get("function", call).get("name"))) not in own:
                raise TemplateFault(f"the chat template leaves the call of {name} out")


class SlotRenderer:
    """Slots, their pieces tokenised one by one, as MindSpeed-LLM does with its templates.json.

    With `efficient_eos`, EOS is the label of the token that follows an answer, and stands itself only at the end.
    """

    def __init__(self, template: SlotTemplate, tokenizer: Tokenizer, thinking: bool | None = None) -> None:
        self.template, self.tokenizer, self.thinking = template, tokenizer, thinking
        eos = template.stop_words[0] if template.replace_eos and template.stop_words else tokenizer.special.get("eos_token")
        if eos is not None and tokenizer.id_of(eos) is None:
            raise _no_token(template, eos, tokenizer)
        self.eos = None if eos is None else tokenizer.id_of(eos)
        self.bos = tokenizer.bos_id
        if template.efficient_eos and self.eos is None:
            raise ToolError(
                f"template {template.name} ends answers with EOS, and {tokenizer.directory} names no eos_token",
                hint='add "eos_token" to its tokenizer_config.json, or give --eod TOKEN',
            )
        self._arrays: dict[int, NDArray[np.int32]] = {}
        self._known = {token: self._id(token) for token in template.tokens()}

    def _id(self, token: str) -> int:
        found = self.tokenizer.id_of(token)
        if found is None:
            raise _no_token(self.template, token, self.tokenizer)
        return found

    def chats(self, records: list[ChatRecord], *, last: bool) -> list[Rendering | BadRecord]:
        sides: list[list[tuple[list[Piece], list[Piece]]] | BadRecord] = []
        texts: list[str] = []
        for record in records:
            try:
                pairs = self.template.pairs(record, thinking=self.thinking)
            except ValueError as fault:
                sides.append(BadRecord("template cannot render it", str(fault)))
                continue
            sides.append(pairs)
            texts.extend(piece for pair in pairs for side in pair for piece in side if isinstance(piece, str) and piece)
        rows = self._rows(texts)
        pieces: list[NDArray[np.int32]] = []
        answers = [None if isinstance(pairs, BadRecord) else self._answers(pairs, rows, pieces) for pairs in sides]
        flat = np.concatenate(pieces) if pieces else np.empty(0, np.int32)
        labels = np.full(len(flat), IGNORED, np.int32)
        out: list[Rendering | BadRecord] = []
        at = 0
        for record, side, found in zip(records, sides, answers, strict=True):
            if isinstance(side, BadRecord) or found is None:
                out.append(side if isinstance(side, BadRecord) else BadRecord(""))
                continue
            end = at + found[-1][1]
            trained = self._label(flat[at:end], labels[at:end], found, _wanted(record, len(found), last))
            out.append(Rendering(flat[at:end], labels[at:end], found, trained))
            at = end
        return out

    def _answers(
        self, pairs: list[tuple[list[Piece], list[Piece]]], rows: Iterator[NDArray[np.int32]], pieces: list[NDArray[np.int32]]
    ) -> list[tuple[int, int]]:
        """Appends a conversation's ids to `pieces`; where its answers stand in them."""
        answers, at = [], 0
        for prompt, answer in pairs:
            start = at + self._append(prompt, rows, pieces)
            at = start + self._append(answer, rows, pieces)
            answers.append((start, at))
        if self.template.efficient_eos:
            pieces.append(self._one(self.eos))
            answers[-1] = (start, at + 1)
        return answers

    def _label(
        self, ids: NDArray[np.int32], labels: NDArray[np.int32], answers: list[tuple[int, int]], wanted: list[bool]
    ) -> int:
        """Writes the labels; how many tokens they train."""
        trained, end = 0, 0
        for (start, stop), this in zip(answers, wanted, strict=True):
            if this:
                labels[start:stop] = ids[start:stop]
                trained += stop - start
            if self.template.efficient_eos and self.eos is not None and end and start > end:
                labels[end] = self.eos  # the end of the answer before, where the next prompt begins
                trained += 1
            end = stop if this else 0
        return trained

    def prompts(self, records: list[ChatRecord]) -> list[NDArray[np.int32] | BadRecord]:
        sides: list[list[Piece] | BadRecord] = []
        for record in records:
            try:
                sides.append(self.template.prompt(record, thinking=self.thinking))
            except ValueError as fault:
                sides.append(BadRecord("template cannot render it", str(fault)))
        texts = [piece for pieces in sides if isinstance(pieces, list) for piece in pieces if isinstance(piece, str) and piece]
        rows = self._rows(texts)
        out: list[NDArray[np.int32] | BadRecord] = []
        for side in sides:
            ids: list[NDArray[np.int32]] = []
            if isinstance(side, list):
                self._append(side, rows, ids)
            out.append((np.concatenate(ids) if ids else np.empty(0, np.int32)) if isinstance(side, list) else side)
        return out

    def _rows(self, texts: list[str]) -> Iterator[NDArray[np.int32]]:
        """The ids of texts, one after another in the order in which they are asked for."""
        encoded = self.tokenizer.encode(texts)
        flat, offsets = encoded.flat.astype(np.int32), encoded.offsets.tolist()
        return (flat[a:b] for a, b in pairwise(offsets))

    def _append(self, pieces: list[Piece], rows: Iterator[NDArray[np.int32]], to: list[NDArray[np.int32]]) -> int:
        """Appends the ids of pieces; how many they are."""
        count = 0
        for piece in pieces:
            if isinstance(piece, str):
                if not piece:
                    continue
                ids = next(rows)
            else:
                token = self._token(piece)
                if token is None:
                    continue
                ids = self._one(token)
            to.append(ids)
            count += len(ids)
        return count

    def _one(self, token: int | None) -> NDArray[np.int32]:
        """One id as an array, made once."""
        assert token is not None
        if token not in self._arrays:
            self._arrays[token] = np.array([token], np.int32)
        return self._arrays[token]

    def _token(self, piece: Token | Special) -> int | None:
        """The id of a token that a slot names; None: the tokenizer has no BOS or EOS, and none is written."""
        if isinstance(piece, Special):
            return self.eos if piece.name == "eos_token" else self.bos
        return self._known[piece.name]


def _no_token(template: SlotTemplate, token: str, tokenizer: Tokenizer) -> ToolError:
    return ToolError(
        f"template {template.name} needs the token {token!r}, which the vocabulary of {tokenizer.directory} has not",
        hint="choose the template of this model; --template auto takes its own",
    )
